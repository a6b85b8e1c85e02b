"""A rule tree as react-querybuilder writes it, checked against the catalogue and turned into typed, frozen data.

    {"combinator": "and", "not": false, "rules": [
        {"field": "attribute.tier", "operator": "in", "value": ["gold", "silver"]},
        {"combinator": "or", "rules": [...]}]}

Values: text, number, true/false, ISO 8601 day or moment, name of a list, name of other criteria, a number of days.
``in``, ``notIn`` and ``between`` take an array or react-querybuilder's comma-separated text; numbers may come as text,
as its number inputs write them. ``null`` and ``notNull`` take none. Text is compared exactly, capitals included; white
space in it becomes single spaces, as in what is stored.

The root may have, beside react-querybuilder's keys,

    "version": 1, "timezone": "Europe/Berlin",       days and "today" are that zone's; UTC without
    "sample": {"percent": 10, "seed": "spring"}      a random part of those who match: {"count": 1000, …} likewise

A sample is stable: the same seed picks the same people, whoever asks and in however many ranges. ``percent`` takes each
person with that chance; ``count`` takes that many (all, when there are fewer), by one threshold for the whole.

Other criteria (``{"field": "criteria", "operator": "=", "value": "big spenders"}``, ``!=`` for everybody else) come
with their own time zone and sample. All trees together must keep the limits below; none may lead back to itself.

What a missing value means: it matches ``null`` and nothing else, ``!=`` and ``notIn`` included; ``not`` is the exact
complement. So ``tier != gold`` leaves out who has no tier, and ``not (tier = gold)`` takes them in. Membership of a
list is never missing: ``list != x`` is everybody without a subscription to x. In a list of texts, ``contains`` looks
for one item, ``in`` for any of some, ``notIn`` for none of them.

What people did (``behaviour.sent``, ``.opened``, ``.clicked``, ``.bounced``) has an object for its value:
``behaviour_operands.py``.

Everybody is ``{"combinator": "and", "rules": []}``; an empty group anywhere else is an error, because some tools read
it as "everybody" and some as "nobody".
"""

import zoneinfo
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mailer_lib.audience.behaviour import Behaviour, Occurrence
from mailer_lib.audience.behaviour_operands import read_behaviour
from mailer_lib.audience.catalogue import Catalogue, Field, FieldKind, Operator, suggestion
from mailer_lib.audience.operands import RELATIVE, Clock, OperandError, Value, kind_of, read_days, read_operand, show

VERSION = 1
MAX_DEPTH = 16  # groups within groups
MAX_RULES = 500  # in the whole tree: SQLite's expressions nest at most 1,000 deep
MAX_VALUES = 500  # of one in / notIn
MAX_BEHAVIOURS = 20  # different ones in the whole tree: each is a table in the statement, and MariaDB joins 61
MAX_ALL_VALUES = 20_000  # bound values of the tree; SQLite takes 32,766
MAX_SEED = 64
MAX_SAMPLE = 1_000_000_000

_GROUP_KEYS = {"id", "combinator", "rules", "not", "path", "disabled"}
_ROOT_KEYS = _GROUP_KEYS | {"version", "timezone", "sample"}
_RULE_KEYS = {"id", "field", "operator", "value", "valueSource", "path", "disabled"}
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


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
class Rule:
    """``values``: none for null/notNull, two for between, one or more for in/notIn, else one. Lists are their ids;
    relative dates are what they come to today (``operands.read_days``); behaviour is one ``Occurrence``.
    """

    field: Field
    operator: Operator
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Sample:
    """``percent`` or ``count``. ``criteria`` says whose it is: a name, or empty for the tree that was parsed."""

    criteria: str
    seed: str
    percent: Fraction | None = None
    count: int | None = None


@dataclass(frozen=True)
class Group:
    conjunction: bool  # and / or
    negated: bool
    members: tuple["Rule | Group", ...]
    sample: Sample | None = None  # of whom the group picks, ``negated`` included


