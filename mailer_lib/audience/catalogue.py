"""What criteria may name: the fields, the type of each, and the operators that suit it.

Field names come from here and never reach SQL; ``expressions.py`` and ``criteria.py`` turn a ``Field`` into SQL.

    locale timezone domain provider given_name family_name    contact columns, text
    created_at                                                when we first knew the contact, an instant
    attribute.<key>                                           declared attributes, by their type
    list                                                      has a subscription to the list, in whatever state
    list.confirmed                                            has a confirmed one
    subscription.<list>.state .source                         of that subscription: where it stands, where it came from
    subscription.<list>.confirmed_at .unsubscribed_at         its age: when it last became so, an instant
    criteria                                                  matches other stored criteria
    behaviour.sent .opened .clicked .bounced                  did so, how often and when (``behaviour.py``)

``list`` takes every state on purpose: who is pending or has left must match, so that the snapshot can say *why* they
were barred (``exclusions.py`` bars them, always).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select

from mailer_lib.audience.behaviour import BehaviourKind
from mailer_lib.database.schema import attribute_types, campaigns, criteria, lists
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.terms import AttributeType, SubscriptionState

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
    IN_LAST_DAYS = "inLastDays"  # these four are ours: react-querybuilder takes operators of one's own
    BEFORE_LAST_DAYS = "beforeLastDays"
    IN_NEXT_DAYS = "inNextDays"
    ANNIVERSARY = "anniversaryInDays"
    NULL = "null"
    NOT_NULL = "notNull"


class FieldKind(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"  # a calendar day, ISO 8601
    INSTANT = "instant"  # a moment; a day given for it means that whole day, in the tree's time zone
    ENUM = "enum"  # one of the declared choices
    TEXT_LIST = "text-list"
    LIST = "list"
    CRITERIA = "criteria"  # other criteria, by name
    BEHAVIOUR = "behaviour"


_EXISTENCE = frozenset({Operator.NULL, Operator.NOT_NULL})
_SAME = frozenset({Operator.EQ, Operator.NE, Operator.IN, Operator.NOT_IN})
_ORDER = frozenset({Operator.LT, Operator.LE, Operator.GT, Operator.GE, Operator.BETWEEN})
_RELATIVE = frozenset({Operator.IN_LAST_DAYS, Operator.BEFORE_LAST_DAYS, Operator.IN_NEXT_DAYS})
_PIECES = frozenset({Operator.CONTAINS, Operator.BEGINS_WITH, Operator.ENDS_WITH})

SUITED: Mapping[FieldKind, frozenset[Operator]] = {
    FieldKind.TEXT: _SAME | _PIECES | _EXISTENCE,
    FieldKind.NUMBER: _SAME | _ORDER | _EXISTENCE,
    FieldKind.BOOLEAN: frozenset({Operator.EQ, Operator.NE}) | _EXISTENCE,
    FieldKind.DATE: _SAME | _ORDER | _RELATIVE | {Operator.ANNIVERSARY} | _EXISTENCE,
    FieldKind.INSTANT: frozenset({Operator.EQ, Operator.NE}) | _ORDER | _RELATIVE | _EXISTENCE,
    FieldKind.ENUM: _SAME | _EXISTENCE,
    FieldKind.TEXT_LIST: frozenset({Operator.CONTAINS, Operator.IN, Operator.NOT_IN}) | _EXISTENCE,
    FieldKind.LIST: _SAME,
    FieldKind.CRITERIA: frozenset({Operator.EQ, Operator.NE}),
    FieldKind.BEHAVIOUR: frozenset({Operator.EQ, Operator.LT, Operator.LE, Operator.GT, Operator.GE}) | _EXISTENCE,
}


@dataclass(frozen=True)
class Field:
    """One name that a rule may use. ``column`` is one of ``contacts``, or of ``subscriptions`` when ``list_id`` is set;
    ``attribute`` is a key. Neither is set for lists, criteria and behaviour.
    """

    name: str
    kind: FieldKind
    column: str | None = None
    attribute: str | None = None
    bytewise: bool = False  # the column compares byte by byte already (schema.Exact), so an index stays usable
    confirmed_only: bool = False  # kind LIST
    list_id: int | None = None
    choices: tuple[str, ...] = ()  # kind ENUM
    behaviour: BehaviourKind | None = None
    indexed: bool = False  # an attribute with a generated column (database.generated)

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
    Field("criteria", FieldKind.CRITERIA),
    *(Field(f"behaviour.{kind}", FieldKind.BEHAVIOUR, behaviour=kind) for kind in BehaviourKind),
)


@dataclass(frozen=True)
class Catalogue:
    """All that a tree can be checked against. ``lists``: id by name; ``criteria``: stored tree by name;
    ``campaigns``: their names.
    """

    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    lists: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of attributes that are enums
    criteria: Mapping[str, Any] = field(default_factory=dict)
    campaigns: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()  # keys of attributes

    @property
    def fields(self) -> dict[str, Field]:
        found = {f.name: f for f in CONTACT_FIELDS}
        for key, type_ in sorted(self.attributes.items()):
            made = attribute_field(key, type_, self.choices.get(key, ()), indexed=key in self.indexed)
            found[made.name] = made
        for name, list_id in sorted(self.lists.items()):
            found.update({f.name: f for f in subscription_fields(name, list_id)})
        return found


def suggestion(name: Any, known: Iterable[str]) -> str:
    """``; did you mean "…"?`` when something known is spelled alike, else an empty text."""
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f'; did you mean "{near[0]}"?' if near else ""


def subscription_fields(name: str, list_id: int) -> tuple[Field, ...]:
    """What can be asked of a contact's subscription to one list; missing without a subscription."""
    states = tuple(SubscriptionState)
    return (
        Field(f"subscription.{name}.state", FieldKind.ENUM, "state", bytewise=True, list_id=list_id, choices=states),
        Field(f"subscription.{name}.source", FieldKind.TEXT, "source", list_id=list_id),
        Field(f"subscription.{name}.confirmed_at", FieldKind.INSTANT, "confirmed_at", list_id=list_id),
        Field(f"subscription.{name}.unsubscribed_at", FieldKind.INSTANT, "unsubscribed_at", list_id=list_id),
    )


def attribute_field(key: str, type_: AttributeType, choices: tuple[str, ...] = (), *, indexed: bool = False) -> Field:
    """Raises:
    ValueError: the key can't stand in a JSON path.
    """
    if not _ATTRIBUTE_KEY.fullmatch(key):
        raise ValueError(f'the attribute "{key}" can\'t be used: a key is letters, digits, "_", "-" and "."')
    return Field(f"{ATTRIBUTE_PREFIX}{key}", FieldKind(type_.value), attribute=key, choices=choices, indexed=indexed)


def load(connection: Connection) -> Catalogue:
    """The catalogue of this moment."""
    known = attribute_types.c
    types = connection.execute(select(known.key, known.type, known.choices, known.indexed)).all()
    named = connection.execute(select(lists.c.name, lists.c.id)).all()
    stored = connection.execute(select(criteria.c.name, criteria.c.rules)).all()
    return Catalogue(
        attributes={key: AttributeType(type_) for key, type_, _, _ in types},
        lists={name: int(id_) for name, id_ in named},
        choices={key: tuple(choices) for key, _, choices, _ in types if choices},
        criteria=dict(map(tuple, stored)),
        campaigns=frozenset(connection.scalars(select(campaigns.c.name))),
        indexed=frozenset(key for key, _, _, indexed in types if indexed),
    )
