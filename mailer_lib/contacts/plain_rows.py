"""The rows that need no second look, read column by column: what ``RowParser`` gives, but quicker. Pure.

``RowParser`` alone says what a row means and what is wrong with it. Here its readers are run once for each distinct
text of a column; a row that any of them refuses, or whose shape is unusual, is left to ``RowParser``. Values are in the
form in which the database stores them, so that a row goes from the file to the driver without an object of its own.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import compress
from typing import Any

from mailer_lib.contacts.address import Address, normalise
from mailer_lib.contacts.attributes import Value, ValueProblemError
from mailer_lib.contacts.columns import Field
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.rows import ConsentColumns, RowParser, parse_ip, parse_moment, parse_source, parse_wording
from mailer_lib.database.bulk import moment_text

MEMO_TEXTS = 65_536  # of a column; a column of distinct texts starts anew after them
FIELDS = (Field.GIVEN_NAME, Field.FAMILY_NAME, Field.LOCALE, Field.TIMEZONE)

_CONTROLS = bytes([*range(9), *range(14, 32), 127])  # as rows.RowParser refuses them

attributes_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


# when the consent was given, where, in which words, from which IP address
Consents = tuple[list[str | None], list[str], list[str | None], list[str | None]]


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
    joins: list[int]  # which lists, as bits
    others: tuple[Consents, ...]  # at, sources, wordings and ips of the import's second list, third, …

    def only(self, wanted: Sequence[object]) -> "PlainRows":
        """The rows whose entry in ``wanted`` is true."""
        columns: Any = [list(compress(getattr(self, name), wanted)) for name in _COLUMNS]
        others: Any = tuple(tuple(list(compress(one, wanted)) for one in consents) for consents in self.others)
        return PlainRows(*columns, *[others])

    def of_list(self, number: int) -> "PlainRows":
        """The rows that join the import's list of that number, with the consent to it."""
        if not self.others:
            return self
        bit = 1 << number
        joining = [mask & bit for mask in self.joins]
        rows = self if all(joining) else self.only(joining)
        if number == 0:
            return rows
        at, sources, wordings, ips = rows.others[number - 1]
        return replace(rows, at=at, sources=sources, wordings=wordings, ips=ips)


_COLUMNS = tuple(f.name for f in fields(PlainRows) if f.name != "others")


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
        self._otherwise = parser.fields_otherwise
        self._fields = {
            name: (index, _Memo(_optional(read, parser.fields_otherwise.get(name))))
            for name, index, read in parser.fields
        }
        self._attributes = _attribute_columns(parser)
        self._joining = parser.joining
        self._join_columns = [(index, _Memo(lists_of)) for index, lists_of in parser.joining.columns]
        made: dict[int, _ConsentReader] = {}
        for said in parser.consents:
            made.setdefault(id(said), _ConsentReader(said, parser.latest))
        self._consents = [made[id(said)] for said in parser.consents]

    def read(self, rows: Sequence[list[str]]) -> PlainRows:
        """The plain ones among ``rows``; all others are for ``RowParser``."""
        places = list(range(len(rows)))
        if set(map(len, rows)) != {self._width} or not _clean(map("".join, rows)):
            places = [i for i, r in enumerate(rows) if len(r) == self._width and _clean(r)]
            rows = [rows[i] for i in places]
        if not rows:
            nothing: Any = [[] for _ in _COLUMNS]
            return PlainRows(*nothing, *[tuple(([], [], [], []) for _ in self._consents[1:])])
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

        named = {name: memoised(*column) for name, column in self._fields.items()}
        fragments = [
            [memo] * count if isinstance(memo, str) else memoised(index, memo) for index, memo in self._attributes
        ]
        given, normalised, _, domains = map(list, zip(*addresses, strict=True))
        read = {id(reader): reader.columns(memoised, count) for reader in self._consents}
        at, sources, wordings, ips = read[id(self._consents[0])]
        joins = [self._joining.always] * count
        for index, memo in self._join_columns:
            joins = [a | b if b is not _ODD else 0 for a, b in zip(joins, memoised(index, memo), strict=True)]
        if odd:
            fragments = [["" if i in odd else text for i, text in enumerate(column)] for column in fragments]
        attributes = (
            ["{" + ", ".join(filter(None, row)) + "}" for row in zip(*fragments, strict=True)]
            if fragments
            else ["{}"] * count
        )
        given_names, family_names, locales, timezones = (
            named.get(f.value) or [self._otherwise.get(f.value)] * count for f in FIELDS
        )
        rows = PlainRows(
            places, list(map(self._address_hash, normalised)), given, normalised, domains,
            list(map(provider_of, domains)), given_names, family_names, locales, timezones, attributes, at,
            sources, wordings, ips, joins, tuple(read[id(reader)] for reader in self._consents[1:]),
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


class _ConsentReader:
    """The consent to a list, or to several of which the same is said."""

    def __init__(self, said: ConsentColumns, latest: datetime) -> None:
        defaults = said.defaults
        self._defaults = {
            Field.CONSENT_AT: moment_text(defaults.at), Field.CONSENT_SOURCE: defaults.source,
            Field.CONSENT_WORDING: defaults.wording, Field.CONSENT_IP: defaults.ip,
        }  # fmt: skip
        readers = {
            Field.CONSENT_AT: _moment(defaults.at, latest, said.moment),
            Field.CONSENT_SOURCE: _or_else(defaults.source, parse_source),
            Field.CONSENT_WORDING: _or_else(defaults.wording, parse_wording),
            Field.CONSENT_IP: _or_else(defaults.ip, parse_ip),
        }
        self._places = {field: (place, _Memo(readers[field])) for field, place in said.places.items()}

    def columns(self, memoised: Callable[[int, _Memo], list[Any]], count: int) -> Consents:
        columns: Any = tuple(
            memoised(*self._places[field]) if field in self._places else [default] * count
            for field, default in self._defaults.items()
        )
        consents: Consents = columns
        return consents


def _attribute_columns(parser: RowParser) -> list[tuple[int, _Memo | str]]:
    """In the order of their keys: a column and what reads it, or the same piece of JSON for every row."""
    found: dict[str, tuple[int, _Memo | str]] = {
        key: (-1, attributes_json({key: value})[1:-1]) for key, value in parser.attributes_otherwise.items()
    }
    for key, index, read in parser.attributes:
        otherwise = found[key][1] if key in found else ""
        found[key] = (index, _Memo(_fragment(key, read, str(otherwise))))
    return [found[key] for key in sorted(found)]


def _optional(read: Callable[[str], str], otherwise: str | None) -> Callable[[str], str | None]:
    return lambda text: (read(text) or otherwise) if text else otherwise


def _or_else(default: str | None, read: Callable[[str], str]) -> Callable[[str], str | None]:
    return lambda text: read(text) if text.strip() else default


def _fragment(key: str, read: Callable[[str], Value], otherwise: str) -> Callable[[str], str]:
    """``"key": value`` as it stands in the JSON of all attributes; ``otherwise`` for an empty cell."""
    return lambda text: attributes_json({key: read(text)})[1:-1] if text and not text.isspace() else otherwise


def _moment(
    default: datetime | None, latest: datetime, said: Callable[[str], datetime] | None
) -> Callable[[str], str | None]:
    """``parse_moment`` to the text that the database stores; the usual ISO 8601 takes a shorter way."""
    otherwise, latest_text = moment_text(default), moment_text(latest)
    assert latest_text is not None

    def read(text: str) -> str | None:
        if not text or text.isspace():
            return otherwise
        try:
            moment = datetime.fromisoformat(text) if said is None else said(text)
        except ValueProblemError:
            raise
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
