"""Attributes: what is known of a contact beyond the fixed columns. Each key is declared once with a type.

The declaration is what lets criteria be type-checked, shards have typed columns, and an import say which value doesn't
parse.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from difflib import get_close_matches
from functools import lru_cache

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from mailer_lib.database import audit, generated
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import attribute_types
from mailer_lib.terms import AttributeType

_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_TEXT = 1000
_LOCK_WAIT_TIMEOUT = 1205  # MariaDB: ER_LOCK_WAIT_TIMEOUT
MAX_ITEM = 200  # characters, of one text in a list
MAX_ITEMS = 100
MAX_CHOICES = 500
ITEM_SEPARATOR = "|"
# Fixed columns and names that templates and criteria use for something else.
RESERVED = frozenset(
    {
        "id", "address", "given_name", "family_name", "locale", "timezone", "domain", "provider", "state",
        "created_at", "updated_at", "attributes", "contact", "campaign", "list", "unsubscribe_url",
    }
)  # fmt: skip

_NUMBER = re.compile(r"[+-]?\d{1,15}(?:\.\d{1,12})?")
_GERMAN_DATE = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TRUE = frozenset({"true", "yes", "y", "1", "on", "ja", "oui", "si", "sì", "sí", "tak"})
_FALSE = frozenset({"false", "no", "n", "0", "off", "nein", "non", "nie"})
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Value = str | float | int | bool | list[str]


class AttributeKeyError(ValueError):
    """A key or a declaration that can't be."""


class IndexingError(RuntimeError):
    """An index can't be made or dropped now."""


class ValueProblemError(ValueError):
    """A text that isn't a value of the declared type; the sentence doesn't repeat the text."""


def declare(
    connection: Connection, key: str, type_: AttributeType, label: str | None = None, choices: Sequence[str] = ()
) -> bool:
    """Declare an attribute. Declaring it again with the same type only adds choices. Returns whether it is new.

    Args:
        choices: of an enum, what it may be; none of another type.

    Raises:
        AttributeKeyError: not a possible key, choices that can't be, or declared with another type (values of it may be
            stored already).
    """
    offered = _clean_choices(key, type_, choices)
    if _KEY.fullmatch(key) is None:
        raise AttributeKeyError(
            f"{key!r} can't be the key of an attribute: a lower-case letter, then letters, digits, _; at most 64"
        )
    if key in RESERVED:
        raise AttributeKeyError(f"{key!r} is a field that every contact has; choose another key")
    existing = declared(connection).get(key)
    if existing is None:
        try:
            with connection.begin_nested():
                connection.execute(
                    insert(attribute_types).values(
                        key=key, type=type_.value, label=label, choices=list(offered) or None, created_at=now()
                    )
                )
            return True
        except IntegrityError:  # somebody else declared it a moment ago
            existing = declared(connection)[key]
    if existing is not type_:
        raise AttributeKeyError(
            f"attribute {key!r} is declared as {existing.value} already; it can't become {type_.value}"
        )
    known = declared_choices(connection).get(key, ())
    if more := [choice for choice in offered if choice not in known]:
        changing = update(attribute_types).where(attribute_types.c.key == key)
        connection.execute(changing.values(choices=[*known, *more]))
    return False


def index(engine: Engine, key: str, *, actor: str) -> bool:
    """Give an attribute a generated column with an index (``database.generated``). Returns whether it had none.

    Killed in the middle, call it again. On SQLite nobody else writes meanwhile.

    Raises:
        AttributeKeyError: it isn't declared, or can't be indexed.
        IndexingError: contacts are in use by a long transaction.
    """
    with read(engine) as connection:
        type_ = require_declared(declared(connection), key)
    if not generated.can_be_indexed(key, type_):
        raise AttributeKeyError(
            f"attribute {key!r}, a {type_.value}, can't be indexed: its key must have at most {generated.MAX_KEY} "
            "characters, and a text-list has no single value"
        )
    with _altering(engine) as connection:
        generated.add(connection, key, type_)
        return _mark(connection, key, indexed=True, actor=actor)


def unindex(engine: Engine, key: str, *, actor: str) -> bool:
    """Take column and index away again; criteria that ask for it read each contact's JSON. Returns whether it had some.

    A range that is being read fails when its column goes, and is read again without it.

    Raises:
        AttributeKeyError, IndexingError: as ``index``.
    """
    with read(engine) as connection:
        require_declared(declared(connection), key)
    with write(engine) as connection:  # from here on nobody asks for the column
        changed = _mark(connection, key, indexed=False, actor=actor)
    with _altering(engine) as connection:
        generated.drop(connection, key)
    return changed


def restore_indexes(engine: Engine) -> None:
    """Make the columns that are declared and missing: after a restore, whose rows come without them."""
    for key, type_ in indexed(engine).items():
        with _altering(engine) as connection:
            generated.add(connection, key, type_)


def indexed(engine: Engine) -> dict[str, AttributeType]:
    """The attributes that are indexed, by key."""
    query = select(attribute_types.c.key, attribute_types.c.type).where(attribute_types.c.indexed == 1)
    with read(engine) as connection:
        return {row.key: AttributeType(row.type) for row in connection.execute(query.order_by(attribute_types.c.key))}


@contextmanager
def _altering(engine: Engine) -> Iterator[Connection]:
    try:
        with write(engine) as connection:
            yield connection
    except OperationalError as error:
        if error.orig is not None and error.orig.args[0] == _LOCK_WAIT_TIMEOUT:
            raise IndexingError(
                "contacts are read or written by a long transaction (a snapshot, an import, a backup); nothing was "
                "changed: try again when it is over"
            ) from None
        raise


