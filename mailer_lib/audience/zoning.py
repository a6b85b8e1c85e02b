"""Shards by time zone: where a send window is read off the recipients' own clocks, each shard is of one of them.

Grants go by rows, so a row whose window is shut would hold back all that stand behind it. Zones whose clocks agree for
a year and a month are one *band*, and each shard is cut into a part for each band (docs/decisions/0608). Part ``b`` of
shard ``n`` has the number ``n + b x shard_count``: a person's shard is still their hash mod ``shard_count``.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

_DAYS = 400
Clock = tuple[timedelta | None, ...]


class Part(NamedTuple):
    number: int
    zone: str | None  # one of the band's: all of them show the same time; None: the window doesn't ask for zones
    rows: pa.Table
    slice_rows: int | None


class Zoning:
    """Cuts one shard after the other. ``default``: the zone of whoever has none, or one that isn't known here."""

    def __init__(self, default: str, as_of: datetime, shard_count: int) -> None:
        self._default = default
        self._day = as_of.replace(hour=0, minute=0, second=0, microsecond=0)
        self._shard_count = shard_count
        self._bands: dict[Clock, tuple[int, str]] = {}  # number, and the zone met first
        self._band_of: dict[str | None, tuple[int, str]] = {}

    def parts(self, number: int, rows: pa.Table, slice_rows: int | None) -> Iterator[Part]:
        """The shard's rows in their order, by band; of a test slice, which stands first, each part has its own."""
        codes = rows.column("timezone").combine_chunks().dictionary_encode(null_encoding="encode")
        bands = [self._band(zone) for zone in codes.dictionary.to_pylist()]
        by_row = np.array([band for band, _ in bands], np.int64)[codes.indices.to_numpy()]
        zones = dict(bands)
        for band in sorted(zones):
            places = np.flatnonzero(by_row == band)
            within = None if slice_rows is None else int(np.searchsorted(places, slice_rows))
            yield Part(number + band * self._shard_count, zones[band], rows.take(places), within)

    def _band(self, zone: str | None) -> tuple[int, str]:
        found = self._band_of.get(zone)
        if found is None:
            known = zone if zone is not None and _is_known(zone) else self._default
            clock = _clock(known, self._day)
            found = self._band_of[zone] = self._bands.setdefault(clock, (len(self._bands), known))
        return found


def _is_known(zone: str) -> bool:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        return False
    return True


@cache
def _clock(zone: str, day: datetime) -> Clock:
    """How far the zone is from UTC, at midnight of each day to come."""
    info = ZoneInfo(zone)
    return tuple((day + timedelta(days=n)).astimezone(info).utcoffset() for n in range(_DAYS))