def parse(tree: Any, catalogue: Catalogue, *, now: datetime | None = None, name: str = "") -> Group:
    """Check ``tree`` (what ``json.loads`` gives).

    Args:
        now: what relative dates are relative to. Without it they are read, but mean nothing: for checking.
        name: under which the tree is, or is to be stored: other criteria may not lead back to it.

    Raises:
        CriteriaError: all that is wrong with it.
    """
    reader = _Reader(catalogue, now or _LONG_AGO)
    group = reader.document(tree, _Place(), (name,) if name else (), 1)
    if reader.problems or group is None:
        raise CriteriaError(reader.problems)
    asked = len(behaviours(group))
    if asked > MAX_BEHAVIOURS:
        raise CriteriaError([Problem("$", f"it asks for {asked} different behaviours; {MAX_BEHAVIOURS} is the most")])
    return group


def rules_of(group: Group) -> Iterator[Rule]:
    """Every rule, those of other criteria too."""
    for member in group.members:
        if isinstance(member, Group):
            yield from rules_of(member)
        else:
            yield member


def behaviours(*groups: Group) -> tuple[Behaviour, ...]:
    """The sets of people that these trees ask for, each once."""
    values = (value for group in groups for rule in rules_of(group) for value in rule.values)
    return tuple(dict.fromkeys(value.people for value in values if isinstance(value, Occurrence)))


def references(tree: Any, catalogue: Catalogue) -> dict[str, Any]:
    """The stored trees that ``tree`` leads to, by name: what has to be kept for it to mean the same for ever."""
    found: dict[str, Any] = {}
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        name = node.get("value") if node.get("field") == "criteria" else None
        if isinstance(name, str) and name in catalogue.criteria and name not in found:
            found[name] = catalogue.criteria[name]
            waiting.append(found[name])
        members = node.get("rules")
        waiting.extend(members if isinstance(members, Sequence) and not isinstance(members, str) else ())
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _Place:
    """Where a node is: its JSON path in the tree that was given, or in other ``criteria``, named by a rule there."""

    path: str = "$"
    criteria: str = ""
    named_at: "_Place | None" = None

    def at(self, step: str) -> "_Place":
        return _Place(self.path + step, self.criteria, self.named_at)

    def problem(self, text: str) -> Problem:
        if self.named_at is None:
            return Problem(self.path, text)
        return self.named_at.problem(f'in criteria "{self.criteria}", {self.path}: {text}')


