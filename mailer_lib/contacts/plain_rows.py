"""The rows that need no second look, read column by column: what ``RowParser`` gives, but quicker. Pure.

``RowParser`` alone says what a row means and what is wrong with it. Here its readers are run once for each distinct
text of a column; a row that any of them refuses, or whose shape is unusual, is left to ``RowParser``. Values are in the
form in which the database stores them, so that a row goes from the file to the driver without an object of its own.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import compress
from typing import Any

from mailer_lib.contacts.address import Address, normalise
from mailer_lib.contacts.attributes import Value, ValueProblemError
from mailer_lib.contacts.columns import Field
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.rows import RowParser, parse_ip, parse_moment, parse_source, parse_wording
from mailer_lib.database.bulk import moment_text

MEMO_TEXTS = 65_536  # of a column; a column of distinct texts starts anew after them
FIELDS = (Field.GIVEN_NAME, Field.FAMILY_NAME, Field.LOCALE, Field.TIMEZONE)

_CONTROLS = bytes([*range(9), *range(14, 32), 127])  # as rows.RowParser refuses them

attributes_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


@dataclass(slots=True)
class PlainRows:
    """Columns of equal length, an entry for each plain row."""

    places: list[int]  # which of the rows given it is
    keys: list[bytes]  # address hashes
    given: list[str]
    normalised: list[str]
    domains: list[str]
    providers: list[str]
    given_names: list[str | None]
    family_names: list[str | None]
    locales: list[str | None]
    timezones: list[str | None]
    attributes: list[str]  # JSON text, keys sorted
    at: list[str | None]  # when the consent was given, ``moment_text``
    sources: list[str]
    wordings: list[str | None]
    ips: list[str | None]

    def only(self, wanted: Sequence[object]) -> "PlainRows":
        """The rows whose entry in ``wanted`` is true."""
        return PlainRows(*(list(compress(getattr(self, name), wanted)) for name in _COLUMNS))


_COLUMNS = tuple(f.name for f in fields(PlainRows))


_COLUMNS = tuple(f.name for f in fields(PlainRows))


class _Odd:
    """Stands for a text that a reader refused."""


_ODD: Any = _Odd()


class _Memo(dict[str, Any]):
    """What the texts of a column become. ``odd``: one of this batch was refused."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        super().__init__()
        self._read = read
        self.odd = False

    def __missing__(self, text: str) -> Any:
        try:
            value = self._read(text)
        except ValueProblemError:
            self.odd = True
            return _ODD
        self[text] = value
        return value

    def all_of(self, texts: Sequence[str]) -> list[Any]:
        if len(self) > MEMO_TEXTS:
            self.clear()
        self.odd = False
        return list(map(self.__getitem__, texts))


class PlainReader:
    """Made of a ``RowParser``, whose mapping and readers it shares."""

    def __init__(self, parser: RowParser, address_hash: Callable[[str], bytes]) -> None:
        self._width = parser.width
        self._address_hash = address_hash
        self._address = parser.address_index
        self._fields = {name: (index, _Memo(_optional(read))) for name, index, read in parser.fields}
        self._attributes = [
            (index, _Memo(_fragment(key, read))) for key, index, read in sorted(parser.attributes, key=lambda a: a[0])
        ]
        said = parser.defaults
        readers = {
            Field.CONSENT_AT: _moment(said.at, parser.latest),
            Field.CONSENT_SOURCE: _or_else(said.source, parse_source),
            Field.CONSENT_WORDING: _or_else(said.wording, parse_wording),
            Field.CONSENT_IP: _or_else(said.ip, parse_ip),
        }
        self._consent = {
            field: (place, _Memo(readers[field])) for field, place in parser.consent.items() if place is not None
        }
        self._defaults = said

    def read(self, rows: Sequence[list[str]]) -> PlainRows:
        """The plain ones among ``rows``; all others are for ``RowParser``."""
        places = list(range(len(rows)))
        if set(map(len, rows)) != {self._width} or not _clean(map("".join, rows)):
            places = [i for i, r in enumerate(rows) if len(r) == self._width and _clean(r)]
            rows = [rows[i] for i in places]
        if not rows:
            return PlainRows(*([] for _ in _COLUMNS))
        return self._columns(places, list(zip(*rows, strict=True)))

    def _columns(self, places: list[int], texts: list[tuple[str, ...]]) -> PlainRows:
        count = len(places)
        addresses = [_address(text) for text in texts[self._address]]
        odd = {i for i, address in enumerate(addresses) if address is _ODD_ADDRESS}

        def memoised(index: int, memo: _Memo) -> list[Any]:
            values = memo.all_of(texts[index])
            if memo.odd:
                odd.update(i for i, value in enumerate(values) if value is _ODD)
            return values

        def consent(field: Field, default: Any) -> list[Any]:
            return memoised(*self._consent[field]) if field in self._consent else [default] * count

        named = {name: memoised(*column) for name, column in self._fields.items()}
        fragments = [memoised(*column) for column in self._attributes]
        given, normalised, _, domains = map(list, zip(*addresses, strict=True))
        at = consent(Field.CONSENT_AT, moment_text(self._defaults.at))
        sources = consent(Field.CONSENT_SOURCE, self._defaults.source)
        wordings = consent(Field.CONSENT_WORDING, self._defaults.wording)
        ips = consent(Field.CONSENT_IP, self._defaults.ip)
        if odd:
            fragments = [["" if i in odd else text for i, text in enumerate(column)] for column in fragments]
        attributes = (
            ["{" + ", ".join(filter(None, row)) + "}" for row in zip(*fragments, strict=True)]
            if fragments
            else ["{}"] * count
        )
        given_names, family_names, locales, timezones = (named.get(f.value) or [None] * count for f in FIELDS)
        rows = PlainRows(
            places, list(map(self._address_hash, normalised)), given, normalised, domains,
            list(map(provider_of, domains)), given_names, family_names, locales, timezones, attributes, at,
            sources, wordings, ips,
        )  # fmt: skip
        return rows.only([i not in odd for i in range(count)]) if odd else rows


def _clean(texts: Iterable[str]) -> bool:
    """Without control characters that no cell may have, looked for in all of them at once."""
    data = "".join(texts).encode("utf-8", "surrogatepass")
    return len(data.translate(None, _CONTROLS)) == len(data)


_ODD_ADDRESS = Address("", "", "", "")


def _address(text: str) -> Address:
    try:
        return normalise(text)
    except ValueError:
        return _ODD_ADDRESS


def _optional(read: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda text: (read(text) or None) if text else None


def _or_else(default: str | None, read: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda text: read(text) if text.strip() else default


def _fragment(key: str, read: Callable[[str], Value]) -> Callable[[str], str]:
    """``"key": value`` as it stands in the JSON of all attributes; empty for an empty cell."""
    return lambda text: attributes_json({key: read(text)})[1:-1] if text and not text.isspace() else ""


def _moment(default: datetime | None, latest: datetime) -> Callable[[str], str | None]:
    """``parse_moment`` to the text that the database stores; the usual ISO 8601 takes a shorter way."""
    otherwise, latest_text = moment_text(default), moment_text(latest)
    assert latest_text is not None

    def read(text: str) -> str | None:
        if not text or text.isspace():
            return otherwise
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = parse_moment(text)
        stored = (
            moment.isoformat(" ", "microseconds")[:26]
            if moment.tzinfo in (None, UTC)
            else moment_text(parse_moment(text))
        )
        if stored is None or not "1990" <= stored <= latest_text:
            raise ValueProblemError("it isn't a time that a consent can have been given at")
        return stored

    return read
