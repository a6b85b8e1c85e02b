"""A rule tree as react-querybuilder writes it, checked against the catalogue and turned into typed, frozen data.

    {"combinator": "and", "not": false, "rules": [
        {"field": "attribute.tier", "operator": "in", "value": ["gold", "silver"]},
        {"combinator": "or", "rules": [...]}]}

Values: text, number, true/false, ISO 8601 day or moment, name of a list. ``in``, ``notIn`` and ``between`` take an
array or react-querybuilder's comma-separated text; numbers may come as text, as its number inputs write them. ``null``
and ``notNull`` take none. Text is compared exactly, capitals included; white space in it becomes single spaces, as in
what is stored.

What a missing value means: it matches ``null`` and nothing else, ``!=`` and ``notIn`` included; ``not`` is the exact
complement. So ``tier != gold`` leaves out who has no tier, and ``not (tier = gold)`` takes them in. Membership of a
list is never missing: ``list != x`` is everybody without a subscription to x.

Everybody is ``{"combinator": "and", "rules": []}``; an empty group anywhere else is an error, because some tools read
it as "everybody" and some as "nobody".
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeAlias

from mailer_lib.audience.catalogue import Catalogue, Field, FieldKind, Operator

VERSION = 1
MAX_DEPTH = 16  # groups within groups
MAX_RULES = 500  # in the whole tree: SQLite's expressions nest at most 1,000 deep
MAX_VALUES = 500  # of one in / notIn
MAX_ALL_VALUES = 20_000  # bound values of the tree; SQLite takes 32,766
MAX_TEXT = 1_000

_GROUP_KEYS = {"id", "combinator", "rules", "not", "path", "disabled"}
_RULE_KEYS = {"id", "field", "operator", "value", "valueSource", "path", "disabled"}


@dataclass(frozen=True)
class Problem:
    path: str  # JSON path, "$" is the root
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class CriteriaError(ValueError):
    """A tree that can't be used: every problem with its JSON path."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Span:
    """A moment, or a whole day: ``start <= t < end``, UTC."""

    start: datetime
    end: datetime


Value: TypeAlias = str | float | bool | Span | int


@dataclass(frozen=True)
class Rule:
    """``values``: none for null/notNull, two for between, one or more for in/notIn, else one. Lists are their ids."""

    field: Field
    operator: Operator
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Group:
    conjunction: bool  # and / or
    negated: bool
    members: tuple["Rule | Group", ...]


def parse(tree: Any, catalogue: Catalogue) -> Group:
    """Check ``tree`` (what ``json.loads`` gives).

    Raises:
        CriteriaError: all that is wrong with it.
    """
    reader = _Reader(catalogue)
    group = reader.group(tree, "$", 1)
    if reader.problems or group is None:
        raise CriteriaError(reader.problems)
    return group


