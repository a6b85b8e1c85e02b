"""What criteria may name: the fields, the type of each, and the operators that suit it.

Field names come from here and never reach SQL; ``expressions.py`` and ``criteria.py`` turn a ``Field`` into SQL.

    locale timezone domain provider given_name family_name    contact columns, text
    created_at                                                when we first knew the contact, an instant
    attribute.<key>                                           declared attributes, by their type
    list                                                      has a subscription to the list, in whatever state
    list.confirmed                                            has a confirmed one

``list`` takes every state on purpose: who is pending or has left must match, so that the snapshot can say *why* they
were barred (``exclusions.py`` bars them, always).
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sqlalchemy import Connection, select

from mailer_lib.database.schema import attribute_types, lists
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.terms import AttributeType

_ATTRIBUTE_KEY = re.compile(r"[\w][\w.-]{0,63}")


class Operator(StrEnum):
    """react-querybuilder's names."""

    EQ = "="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    CONTAINS = "contains"
    BEGINS_WITH = "beginsWith"
    ENDS_WITH = "endsWith"
    IN = "in"
    NOT_IN = "notIn"
    BETWEEN = "between"
    NULL = "null"
    NOT_NULL = "notNull"


class FieldKind(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"  # a calendar day, ISO 8601
    INSTANT = "instant"  # a moment; a day given for it means that whole day, UTC
    LIST = "list"


_EXISTENCE = frozenset({Operator.NULL, Operator.NOT_NULL})
_SAME = frozenset({Operator.EQ, Operator.NE, Operator.IN, Operator.NOT_IN})
_ORDER = frozenset({Operator.LT, Operator.LE, Operator.GT, Operator.GE, Operator.BETWEEN})
_PIECES = frozenset({Operator.CONTAINS, Operator.BEGINS_WITH, Operator.ENDS_WITH})

SUITED: Mapping[FieldKind, frozenset[Operator]] = {
    FieldKind.TEXT: _SAME | _PIECES | _EXISTENCE,
    FieldKind.NUMBER: _SAME | _ORDER | _EXISTENCE,
    FieldKind.BOOLEAN: frozenset({Operator.EQ, Operator.NE}) | _EXISTENCE,
    FieldKind.DATE: _SAME | _ORDER | _EXISTENCE,
    FieldKind.INSTANT: frozenset({Operator.EQ, Operator.NE}) | _ORDER | _EXISTENCE,
    FieldKind.LIST: _SAME,
}


@dataclass(frozen=True)
class Field:
    """One name that a rule may use. Exactly one of ``column`` and ``attribute`` is set, or neither for a list."""

    name: str
    kind: FieldKind
    column: str | None = None
    attribute: str | None = None
    bytewise: bool = False  # the column compares byte by byte already (schema.Exact), so an index stays usable
    confirmed_only: bool = False  # kind LIST

    @property
    def operators(self) -> frozenset[Operator]:
        return SUITED[self.kind]


CONTACT_FIELDS = (
    Field("locale", FieldKind.TEXT, column="locale", bytewise=True),
    Field("timezone", FieldKind.TEXT, column="timezone", bytewise=True),
    Field("domain", FieldKind.TEXT, column="domain", bytewise=True),
    Field("provider", FieldKind.TEXT, column="provider", bytewise=True),
    Field("given_name", FieldKind.TEXT, column="given_name"),
    Field("family_name", FieldKind.TEXT, column="family_name"),
    Field("created_at", FieldKind.INSTANT, column="created_at"),
    Field("list", FieldKind.LIST),
    Field("list.confirmed", FieldKind.LIST, confirmed_only=True),
)


@dataclass(frozen=True)
class Catalogue:
    """All that a tree can be checked against. ``lists``: id by name."""

    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    lists: Mapping[str, int] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Field]:
        found = {f.name: f for f in CONTACT_FIELDS}
        for key, type_ in sorted(self.attributes.items()):
            made = attribute_field(key, type_)
            found[made.name] = made
        return found

    def suggestion(self, name: str, among: str = "fields") -> str:
        """``; did you mean "…"?`` when something declared is spelled alike, else an empty text."""
        near = difflib.get_close_matches(name, self.fields if among == "fields" else self.lists, n=1)
        return f'; did you mean "{near[0]}"?' if near else ""


def attribute_field(key: str, type_: AttributeType) -> Field:
    """Raises:
    ValueError: the key can't stand in a JSON path.
    """
    if not _ATTRIBUTE_KEY.fullmatch(key):
        raise ValueError(f'the attribute "{key}" can\'t be used: a key is letters, digits, "_", "-" and "."')
    return Field(f"{ATTRIBUTE_PREFIX}{key}", FieldKind(type_.value), attribute=key)


def load(connection: Connection) -> Catalogue:
    """The catalogue of this moment."""
    types = connection.execute(select(attribute_types.c.key, attribute_types.c.type)).all()
    named = connection.execute(select(lists.c.name, lists.c.id)).all()
    return Catalogue({key: AttributeType(type_) for key, type_ in types}, {name: int(id_) for name, id_ in named})
