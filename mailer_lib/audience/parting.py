"""Shards of one kind: what one row has to wait for must not hold back others, and grants go by rows.

Two things part the rows of a shard. Where a send window is read off the recipients' own clocks, their time zone: zones
whose clocks agree for a year and a month are one (docs/decisions/0611). And the mailbox provider, if it has a limit
(docs/decisions/0612). Part ``b`` of shard ``n`` has the number ``n + b x shard_count``: a person's shard is still their
hash mod ``shard_count``.
"""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

_DAYS = 400
Clock = tuple[timedelta | None, ...]


class Part(NamedTuple):
    number: int
    zone: str | None  # one of several that show the same time; None: the window doesn't ask for zones
    provider: str | None  # of everybody in it; None: all that have no limit
    rows: pa.Table
    slice_rows: int | None


class _Kind(NamedTuple):
    band: int
    zone: str | None
    provider: str | None


class Parting:
    """Cuts one shard after the other.

    Args:
        zone: part by time zone; this one for whoever has none, or one that isn't known here. None: don't.
        providers: who get shards of their own.
    """

    def __init__(self, zone: str | None, providers: Collection[str], as_of: datetime, shard_count: int) -> None:
        self._zone = zone
        self._providers = frozenset(providers)
        self._day = as_of.replace(hour=0, minute=0, second=0, microsecond=0)
        self._shard_count = shard_count
        self._kinds: dict[tuple[Clock, str | None], _Kind] = {}
        self._kind_of: dict[tuple[str | None, str | None], _Kind] = {}

    def parts(self, number: int, rows: pa.Table, slice_rows: int | None) -> Iterator[Part]:
        """The shard's rows in their order, by kind; of a test slice, which stands first, each part has its own."""
        if self._zone is None and not self._providers:
            yield Part(number, None, None, rows, slice_rows)
            return
        zone_codes, zones = _codes(rows, "timezone")
        provider_codes, providers = _codes(rows, "provider")
        kinds = [[self._kind(zone, provider) for provider in providers] for zone in zones]
        bands = np.array([[kind.band for kind in of_zone] for of_zone in kinds], np.int64)
        by_row = bands[zone_codes, provider_codes]
        for kind in sorted({kind for of_zone in kinds for kind in of_zone}, key=lambda kind: kind.band):
            places = np.flatnonzero(by_row == kind.band)
            if len(places):
                within = None if slice_rows is None else int(np.searchsorted(places, slice_rows))
                number_ = number + kind.band * self._shard_count
                yield Part(number_, kind.zone, kind.provider, rows.take(places), within)

    def _kind(self, zone: str | None, provider: str | None) -> _Kind:
        found = self._kind_of.get((zone, provider))
        if found is None:
            alone = provider if provider in self._providers else None
            known = zone if self._zone is None or (zone is not None and _is_known(zone)) else self._zone
            clock = () if self._zone is None or known is None else _clock(known, self._day)
            new = _Kind(len(self._kinds), None if self._zone is None else known, alone)
            found = self._kind_of[zone, provider] = self._kinds.setdefault((clock, alone), new)
        return found


def _codes(rows: pa.Table, column: str) -> tuple[Any, list[str | None]]:
    encoded = rows.column(column).combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


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