class _Reader:
    """Walks the trees once and keeps going after a problem, so that an operator sees them all."""

    def __init__(self, catalogue: Catalogue, now: datetime) -> None:
        self.catalogue = catalogue
        self.fields = catalogue.fields
        self.now = now
        self.problems: list[Problem] = []
        self.rules = 0
        self.values = 0
        self.chain: tuple[str, ...] = ()
        self.clock = Clock(now, UTC)

    def fail(self, place: _Place, text: str) -> None:
        self.problems.append(place.problem(text))

    def document(self, node: Any, place: _Place, chain: tuple[str, ...], depth: int) -> Group | None:
        """A whole tree: the one that was given, or stored criteria that it names (the last of ``chain``)."""
        before = self.chain, self.clock
        root = node if isinstance(node, Mapping) else {}
        self.chain, self.clock = chain, Clock(self.now, self._zone(root.get("timezone", "UTC"), place))
        sample = self._sample(root["sample"], place.at(".sample")) if "sample" in root else None
        if root.get("version", VERSION) != VERSION:
            self.fail(place.at(".version"), f"this release reads version {VERSION}, not {show(root['version'])}")
        group = self.group(node, place, depth, root=True)
        self.chain, self.clock = before
        return None if group is None else Group(group.conjunction, group.negated, group.members, sample)

    def group(self, node: Any, place: _Place, depth: int, *, root: bool = False) -> Group | None:
        if not isinstance(node, Mapping):
            self.fail(place, f"must be a group with combinator and rules, not {kind_of(node)}")
            return None
        if depth > MAX_DEPTH:
            self.fail(place, f"groups are nested more than {MAX_DEPTH} deep; flatten them")
            return None
        self._unknown_keys(node, place, _ROOT_KEYS if root else _GROUP_KEYS)
        combinator, negated, members = node.get("combinator"), node.get("not", False), node.get("rules")
        if not isinstance(combinator, str) or combinator not in {"and", "or"}:
            self.fail(place.at(".combinator"), f'must be "and" or "or", not {show(combinator)}')
        if not isinstance(negated, bool):
            self.fail(place.at(".not"), f"must be true or false, not {kind_of(negated)}")
        if not isinstance(members, Sequence) or isinstance(members, str):
            self.fail(place.at(".rules"), f"must be an array of rules and groups, not {kind_of(members)}")
            return None
        if not members and not (root and combinator == "and" and negated is False):
            self.fail(place.at(".rules"), "is empty; remove the group or give it a rule")
        found: list[Rule | Group] = []
        for number, member in enumerate(members):
            here = place.at(f".rules[{number}]")
            nested = isinstance(member, Mapping) and ("rules" in member or "combinator" in member)
            made = self.group(member, here, depth + 1) if nested else self.rule(member, here, depth)
            if made is not None:
                found.append(made)
            if self.rules > MAX_RULES or self.values > MAX_ALL_VALUES:
                if not any(p.path == "$" for p in self.problems):
                    self.problems.append(Problem("$", f"it has more than {MAX_RULES} rules or {MAX_ALL_VALUES} values"))
                return None
        return Group(combinator == "and", bool(negated), tuple(found))

    def rule(self, node: Any, place: _Place, depth: int) -> Rule | Group | None:
        self.rules += 1
        if not isinstance(node, Mapping):
            self.fail(place, f"must be a rule with field and operator, or a group, not {kind_of(node)}")
            return None
        self._unknown_keys(node, place, _RULE_KEYS)
        if node.get("valueSource", "value") != "value":
            self.fail(place.at(".valueSource"), "a field can be compared with a value only, not with another field")
            return None
        name, symbol = node.get("field"), node.get("operator")
        field = self.fields.get(name) if isinstance(name, str) else None
        if field is None:
            self.fail(place.at(".field"), f"there is no field {show(name)}{suggestion(name, self.fields)}")
            return None
        try:
            operator = Operator(str(symbol))
        except ValueError:
            self.fail(place.at(".operator"), f"there is no operator {show(symbol)}; {_offer(field)}")
            return None
        if operator not in field.operators:
            problem = f'"{operator}" doesn\'t suit {field.name}, a {field.kind}; {_offer(field)}'
            self.fail(place.at(".operator"), problem)
            return None
        here = place.at(".value")
        if field.kind == FieldKind.CRITERIA:
            return self._other(operator, node.get("value"), here, depth)
        if field.kind == FieldKind.BEHAVIOUR:
            return self._behaviour(field, operator, node.get("value"), here)
        before = len(self.problems)
        values = self._operands(field, operator, node.get("value"), here)
        return Rule(field, operator, values) if len(self.problems) == before else None

    def _other(self, operator: Operator, name: Any, place: _Place, depth: int) -> Group | None:
        """Other criteria as a group of their own."""
        if isinstance(name, str) and name in self.chain:
            circle = " → ".join([*self.chain[self.chain.index(name) :], name])
            self.fail(place, f"leads back to itself: {circle}")
            return None
        if not isinstance(name, str) or name not in self.catalogue.criteria:
            near = suggestion(name, self.catalogue.criteria)
            self.fail(place, f"there are no criteria {show(name)}{near}")
            return None
        made = self.document(self.catalogue.criteria[name], _Place("$", name, place), (*self.chain, name), depth + 1)
        return None if made is None else Group(True, operator == Operator.NE, (made,))

    def _behaviour(self, field: Field, operator: Operator, raw: Any, place: _Place) -> Rule | None:
        try:
            return Rule(field, operator, (read_behaviour(self.catalogue, self.clock, field, operator, raw),))
        except OperandError as error:
            self.fail(place.at(error.at), str(error))
            return None

    def _operands(self, field: Field, operator: Operator, raw: Any, place: _Place) -> tuple[Value, ...]:
        if operator in {Operator.NULL, Operator.NOT_NULL}:
            return ()
        if operator in RELATIVE:
            self.values += 2
            try:
                return read_days(self.clock, field, operator, raw)
            except OperandError as error:
                self.fail(place, str(error))
                return ()
        if operator not in {Operator.IN, Operator.NOT_IN, Operator.BETWEEN}:
            return self._read(field, operator, [(raw, place)])
        items = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(items, Sequence):
            self.fail(place, f'"{operator}" takes an array, not {kind_of(raw)}')
            return ()
        if operator == Operator.BETWEEN and len(items) != 2:
            self.fail(place, f'"between" takes two values, not {len(items)}')
            return ()
        if not 1 <= len(items) <= MAX_VALUES:
            self.fail(place, f'"{operator}" takes 1 to {MAX_VALUES} values, not {len(items)}')
            return ()
        named = isinstance(raw, str)
        places = [place if named else place.at(f"[{n}]") for n in range(len(items))]
        return self._read(field, operator, zip(items, places, strict=True))

    def _read(self, field: Field, operator: Operator, raws: Iterable[tuple[Any, _Place]]) -> tuple[Value, ...]:
        found: list[Value] = []
        for raw, place in raws:
            self.values += 1
            try:
                found.append(read_operand(self.catalogue, self.clock, field, operator, raw))
            except OperandError as error:
                self.fail(place, str(error))
        return tuple(found)

    def _zone(self, name: Any, place: _Place) -> tzinfo:
        if isinstance(name, str) and name in _timezones():
            return zoneinfo.ZoneInfo(name)
        self.fail(place.at(".timezone"), f"must be a time zone like Europe/Berlin, not {show(name)}")
        return UTC

    def _sample(self, node: Any, place: _Place) -> Sample | None:
        if not isinstance(node, Mapping) or ("percent" in node) == ("count" in node):
            self.fail(place, 'must be an object with either "percent" or "count", and "seed"')
            return None
        self._unknown_keys(node, place, {"percent", "count", "seed"})
        before = len(self.problems)
        seed, size = node.get("seed"), node.get("percent", node.get("count"))
        if not isinstance(seed, str) or not 1 <= len(seed) <= MAX_SEED or not seed.isprintable():
            self.fail(place.at(".seed"), f"must be a text of 1 to {MAX_SEED} printable characters, not {show(seed)}")
        number = isinstance(size, int | float) and not isinstance(size, bool)
        if "percent" in node and not (number and 0 < size <= 100):
            self.fail(place.at(".percent"), f"must be above 0 and at most 100, not {show(size)}")
        if "count" in node and not (number and isinstance(size, int) and 1 <= size <= MAX_SAMPLE):
            self.fail(place.at(".count"), f"must be a whole number, 1 to {MAX_SAMPLE}, not {show(size)}")
        if len(self.problems) > before:
            return None
        name = self.chain[-1] if place.criteria else ""
        if "count" in node:
            return Sample(name, str(seed), count=size)
        return Sample(name, str(seed), percent=Fraction(str(size)))

    def _unknown_keys(self, node: Mapping[Any, Any], place: _Place, known: set[str]) -> None:
        for key in sorted(str(k) for k in node if k not in known):
            self.fail(place, f'has "{key}", which means nothing here; known are {", ".join(sorted(known))}')


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())  # walks through a folder: 5 ms, and every range parses its rules


def _offer(field: Field) -> str:
    return f"{field.name} takes " + " ".join(o for o in Operator if o in field.operators)