def _mark(connection: Connection, key: str, *, indexed: bool, actor: str) -> bool:
    other = update(attribute_types).where(attribute_types.c.key == key, attribute_types.c.indexed == int(not indexed))
    changed = connection.execute(other.values(indexed=int(indexed))).rowcount == 1
    if changed:
        audit.record(connection, actor, f"attributes.{'index' if indexed else 'unindex'}", f"attribute:{key}")
    return changed


def _clean_choices(key: str, type_: AttributeType, choices: Sequence[str]) -> tuple[str, ...]:
    if type_ is not AttributeType.ENUM:
        if choices:
            raise AttributeKeyError(f"{key!r} is a {type_.value}: only an enum has choices")
        return ()
    try:
        cleaned = tuple(dict.fromkeys(clean_text(choice, MAX_ITEM) for choice in choices))
    except ValueProblemError as error:
        raise AttributeKeyError(f"a choice of {key!r} can't be used: {error}") from None
    if not 1 <= len(cleaned) <= MAX_CHOICES or "" in cleaned:
        raise AttributeKeyError(f"the enum {key!r} needs 1 to {MAX_CHOICES} choices, none of them empty")
    return cleaned


def declared(connection: Connection) -> dict[str, AttributeType]:
    """Every declared attribute and its type, by key."""
    query = select(attribute_types.c.key, attribute_types.c.type).order_by(attribute_types.c.key)
    return {row.key: AttributeType(row.type) for row in connection.execute(query)}


def declared_choices(connection: Connection) -> dict[str, tuple[str, ...]]:
    """The choices of every enum, by key."""
    query = select(attribute_types.c.key, attribute_types.c.choices).where(
        attribute_types.c.type == AttributeType.ENUM.value
    )
    return {row.key: tuple(row.choices or ()) for row in connection.execute(query)}


def require_declared(types: dict[str, AttributeType], key: str) -> AttributeType:
    """The type of ``key``.

    Raises:
        AttributeKeyError: it isn't declared; the sentence offers near matches.
    """
    if key in types:
        return types[key]
    near = get_close_matches(key, types, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"declare it with: mailfleet attributes declare {key} TYPE"
    raise AttributeKeyError(f"there is no attribute {key!r}; {hint}")


@lru_cache(maxsize=65_536)  # cities, tiers and first names repeat
def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """Text in NFC on one line: white space, line breaks included, becomes single spaces.

    Raises:
        ValueProblemError: too long, or with control characters.
    """
    cleaned = " ".join(unicodedata.normalize("NFC", text).split())
    if not text.isprintable() and _CONTROL.search(cleaned):
        raise ValueProblemError("there is a control character in it")
    if len(cleaned) > limit:
        raise ValueProblemError(f"it is longer than {limit} characters")
    return cleaned


def parse_number(text: str) -> float | int:
    """Digits with a decimal point; no thousands separators, because 1.234 and 1,234 mean different things elsewhere."""
    text = text.strip()
    if _NUMBER.fullmatch(text) is None:
        raise ValueProblemError("it is not a number like 1234.5 (a decimal point, no thousands separator)")
    number: float | int = float(text) if "." in text else int(text)
    if not math.isfinite(number):
        raise ValueProblemError("it is not a finite number")
    return number


@lru_cache(maxsize=1024)
def parse_boolean(text: str) -> bool:
    word = text.strip().casefold()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueProblemError("it is neither yes nor no")


@lru_cache(maxsize=16_384)
def parse_date(text: str) -> str:
    """An ISO 8601 calendar date; 31.12.2024 is read too, 12/31/2024 is not, because 01/02 is two different days."""
    text = text.strip()
    german = _GERMAN_DATE.fullmatch(text)
    if german is not None:
        text = f"{german[3]}-{int(german[2]):02}-{int(german[1]):02}"
    elif _ISO_DATE.fullmatch(text) is None:
        raise ValueProblemError("it is not a date like 2024-12-31")
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueProblemError("there is no such day in the calendar") from None


def parse_items(text: str, separator: str = ITEM_SEPARATOR) -> list[str]:
    """Texts between bars, ``hiking | climbing``: without empty ones, each once, in their order."""
    items = list(dict.fromkeys(item for part in text.split(separator) if (item := clean_text(part, MAX_ITEM))))
    if len(items) > MAX_ITEMS:
        raise ValueProblemError(f"it has more than {MAX_ITEMS} items")
    return items


def enum_parser(choices: Sequence[str]) -> Callable[[str], Value]:
    """What reads one of ``choices``, spelled exactly."""
    allowed = frozenset(choices)

    def parse(text: str) -> Value:
        value = clean_text(text)
        if value not in allowed:
            raise ValueProblemError(f"it is none of the choices {', '.join(choices[:10])}")
        return value

    return parse


_PARSERS: dict[AttributeType, Callable[[str], Value]] = {
    AttributeType.TEXT: clean_text,
    AttributeType.NUMBER: parse_number,
    AttributeType.BOOLEAN: parse_boolean,
    AttributeType.DATE: parse_date,
    AttributeType.TEXT_LIST: parse_items,
}


def parser_of(type_: AttributeType, choices: Sequence[str] = ()) -> Callable[[str], Value]:
    """What reads a non-empty text as this type, or raises ``ValueProblemError``; dates become ISO 8601 text."""
    return enum_parser(choices) if type_ is AttributeType.ENUM else _PARSERS[type_]
