"""One record of a file becomes one contact's data and the evidence of its consent, or a reason why not. Pure."""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from zoneinfo import available_timezones

from mailer_lib.contacts.address import Address, AddressError, normalise
from mailer_lib.contacts.attributes import Value, ValueProblemError, clean_text, parser_of
from mailer_lib.contacts.columns import ColumnMap, Field
from mailer_lib.terms import AttributeType

MAX_NAME = 200
MAX_SOURCE = 200
MAX_WORDING = 2000
CLOCK_SKEW = timedelta(days=1)  # a consent "in the future" beyond any time zone's midnight is a typing error

CONSENT_FIELDS = (Field.CONSENT_AT, Field.CONSENT_SOURCE, Field.CONSENT_WORDING, Field.CONSENT_IP)

_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")  # well-formed as in BCP 47 §2.1, without extensions
_GERMAN = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(.*)", re.DOTALL)
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


class RowProblemError(ValueError):
    """This row can't be imported: the column, and a sentence that doesn't repeat the value."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


@dataclass(frozen=True, slots=True)
class Evidence:
    """When, where and how a consent was given. ``at`` None: not known."""

    at: datetime | None
    source: str
    wording: str | None
    ip: str | None


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """What a row says; absent keys mean that its cell was empty, which erases nothing."""

    address: Address
    fields: dict[str, str]  # given_name, family_name, locale, timezone
    attributes: dict[str, Value]
    evidence: dict[int, Evidence]  # of each list that the row joins, by its place among the import's lists


@dataclass(frozen=True)
class ConsentDefaults:
    """What holds for rows whose file has no column for it, or whose cell is empty."""

    at: datetime | None
    source: str
    wording: str | None
    ip: str | None = None


@dataclass(frozen=True)
class ConsentColumns:
    """Where the consent to a list stands."""

    places: Mapping[Field, int]  # of the fields that begin with CONSENT
    defaults: ConsentDefaults
    moment: Callable[[str], datetime] | None = None  # reads CONSENT_AT; ``parse_moment`` when None


@dataclass(frozen=True)
class Joining:
    """Which lists a row joins, as bits: bit 0 is the first list."""

    always: int = 1
    columns: tuple[tuple[int, Callable[[str], int]], ...] = ()  # a column, and which lists its text means


@dataclass(frozen=True)
class Wording:
    """How a file writes its values, where that isn't the usual way. Keys are fields' names and attributes' keys."""

    readers: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    otherwise: Mapping[str, Any] = field(default_factory=dict)  # what an empty cell means, or a column that isn't there


EVERYBODY_JOINS = Joining()
USUAL = Wording()


