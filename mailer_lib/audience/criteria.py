"""Sample criteria: a rule tree as a SQLAlchemy ``WHERE`` over ``contacts``, and trees stored by name.

Fields are resolved by the catalogue, values are bound; nothing that a user writes becomes SQL text. Pieces of a text
are found with ``instr`` and ``substr``, which mean the same on both databases and know no wildcards to escape (SQLite's
LIKE ignores the case of ASCII letters, MariaDB's follows the collation).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    column,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    table,
    true,
    update,
)

from mailer_lib.audience.behaviour import Occurrence
from mailer_lib.audience.catalogue import Catalogue, FieldKind, Operator
from mailer_lib.audience.expressions import field_expression, has_item, sample_point
from mailer_lib.audience.operands import Span
from mailer_lib.audience.rules import CriteriaError, Group, Problem, Rule, parse
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import contacts, criteria, subscriptions
from mailer_lib.terms import SubscriptionState


class UnknownCriteriaError(ValueError):
    """No criteria of that name are stored."""


def where(group: Group, thresholds: Mapping[str, str]) -> ColumnElement[bool]:
    """The condition that a tree (``rules.parse``) sets on a row of ``contacts``.

    Args:
        thresholds: of its samples, as ``sampling.thresholds`` finds them; empty when it has none.
    """
    return _group(group, thresholds, negated=False)


def _group(group: Group, thresholds: Mapping[str, str], *, negated: bool) -> ColumnElement[bool]:
    inside = negated or group.negated
    members = [
        _group(m, thresholds, negated=inside) if isinstance(m, Group) else _rule(m, negated=inside)
        for m in group.members
    ]
    condition = (and_(*members) if group.conjunction else or_(*members)) if members else true()
    if group.negated:
        condition = not_(condition.self_group())
    if group.sample is None:
        return condition
    point = sample_point(group.sample.seed, contacts.c.address_hash)
    return and_(condition.self_group(), point <= thresholds[group.sample.criteria])


def _rule(rule: Rule, *, negated: bool) -> ColumnElement[bool]:
    """One comparison. Below a ``not`` it must never be NULL, or NOT would drop whom it has to take in."""
    if rule.field.kind == FieldKind.LIST:
        return _membership(rule)
    if rule.field.kind == FieldKind.BEHAVIOUR:
        return _occurrence(rule)
    value = field_expression(rule.field)
    if rule.field.kind == FieldKind.TEXT_LIST and rule.values:
        found = has_item(rule.field, rule.values)
        return and_(value.is_not(None), not_(found)) if rule.operator == Operator.NOT_IN else found
    if rule.operator == Operator.NULL:
        return value.is_(None)
    if rule.operator == Operator.NOT_NULL:
        return value.is_not(None)
    spans = rule.field.kind == FieldKind.INSTANT
    comparison = _within(value, rule) if spans else _compare(value, rule.operator, rule.values)
    return and_(value.is_not(None), comparison) if negated else comparison


def _compare(value: ColumnElement[Any], operator: Operator, operands: Sequence[Any]) -> ColumnElement[bool]:
    first = int(operands[0]) if isinstance(operands[0], bool) else operands[0]
    match operator:
        case Operator.EQ:
            return value == first
        case Operator.NE:
            return value != first
        case Operator.LT | Operator.BEFORE_LAST_DAYS:
            return value < first
        case Operator.LE:
            return value <= first
        case Operator.GT:
            return value > first
        case Operator.GE:
            return value >= first
        case Operator.IN:
            return value.in_(operands)
        case Operator.NOT_IN:
            return value.not_in(operands)
        case Operator.BETWEEN | Operator.IN_LAST_DAYS | Operator.IN_NEXT_DAYS:
            return value.between(first, operands[1])
        case Operator.ANNIVERSARY:
            day, last = func.substr(value, 6, 5), operands[1]
            return day.between(first, last) if str(first) <= str(last) else or_(day >= first, day <= last)
        case Operator.CONTAINS:
            return func.instr(value, first) > 0
        case Operator.BEGINS_WITH:
            return func.substr(value, 1, len(str(first))) == first
        case Operator.ENDS_WITH:
            return func.substr(value, -len(str(first))) == first
        case _:
            raise AssertionError(operator)


def _within(value: ColumnElement[Any], rule: Rule) -> ColumnElement[bool]:
    first, last = (cast(Span, rule.values[n]) for n in (0, -1))
    match rule.operator:
        case Operator.EQ | Operator.BETWEEN | Operator.IN_LAST_DAYS | Operator.IN_NEXT_DAYS:
            return and_(value >= first.start, value < last.end)
        case Operator.NE:
            return or_(value < first.start, value >= first.end)
        case Operator.LT | Operator.BEFORE_LAST_DAYS:
            return value < first.start
        case Operator.LE:
            return value < first.end
        case Operator.GT:
            return value >= first.end
        case Operator.GE:
            return value >= first.start
        case _:
            raise AssertionError(rule.operator)


def _membership(rule: Rule) -> ColumnElement[bool]:
    subscribed = select(subscriptions.c.list_id).where(
        subscriptions.c.contact_id == contacts.c.id, subscriptions.c.list_id.in_(rule.values)
    )
    if rule.field.confirmed_only:
        subscribed = subscribed.where(subscriptions.c.state == SubscriptionState.CONFIRMED)
    found = exists(subscribed.correlate(contacts))
    return not_(found) if rule.operator in {Operator.NE, Operator.NOT_IN} else found


def _occurrence(rule: Rule) -> ColumnElement[bool]:
    """``behaviour_sets.staged`` has put the people into a temporary table."""
    (asked,) = rule.values
    assert isinstance(asked, Occurrence)
    people = table(asked.people.table, column("contact_id", BigInteger()))
    found = exists(select(people.c.contact_id).where(people.c.contact_id == contacts.c.id).correlate(contacts))
    return not_(found) if asked.absent else found


# --- the same tree, stored by name ------------------------------------------------------------------------------------


def read_tree(text: str | bytes) -> Any:
    """A tree from JSON text.

    Raises:
        CriteriaError: it is no JSON; the place is in the message.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise CriteriaError([Problem("$", "is nested far too deeply")]) from None
    except UnicodeDecodeError as error:
        raise CriteriaError([Problem("$", f"isn't UTF-8 at byte {error.start}")]) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise CriteriaError([Problem("$", f"isn't JSON: {error.msg}, {place}")]) from None
    except ValueError as error:
        raise CriteriaError([Problem("$", str(error))]) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def canonical(tree: Any) -> str:
    """The same text for the same tree; what ``rules_sha256`` is taken over."""
    return json.dumps(tree, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def rules_sha256(tree: Any, references: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Of a tree, and of the other criteria that it leads to."""
    meant = {"rules": tree, "references": dict(references)} if references else tree
    return hashlib.sha256(canonical(meant).encode()).hexdigest()


@dataclass(frozen=True)
class StoredCriteria:
    name: str
    rules: Any
    description: str
    updated_at: datetime
    updated_by: str


def save(
    connection: Connection, catalogue: Catalogue, name: str, tree: Any, *, actor: str, description: str | None = None
) -> bool:
    """Store a checked tree under a name, audited. Returns whether the name is new.

    Raises:
        CriteriaError: the tree can't be used; nothing was stored.
        ValueError: the name is empty or too long.
    """
    if not name or name != name.strip() or len(name) > 128 or not name.isprintable():
        raise ValueError(f"{name!r} is no name for criteria: 1 to 128 printable characters, no space around them")
    parse(tree, catalogue, name=name)
    values: dict[str, Any] = {"rules": tree, "updated_at": now(), "updated_by": actor}
    if description is not None:
        values["description"] = description
    new = connection.execute(update(criteria).where(criteria.c.name == name).values(values)).rowcount == 0
    if new:
        connection.execute(insert(criteria).values(name=name, **values))
    record(connection, actor, "criteria.saved", f"criteria:{name}", {"sha256": rules_sha256(tree), "new": new})
    return new


def load(connection: Connection, name: str) -> StoredCriteria:
    """Raises:
    UnknownCriteriaError: there are none of that name; near names are in the message.
    """
    row = connection.execute(select(criteria).where(criteria.c.name == name)).one_or_none()
    if row is None:
        known = connection.execute(select(criteria.c.name).order_by(criteria.c.name)).scalars().all()
        raise UnknownCriteriaError(f'there are no criteria "{name}"; stored are: {", ".join(known) or "none yet"}')
    return StoredCriteria(row.name, row.rules, row.description or "", row.updated_at, row.updated_by)


def stored(connection: Connection) -> list[StoredCriteria]:
    """All of them, by name."""
    rows = connection.execute(select(criteria).order_by(criteria.c.name))
    return [StoredCriteria(r.name, r.rules, r.description or "", r.updated_at, r.updated_by) for r in rows]
