"""The published JSON Schema of criteria, for editors and other programs: ``docs/criteria.schema.json``.

    python -m mailer_lib.audience.json_schema docs/criteria.schema.json

It holds for every installation, so it knows neither which attributes, lists and criteria there are nor how deep and
wide a tree may be; ``mailfleet criteria check`` does. Whatever passes that check is valid here.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mailer_lib.audience.behaviour_operands import KEYS
from mailer_lib.audience.catalogue import CONTACT_FIELDS, SUITED, FieldKind, Operator
from mailer_lib.audience.operands import MAX_DAYS, MAX_TEXT, RELATIVE
from mailer_lib.audience.rules import MAX_SAMPLE, MAX_SEED, MAX_VALUES, VERSION
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.terms import AttributeType

_EXISTENCE = frozenset({Operator.NULL, Operator.NOT_NULL})
_SEVERAL = frozenset({Operator.IN, Operator.NOT_IN})
_TEXT: dict[str, Any] = {"type": "string", "maxLength": MAX_TEXT}
_VALUES: Mapping[FieldKind, dict[str, Any]] = {
    FieldKind.TEXT: _TEXT,
    FieldKind.NUMBER: {"type": ["number", "string"]},
    FieldKind.BOOLEAN: {"type": "boolean"},
    FieldKind.DATE: {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    FieldKind.INSTANT: {"type": "string", "description": "a day, or a moment with its offset from UTC"},
    FieldKind.ENUM: _TEXT,
    FieldKind.TEXT_LIST: _TEXT,
    FieldKind.LIST: {"type": "string", "description": "name of a list"},
    FieldKind.CRITERIA: {"type": "string", "description": "name of other criteria"},
}
_SUBSCRIPTION = {
    FieldKind.ENUM: "state",
    FieldKind.TEXT: "source",
    FieldKind.INSTANT: "(confirmed_at|unsubscribed_at)",
}


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a whole tree."""
    editors: dict[str, Any] = {"id": True, "path": True, "disabled": True}
    group = {"combinator": {"enum": ["and", "or"]}, "not": {"type": "boolean", "default": False}, **editors}
    members = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/group"}, {"$ref": "#/$defs/rule"}]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mailfleet:criteria:{VERSION}",
        "title": "Mailfleet sample criteria",
        "description": "A rule tree as react-querybuilder writes it",
        "type": "object",
        "required": ["combinator", "rules"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": VERSION},
            "timezone": {"type": "string", "description": "IANA name; whose days are meant", "default": "UTC"},
            "sample": {"$ref": "#/$defs/sample"},
            **group,
            "rules": members,
        },
        "$defs": {
            "group": {
                "type": "object",
                "required": ["combinator", "rules"],
                "additionalProperties": False,
                "properties": {**group, "rules": {**members, "minItems": 1}},
            },
            "sample": _sample(),
            "rule": {
                "type": "object",
                "required": ["field", "operator"],
                "additionalProperties": False,
                "properties": {
                    "field": {"type": "string"},
                    "operator": {"type": "string"},
                    "value": True,
                    "valueSource": {"const": "value"},
                    **editors,
                },
                "anyOf": [_fields(kind) for kind in FieldKind],
            },
            **{f"{kind}-operation": {"anyOf": _operations(kind)} for kind in FieldKind if kind in _VALUES},
            f"{FieldKind.BEHAVIOUR}-operation": {"anyOf": _behaviour_operations()},
        },
    }


def text() -> str:
    """As the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _sample() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["seed"],
        "additionalProperties": False,
        "properties": {
            "seed": {"type": "string", "minLength": 1, "maxLength": MAX_SEED},
            "percent": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            "count": {"type": "integer", "minimum": 1, "maximum": MAX_SAMPLE},
        },
        "oneOf": [{"required": ["percent"]}, {"required": ["count"]}],
    }


def _fields(kind: FieldKind) -> dict[str, Any]:
    """The fields that are, or can be, of a kind, and what can be said of them."""
    named: list[dict[str, Any]] = [{"enum": [f.name for f in CONTACT_FIELDS if f.kind == kind]}]
    if kind.value in {type_.value for type_ in AttributeType}:
        named.append({"pattern": rf"^{ATTRIBUTE_PREFIX.replace('.', chr(92) + '.')}."})
    if kind in _SUBSCRIPTION:
        named.append({"pattern": rf"^subscription\..+\.{_SUBSCRIPTION[kind]}$"})
    named = [each for each in named if each.get("enum") != []]
    return {"properties": {"field": {"anyOf": named}}, "$ref": f"#/$defs/{kind}-operation"}


def _behaviour_operations() -> list[dict[str, Any]]:
    """``behaviour_operands.py``: an object that says how often, where and when; or how often alone."""
    whole = {"type": ["integer", "number", "string"]}
    moment = {"type": ["string", "null"], "description": "a day (the whole one), or a moment with its offset from UTC"}
    said = {
        "times": {**whole, "description": "how often; a whole number"},
        "campaign": {"type": ["string", "null"], "description": "a campaign, or an edition: name#edition"},
        "withinDays": {**whole, "description": "today and so many days before it"},
        "from": moment,
        "to": moment,
        "includeMachine": {"type": "boolean", "default": False, "description": "proxies and scanners too"},
    }
    assert said.keys() == set(KEYS)
    shape = {"type": "object", "additionalProperties": False}
    timeless = {key: value for key, value in said.items() if key != "times"}
    existence = [{**shape, "properties": timeless}, {"enum": [None, ""]}]
    counted = [{**shape, "properties": said, "required": ["times"]}, whole]
    suited = SUITED[FieldKind.BEHAVIOUR]

    def named(operators: frozenset[Operator]) -> dict[str, Any]:
        return {"enum": [str(operator) for operator in Operator if operator in operators & suited]}

    return [
        {"properties": {"operator": named(_EXISTENCE), "value": {"anyOf": existence}}},
        {
            "required": ["value"],
            "properties": {"operator": named(suited - _EXISTENCE), "value": {"anyOf": counted}},
        },
    ]


def _operations(kind: FieldKind) -> list[dict[str, Any]]:
    suited, value = SUITED[kind], _VALUES[kind]
    listed = {"type": "array", "items": value}
    days = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_DAYS}, {"type": "string"}]}
    shapes: list[tuple[frozenset[Operator], Any]] = [
        (_EXISTENCE, None),
        (RELATIVE, days),
        (_SEVERAL, {"anyOf": [{**listed, "minItems": 1, "maxItems": MAX_VALUES}, {"type": "string"}]}),
        (frozenset({Operator.BETWEEN}), {"anyOf": [{**listed, "minItems": 2, "maxItems": 2}, {"type": "string"}]}),
    ]
    special = frozenset().union(*(operators for operators, _ in shapes))
    shapes.insert(0, (frozenset(Operator) - special, value))
    found: list[dict[str, Any]] = []
    for operators, shape in shapes:
        names = [str(operator) for operator in Operator if operator in operators & suited]
        if names:
            said = {"operator": {"enum": names}}
            found.append(
                {"properties": said}
                if shape is None
                else {"required": ["value"], "properties": {**said, "value": shape}}
            )
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