class RowParser:
    """Compiled from the mapping once; ``parse`` is the import's inner loop."""

    def __init__(
        self,
        columns: ColumnMap,
        types: dict[str, AttributeType],
        defaults: ConsentDefaults,
        read_at: datetime,
        choices: Mapping[str, Sequence[str]] = MappingProxyType({}),
        *,
        wording: Wording = USUAL,
        joining: Joining = EVERYBODY_JOINS,
        consents: Sequence[ConsentColumns] = (),
    ) -> None:
        """``consents``: of each list; without any there is one list, and ``columns`` and ``defaults`` say it."""
        self.width = len(columns.header)
        self._header = columns.header
        self.address_index = columns.fields[Field.ADDRESS]
        self.latest = read_at + CLOCK_SKEW
        readers: dict[Field, Callable[[str], str]] = {
            Field.GIVEN_NAME: parse_name,
            Field.FAMILY_NAME: parse_name,
            Field.LOCALE: parse_locale,
            Field.TIMEZONE: parse_timezone,
        }
        said = wording.readers
        self.fields = [
            (f.value, columns.fields[f], said.get(f.value, read)) for f, read in readers.items() if f in columns.fields
        ]
        self.attributes = [
            (key, index, said.get(key) or parser_of(types[key], choices.get(key, ())))
            for key, index in columns.attributes.items()
        ]
        names = {f.value for f in readers}
        self.fields_otherwise = {key: value for key, value in wording.otherwise.items() if key in names}
        self.attributes_otherwise = {key: value for key, value in wording.otherwise.items() if key not in names}
        self.joining = joining
        own = {f: index for f, index in columns.fields.items() if f in CONSENT_FIELDS}
        self.consents = tuple(consents) or (ConsentColumns(own, defaults),)

    def parse(self, cells: list[str]) -> ParsedRow:
        """Read one record.

        Raises:
            RowProblemError: the first thing that is wrong with it.
        """
        if len(cells) != self.width:
            raise RowProblemError("", f"it has {len(cells)} columns where the header has {self.width}")
        if not "".join(cells).isprintable():
            for column, cell in zip(self._header, cells, strict=True):
                if _BINARY.search(cell):
                    raise RowProblemError(column, "there is a control character in it")
        index = self.address_index
        try:
            address = normalise(cells[index])
            fields = dict(self.fields_otherwise)
            for name, index, read in self.fields:
                if cells[index] and (text := read(cells[index])):
                    fields[name] = text
            attributes = dict(self.attributes_otherwise)
            for name, index, parse in self.attributes:
                if cells[index] and not cells[index].isspace():
                    attributes[name] = parse(cells[index])
            joins = self.joining.always
            for index, lists_of in self.joining.columns:
                joins |= lists_of(cells[index])
        except (AddressError, ValueProblemError) as error:
            raise RowProblemError(self._header[index], str(error)) from None
        evidence = {
            number: self._evidence(cells, consent)
            for number, consent in enumerate(self.consents)
            if joins >> number & 1
        }
        return ParsedRow(address, fields, attributes, evidence)

    def _evidence(self, cells: list[str], consent: ConsentColumns) -> Evidence:
        said = consent.defaults
        at, source, wording, ip = said.at, said.source, said.wording, said.ip
        index = 0
        try:
            for field, place in consent.places.items():
                if not cells[place].strip():
                    continue
                index = place
                if field is Field.CONSENT_AT:
                    at = (consent.moment or parse_moment)(cells[place])
                    if at > self.latest:
                        raise ValueProblemError("the consent lies in the future")
                elif field is Field.CONSENT_SOURCE:
                    source = parse_source(cells[place])
                elif field is Field.CONSENT_WORDING:
                    wording = parse_wording(cells[place])
                else:
                    ip = parse_ip(cells[place])
        except ValueProblemError as error:
            raise RowProblemError(self._header[index], str(error)) from None
        return Evidence(at, source, wording, ip)


def parse_name(text: str) -> str:
    return clean_text(text, MAX_NAME)


def parse_source(text: str) -> str:
    return clean_text(text, MAX_SOURCE)


def parse_wording(text: str) -> str:
    return clean_text(text, MAX_WORDING)


@lru_cache(maxsize=4096)
def parse_locale(text: str) -> str:
    """A language tag in BCP 47's usual case: ``de``, ``pt-BR``, ``zh-Hant-TW``; an underscore is read as a hyphen."""
    tag = text.strip().replace("_", "-")
    if not tag:
        return ""
    if _LOCALE.fullmatch(tag) is None or len(tag) > 35:
        raise ValueProblemError("it is not a language tag like de or pt-BR")
    language, *rest = tag.split("-")
    cased = (part.title() if len(part) == 4 else part.upper() if len(part) == 2 else part.lower() for part in rest)
    return "-".join([language.lower(), *cased])


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    return {zone.casefold(): zone for zone in available_timezones()}


@lru_cache(maxsize=4096)
def parse_timezone(text: str) -> str:
    """A name of the IANA time zone database."""
    name = text.strip()
    if not name:
        return ""
    zone = _zones().get(name.casefold())
    if zone is None:
        raise ValueProblemError("it is not a time zone like Europe/Berlin")
    return zone


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueProblemError("it is not an IP address") from None


def parse_moment(text: str) -> datetime:
    """ISO 8601 date or date and time, or 31.12.2024 [18:00[:00]].

    Without an offset it is UTC, without a time midnight: a refusal of the same day is newer.
    """
    text = text.strip()
    german = _GERMAN.fullmatch(text)
    if german is not None:
        text = f"{german[3]}-{int(german[2]):02}-{int(german[1]):02}{german[4]}"
    try:
        moment = datetime.fromisoformat(text)
        utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueProblemError("it is not a date and time like 2024-12-31 18:00") from None
    if utc.date() < date(1990, 1, 1):
        raise ValueProblemError("it is before 1990")
    return utc
