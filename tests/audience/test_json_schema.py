"""docs/criteria.schema.json is what the code says, and takes whatever the check takes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mailer_lib.audience import json_schema
from mailer_lib.audience.catalogue import Operator
from mailer_lib.audience.rules import CriteriaError, parse
from tests.audience.test_criteria import zoned_trees
from tests.audience.test_rules import CATALOGUE, json_values
from tests.audience.world import EVERYBODY, rule

FILE = Path(__file__).parents[2] / "docs" / "criteria.schema.json"
VALIDATOR = Draft202012Validator(json_schema.schema())


def test_the_published_file_is_current() -> None:
    command = "python -m mailer_lib.audience.json_schema docs/criteria.schema.json"
    assert FILE.read_text(encoding="utf-8") == json_schema.text(), f"write it again: {command}"
    Draft202012Validator.check_schema(json_schema.schema())


@given(zoned_trees)
def test_trees_are_valid(tree: dict[str, Any]) -> None:
    VALIDATOR.validate(tree)


@given(
    st.sampled_from(sorted(CATALOGUE.fields)),
    st.sampled_from(list(Operator)),
    json_values | st.sampled_from(["2026-11-24", "5", 5, "newsletter", "gold", "a", ["a", "B"], ["2026-11-24"] * 2]),
)
def test_what_the_check_takes_is_valid(field: str, operator: str, value: Any) -> None:
    tree = rule(field, operator, value)
    try:
        parse(tree, CATALOGUE)
    except CriteriaError:
        return
    VALIDATOR.validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        EVERYBODY,
        EVERYBODY | {"version": 1, "timezone": "Europe/Berlin", "sample": {"count": 5, "seed": "x"}},
        rule("locale", "=", "de") | {"id": "g1", "not": True},
    ],
)
def test_root_keys(tree: dict[str, Any]) -> None:
    VALIDATOR.validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        EVERYBODY | {"version": 2},
        EVERYBODY | {"where": "1=1"},
        EVERYBODY | {"sample": {"count": 5, "percent": 5, "seed": "x"}},
        {"combinator": "and", "rules": [EVERYBODY]},
        rule("address", "=", "x"),
        rule("locale", "<", "x"),
        rule("locale", "=", 5),
        rule("attribute.x", "~", "x"),
        rule("created_at", "inLastDays", -1),
        rule("subscription.newsletter.confirmed_at", "contains", "x"),
        rule("behaviour.opened", ">=", {"withinDays": 3}),
        rule("behaviour.opened", "null", {"times": 3}),
        rule("behaviour.opened", "contains", "x"),
    ],
)
def test_what_is_no_tree_anywhere_is_not_valid(tree: Any) -> None:
    assert not VALIDATOR.is_valid(tree)