class _Reader:
    """Walks the tree once and keeps going after a problem, so that an operator sees them all."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.fields = catalogue.fields
        self.problems: list[Problem] = []
        self.rules = 0
        self.values = 0

    def fail(self, path: str, text: str) -> None:
        self.problems.append(Problem(path, text))

    def group(self, node: Any, path: str, depth: int) -> Group | None:
        if not isinstance(node, Mapping):
            self.fail(path, f"must be a group with combinator and rules, not {_kind(node)}")
            return None
        if depth > MAX_DEPTH:
            self.fail(path, f"groups are nested more than {MAX_DEPTH} deep; flatten them")
            return None
        known = _GROUP_KEYS | {"version"} if depth == 1 else _GROUP_KEYS
        self._unknown_keys(node, path, known)
        if depth == 1 and node.get("version", VERSION) != VERSION:
            self.fail("$.version", f"this release reads version {VERSION}, not {_show(node['version'])}")
        combinator, negated, members = node.get("combinator"), node.get("not", False), node.get("rules")
        if not isinstance(combinator, str) or combinator not in {"and", "or"}:
            self.fail(f"{path}.combinator", f'must be "and" or "or", not {_show(combinator)}')
        if not isinstance(negated, bool):
            self.fail(f"{path}.not", f"must be true or false, not {_kind(negated)}")
        if not isinstance(members, Sequence) or isinstance(members, str):
            self.fail(f"{path}.rules", f"must be an array of rules and groups, not {_kind(members)}")
            return None
        if not members and not (depth == 1 and combinator == "and" and negated is False):
            self.fail(f"{path}.rules", "is empty; remove the group or give it a rule")
        found: list[Rule | Group] = []
        for number, member in enumerate(members):
            here = f"{path}.rules[{number}]"
            nested = isinstance(member, Mapping) and ("rules" in member or "combinator" in member)
            made = self.group(member, here, depth + 1) if nested else self.rule(member, here)
            if made is not None:
                found.append(made)
            if self.rules > MAX_RULES or self.values > MAX_ALL_VALUES:
                if not any(p.path == "$" for p in self.problems):
                    self.fail("$", f"the tree has more than {MAX_RULES} rules or {MAX_ALL_VALUES} values")
                return None
        return Group(combinator == "and", bool(negated), tuple(found))

    def rule(self, node: Any, path: str) -> Rule | None:
        self.rules += 1
        if not isinstance(node, Mapping):
            self.fail(path, f"must be a rule with field and operator, or a group, not {_kind(node)}")
            return None
        self._unknown_keys(node, path, _RULE_KEYS)
        if node.get("valueSource", "value") != "value":
            self.fail(f"{path}.valueSource", "a field can be compared with a value only, not with another field")
            return None
        name, symbol = node.get("field"), node.get("operator")
        field = self.fields.get(name) if isinstance(name, str) else None
        if field is None:
            hint = self.catalogue.suggestion(name) if isinstance(name, str) else ""
            self.fail(f"{path}.field", f"there is no field {_show(name)}{hint}")
            return None
        try:
            operator = Operator(str(symbol))
        except ValueError:
            self.fail(f"{path}.operator", f"there is no operator {_show(symbol)}; {_offer(field)}")
            return None
        if operator not in field.operators:
            self.fail(f"{path}.operator", f'"{operator}" doesn\'t suit {field.name}, a {field.kind}; {_offer(field)}')
            return None
        before = len(self.problems)
        values = self._operands(field, operator, node.get("value"), f"{path}.value")
        return Rule(field, operator, values) if len(self.problems) == before else None

    def _operands(self, field: Field, operator: Operator, raw: Any, path: str) -> tuple[Value, ...]:
        if operator in {Operator.NULL, Operator.NOT_NULL}:
            return ()
        if operator not in {Operator.IN, Operator.NOT_IN, Operator.BETWEEN}:
            self.values += 1
            value = self._value(field, operator, raw, path)
            return () if value is None else (value,)
        items = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(items, Sequence):
            self.fail(path, f'"{operator}" takes an array, not {_kind(raw)}')
            return ()
        if operator == Operator.BETWEEN and len(items) != 2:
            self.fail(path, f'"between" takes two values, not {len(items)}')
            return ()
        if not 1 <= len(items) <= MAX_VALUES:
            self.fail(path, f'"{operator}" takes 1 to {MAX_VALUES} values, not {len(items)}')
            return ()
        self.values += len(items)
        named = isinstance(raw, str)
        made = [self._value(field, operator, v, path if named else f"{path}[{n}]") for n, v in enumerate(items)]
        return tuple(value for value in made if value is not None)

    def _value(self, field: Field, operator: Operator, raw: Any, path: str) -> Value | None:
        match field.kind:
            case FieldKind.TEXT:
                return self._text(operator, raw, path)
            case FieldKind.NUMBER:
                return self._number(raw, path)
            case FieldKind.BOOLEAN:
                if not isinstance(raw, bool):
                    self.fail(path, f"must be true or false, not {_kind(raw)}")
                    return None
                return raw
            case FieldKind.DATE:
                day = _day(raw)
                if day is None:
                    self.fail(path, f"must be a day like 2026-11-24, not {_show(raw)}")
                    return None
                return day.isoformat()
            case FieldKind.INSTANT:
                return self._span(raw, path)
            case FieldKind.LIST:
                return self._list(raw, path)

    def _text(self, operator: Operator, raw: Any, path: str) -> str | None:
        if not isinstance(raw, str):
            self.fail(path, f"must be a text, not {_kind(raw)}")
            return None
        if len(raw) > MAX_TEXT or any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in raw):
            self.fail(path, f"must have at most {MAX_TEXT} characters, none of them a control character")
            return None
        piece = operator in {Operator.CONTAINS, Operator.BEGINS_WITH, Operator.ENDS_WITH}
        if piece and not raw:
            self.fail(path, f'"{operator}" takes at least one character')
            return None
        text = unicodedata.normalize("NFC", raw)  # as stored texts are (contacts.attributes.clean_text)
        return text if piece else " ".join(text.split())

    def _number(self, raw: Any, path: str) -> float | None:
        number: float | None = None
        if isinstance(raw, int | float | str) and not isinstance(raw, bool):
            try:
                number = float(raw)
            except (ValueError, OverflowError):
                number = None
        if number is None or not math.isfinite(number):
            self.fail(path, f"must be a number, not {_show(raw)}")
            return None
        return number

    def _span(self, raw: Any, path: str) -> Span | None:
        day = _day(raw)
        if day is not None:
            start = datetime.combine(day, time(), UTC)
            return Span(start, datetime.max.replace(tzinfo=UTC) if day == date.max else start + timedelta(days=1))
        moment: datetime | None = None
        if isinstance(raw, str):
            try:
                moment = datetime.fromisoformat(raw)
                moment = moment.astimezone(UTC) if moment.tzinfo is not None else None
                if moment is not None:
                    return Span(moment, moment + timedelta(microseconds=1))
            except (ValueError, OverflowError):
                pass
        example = "2026-11-24T08:00:00+01:00"
        self.fail(path, f"must be a day, or a moment with its time zone like {example}, not {_show(raw)}")
        return None

    def _list(self, raw: Any, path: str) -> int | None:
        if not isinstance(raw, str) or raw not in self.catalogue.lists:
            hint = self.catalogue.suggestion(raw, "lists") if isinstance(raw, str) else ""
            self.fail(path, f"there is no list {_show(raw)}{hint}")
            return None
        return self.catalogue.lists[raw]

    def _unknown_keys(self, node: Mapping[Any, Any], path: str, known: set[str]) -> None:
        for key in sorted(str(k) for k in node if k not in known):
            self.fail(path, f'has "{key}", which means nothing here; known are {", ".join(sorted(known))}')


def _day(raw: Any) -> date | None:
    if isinstance(raw, str) and len(raw) == 10:
        try:
            return date.fromisoformat(raw)
        except ValueError:
            return None
    return None


def _offer(field: Field) -> str:
    return f"{field.name} takes " + " ".join(o for o in Operator if o in field.operators)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case Mapping():
            return "an object"
        case Sequence():
            return "an array"
    return type(value).__name__


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _kind(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
