"""A profile and a file's header become what the import does. Every problem is found before a row is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from mailer_lib.contacts.attributes import AttributeKeyError, ValueProblemError, parser_of, require_declared
from mailer_lib.contacts.columns import ColumnMap, Field, MappingError, index_of, slug
from mailer_lib.contacts.formats import FileFormat
from mailer_lib.contacts.import_plan import BATCH_ROWS, Declared, ImportPlan, Target
from mailer_lib.contacts.lists import ListError, list_id
from mailer_lib.contacts.profile import ListConsent, ListRule, Moment, OtherColumns, Said, State, Translated
from mailer_lib.contacts.profile_file import LoadedProfile, Location
from mailer_lib.contacts.profile_readers import (
    attribute_reader,
    folded,
    joins_by_words,
    joins_if_yes,
    moment_reader,
    translated,
    unsuited,
)
from mailer_lib.contacts.rejects import REJECT_COLUMNS
from mailer_lib.contacts.rows import (
    MAX_SOURCE,
    ConsentColumns,
    ConsentDefaults,
    Joining,
    Wording,
    parse_ip,
    parse_locale,
    parse_moment,
    parse_name,
    parse_source,
    parse_timezone,
    parse_wording,
)
from mailer_lib.database.engine import now

_FIELDS: dict[Field, Callable[[str], str]] = {
    Field.GIVEN_NAME: parse_name, Field.FAMILY_NAME: parse_name, Field.LOCALE: parse_locale,
    Field.TIMEZONE: parse_timezone,
}  # fmt: skip


@dataclass(frozen=True)
class ProfileRequest:
    """An import as a profile says it (``import_plan.ImportRequest``)."""

    loaded: LoadedProfile
    format: FileFormat | None = None  # by the file's name when None
    batch_rows: int = BATCH_ROWS
    dry_run: bool = False

    @property
    def encoding(self) -> str:
        return self.loaded.profile.csv.encoding

    @property
    def delimiter(self) -> str | None:
        return self.loaded.profile.csv.delimiter

    def check(self, connection: Connection) -> None:
        _targets(connection, self.loaded)

    def plan(self, connection: Connection, path: Path, header: list[str], known: Declared) -> ImportPlan:
        targets = _targets(connection, self.loaded)
        return _Compiling(self.loaded, path, header, known).plan(targets)


def _targets(connection: Connection, loaded: LoadedProfile) -> tuple[Target, ...]:
    """The lists in the profile's order.

    Raises:
        ProfileError: one isn't here, or is named by two rules.
    """
    found: dict[str, Target] = {}
    problems: list[tuple[Location, str]] = []
    for number, rule in enumerate(loaded.profile.lists):
        state = rule.consent.state or loaded.profile.consent.state
        place: Location = ("lists", number, "list" if rule.words is None else "words")
        if not rule.names:
            problems.append((place, "none of the words means a list"))
        for name in rule.names:
            if name in found:
                problems.append((place, f"list {name!r} is named by another rule already"))
                continue
            try:
                found[name] = Target(name, list_id(connection, name), state is State.PENDING)
            except ListError as error:
                problems.append((place, str(error)))
    if problems:
        raise loaded.error(problems)
    return tuple(found.values())


@dataclass
class _Compiling:
    loaded: LoadedProfile
    path: Path
    header: list[str]
    known: Declared
    problems: list[tuple[Location, str]] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    fields: dict[Field, int] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)
    readers: dict[str, Callable[[str], Any]] = field(default_factory=dict)
    otherwise: dict[str, Any] = field(default_factory=dict)

    def plan(self, targets: tuple[Target, ...]) -> ImportPlan:
        """Raises ProfileError with all problems."""
        profile = self.loaded.profile
        self._person()
        for key in profile.attributes:
            self._attribute(key)
        consents = self._consents()
        joining = self._joining({target.name: 1 << number for number, target in enumerate(targets)})
        ignored = self._others()
        if self.problems:
            raise self.loaded.error(self.problems)
        columns = ColumnMap(tuple(self.header), self.fields, self.attributes, ignored)
        said = (profile.model_dump_json(), self.path.name if self._named_by_file() else "", targets, self.header)
        return ImportPlan(
            targets, columns, consents[0].defaults, said, Wording(self.readers, self.otherwise), joining, consents
        )

    def _named_by_file(self) -> bool:
        """Whether the file's name stands for where they signed up."""
        profile = self.loaded.profile
        return any((rule.consent.source or profile.consent.source) is None for rule in profile.lists)

    @contextmanager
    def _at(self, *location: str | int) -> Iterator[None]:
        try:
            yield
        except (MappingError, AttributeKeyError, ValueProblemError) as error:
            self.problems.append((location, str(error)))

    def _column(self, name: str | None, *location: str | int) -> int | None:
        index: int | None = None
        if name is not None:
            with self._at(*location):
                index = index_of(str(self.path), self.header, name)
                self.used.add(index)
        return index

    def _person(self) -> None:
        said = self.loaded.profile.fields
        index = self._column(said.address, "fields", "address")
        if index is not None:
            self.fields[Field.ADDRESS] = index
        for target, read in _FIELDS.items():
            one: Said | None = getattr(said, target.value)
            if one is None:
                continue
            index = self._column(one.column, "fields", target.value, "column")
            if index is not None:
                self.fields[target] = index
            if isinstance(one, Translated) and one.words:
                self.readers[target.value] = translated(one.words, read)
            if one.value is not None:
                with self._at("fields", target.value, "value"):
                    self.otherwise[target.value] = read(one.value)

    def _attribute(self, key: str) -> None:
        rule, place = self.loaded.profile.attributes[key], ("attributes", key)
        with self._at(*place):
            type_ = require_declared(self.known.types, key)
            choices = self.known.choices.get(key, ())
            wrong = unsuited(rule, type_)
            self.problems += [((*place, name), sentence) for name, sentence in wrong]
            if rule.column is not None and (index := self._column(rule.column, *place, "column")) is not None:
                self.attributes[key] = index
                if not wrong:
                    self.readers[key] = attribute_reader(rule, type_, choices)
            if rule.value is not None:
                with self._at(*place, "value"):
                    self.otherwise[key] = parser_of(type_, choices)(rule.value)

    def _consents(self) -> tuple[ConsentColumns, ...]:
        """Of each list; lists of which nothing of their own is said share one."""
        profile = self.loaded.profile
        common = self._consent(profile.consent, ("consent",))
        found: list[ConsentColumns] = []
        for number, rule in enumerate(profile.lists):
            own = rule.consent
            if own.model_copy(update={"state": None}) == ListConsent():
                one = common
            else:
                parts = {name: getattr(own, name) or getattr(profile.consent, name) for name in _CONSENT}
                one = self._consent(ListConsent(**parts), ("lists", number, "consent"))
            found += [one] * len(rule.names)
        return tuple(found)

    def _consent(self, said: ListConsent, place: Location) -> ConsentColumns:
        places: dict[Field, int] = {}
        texts: dict[str, str | None] = {}
        for name, (target, read) in _CONSENT.items():
            one: Said | None = getattr(said, name)
            texts[name] = None
            if one is None:
                continue
            index = self._column(one.column, *place, name, "column")
            if index is not None:
                places[target] = index
            if one.value is not None and read is not None:
                with self._at(*place, name, "value"):
                    texts[name] = read(one.value)
        at, moment = self._moment(said.at, place)
        source = texts["source"] or self.path.name[:MAX_SOURCE]
        return ConsentColumns(places, ConsentDefaults(at, source, texts["wording"], texts["ip"]), moment)

    def _moment(self, said: Moment | None, place: Location) -> tuple[datetime | None, Callable[[str], datetime] | None]:
        if said is None:
            return None, None
        at: datetime | None = None
        if said.value is not None:
            with self._at(*place, "at", "value"):
                at = parse_moment(said.value)
                if at > now():
                    raise ValueProblemError("it lies in the future")
        return at, moment_reader(said.format) if said.format is not None else None

    def _joining(self, bits: dict[str, int]) -> Joining:
        always, columns = 0, []
        for number, rule in enumerate(self.loaded.profile.lists):
            index = self._column(rule.column, "lists", number, "column")
            if rule.column is None:
                always |= bits[rule.names[0]]
            elif index is not None:
                columns.append((index, self._reader_of_lists(number, rule, bits)))
        return Joining(always, tuple(columns))

    def _reader_of_lists(self, number: int, rule: ListRule, bits: dict[str, int]) -> Callable[[str], int]:
        if rule.words is None:
            both = {folded(word) for word in rule.yes} & {folded(word) for word in rule.no}
            if both:
                self.problems.append((("lists", number, "no"), f"{sorted(both)[0]!r} means yes already"))
            return joins_if_yes(bits[rule.names[0]], rule.yes, rule.no)
        meanings: dict[str, str] = {}
        for word, name in rule.words.items():
            if meanings.setdefault(folded(word), name.strip()) != name.strip():
                place: Location = ("lists", number, "words", word)
                self.problems.append((place, "the same word, in another case, means another list"))
        lists = {word: bits.get(name, 0) for word, name in meanings.items()}
        return joins_by_words(lists, rule.separator, rule.unknown)

    def _others(self) -> tuple[str, ...]:
        """The columns that nothing is made of."""
        policy = self.loaded.profile.other_columns
        ignored = []
        for index, column in enumerate(self.header):
            if index in self.used or column in REJECT_COLUMNS or not column:
                continue
            key = slug(column)
            said = key in self.attributes or key in self.loaded.profile.attributes
            if policy is OtherColumns.ATTRIBUTES and key in self.known.types and not said:
                self.attributes[key] = index
            else:
                ignored.append(column)
        if policy is OtherColumns.REFUSE and ignored:
            names = ", ".join(map(repr, ignored))
            self.problems.append(
                (("other_columns",), f"{self.path} has columns that the profile doesn't name: {names}")
            )
        return tuple(ignored)


_CONSENT: dict[str, tuple[Field, Callable[[str], str] | None]] = {
    "at": (Field.CONSENT_AT, None),
    "source": (Field.CONSENT_SOURCE, parse_source),
    "wording": (Field.CONSENT_WORDING, parse_wording),
    "ip": (Field.CONSENT_IP, parse_ip),
}
