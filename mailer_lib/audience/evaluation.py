"""A rule tree judged for one contact, rule by rule: which held, which didn't, and what the contact has.

All rules are asked in one SELECT on that contact's row, each by the very condition that picks people
(``criteria.where``); groups and ``not`` are then worked out here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, literal, select

from mailer_lib.audience.behaviour_sets import StoredPeople, staged
from mailer_lib.audience.catalogue import Catalogue, FieldKind
from mailer_lib.audience.criteria import where
from mailer_lib.audience.expressions import field_expression
from mailer_lib.audience.plan import IdRange
from mailer_lib.audience.rules import Group, Rule, behaviours, parse
from mailer_lib.database.schema import contacts
from mailer_lib.settings import Settings

MAX_SHOWN = 80


@dataclass(frozen=True)
class Judged:
    """One rule or group. ``value``: what the contact has, for a rule about a value; "missing" when it has none."""

    label: str
    holds: bool
    value: str | None = None
    members: tuple["Judged", ...] = ()


def judge(
    connection: Connection,
    tree: Any,
    known: Catalogue,
    *,
    contact_id: int,
    now: datetime,
    thresholds: Mapping[str, str],
    settings: Settings,
) -> Judged | None:
    """The answer for a contact as it is in the database; None when there is no such contact (any more).

    Args:
        known: ``criteria`` of it are the trees that ``tree`` leads to.
        now: what relative dates are relative to.
        thresholds: of the tree's samples.
        settings: say where behaviour lies, which is asked as it is known by now.

    Raises:
        CriteriaError: the tree can't be used with this catalogue.
    """
    group = parse(tree, known, now=now)
    questions = _Questions(known, thresholds)
    root = questions.group(tree, group)
    columns = [column.label(f"q{place}") for place, column in enumerate(questions.columns)]
    did = StoredPeople(settings, IdRange(index=0, first=contact_id, last=contact_id))
    with staged(connection, behaviours(group), did):
        row = connection.execute(select(*columns).where(contacts.c.id == contact_id)).one_or_none()
    return None if row is None else _answer(root, row)


@dataclass(frozen=True)
class _Node:
    """``asked`` is the place of the condition among the columns, ``value_at`` that of the contact's value."""

    label: str
    asked: int | None = None
    value_at: int | None = None
    kind: FieldKind | None = None
    group: Group | None = None
    members: tuple["_Node", ...] = ()
    sample: "_Node | None" = None


class _Questions:
    """Walks the JSON beside what was parsed of it: the labels are in the words that the operator wrote."""

    def __init__(self, known: Catalogue, thresholds: Mapping[str, str]) -> None:
        self.columns: list[ColumnElement[Any]] = [literal(1)]  # a tree without rules asks nothing
        self._known = known
        self._thresholds = thresholds
        self._values: dict[str, int] = {}

    def group(self, raw: Mapping[str, Any], group: Group, label: str = "") -> _Node:
        members = [self._member(r, m) for r, m in zip(raw["rules"], group.members, strict=True)]
        sample = None
        if group.sample is not None:
            picked = where(Group(conjunction=True, negated=False, members=(), sample=group.sample), self._thresholds)
            sample = _Node(f"sample {_shown(raw['sample'])}", self._ask(picked))
        words = _WORDS[group.conjunction, group.negated]
        return _Node(f"{label}: {words}" if label else words, group=group, members=tuple(members), sample=sample)

    def _member(self, raw: Mapping[str, Any], member: Rule | Group) -> _Node:
        if isinstance(member, Rule):
            return self._rule(raw, member)
        if "field" not in raw:
            return self.group(raw, member)
        name = raw["value"]  # other criteria: a group that holds their tree
        (inner,) = member.members
        assert isinstance(inner, Group)
        tree = self.group(self._known.criteria[name], inner, f'criteria "{name}"')
        return _Node(f"criteria {raw['operator']} {_shown(name)}", group=member, members=(tree,))

    def _rule(self, raw: Mapping[str, Any], rule: Rule) -> _Node:
        asked = self._ask(where(Group(conjunction=True, negated=False, members=(rule,)), self._thresholds))
        value_at = None
        if rule.field.column is not None or rule.field.attribute is not None:
            if rule.field.name not in self._values:
                self._values[rule.field.name] = len(self.columns)
                self.columns.append(field_expression(rule.field))
            value_at = self._values[rule.field.name]
        operand = f" {_shown(raw['value'])}" if rule.values and raw.get("value") is not None else ""
        return _Node(f"{rule.field.name} {rule.operator}{operand}", asked, value_at, rule.field.kind)

    def _ask(self, condition: ColumnElement[bool]) -> int:
        """A comparison with a missing value is NULL, and doesn't hold."""
        self.columns.append(case((condition, 1), else_=0))
        return len(self.columns) - 1


_WORDS = {
    (True, False): "all of",
    (False, False): "any of",
    (True, True): "not all of",
    (False, True): "none of",
}


def _answer(node: _Node, row: Sequence[Any]) -> Judged:
    if node.group is None:
        assert node.asked is not None
        value = None if node.value_at is None else _value(row[node.value_at], node.kind)
        return Judged(node.label, bool(row[node.asked]), value)
    members = [_answer(member, row) for member in node.members]
    held = [member.holds for member in members]
    holds = (all(held) if node.group.conjunction else any(held)) != node.group.negated
    if node.sample is not None:
        members.append(_answer(node.sample, row))
        holds = holds and members[-1].holds
    return Judged(node.label, holds, members=tuple(members))


def _value(value: Any, kind: FieldKind | None) -> str:
    if value is None:
        return "missing"
    if kind == FieldKind.BOOLEAN:
        return "true" if value else "false"
    if kind == FieldKind.TEXT_LIST:
        return _cut(", ".join(json.loads(value)))
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, float):
        return f"{value:.15g}"
    return _cut(str(value))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return _cut(", ".join(_shown(one) for one in value))
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
