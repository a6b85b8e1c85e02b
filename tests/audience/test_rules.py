"""A rule tree is read whole or refused with the JSON path of everything that is wrong."""

import json
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience.behaviour import Behaviour, Occurrence
from mailer_lib.audience.catalogue import SUITED, Catalogue, Operator
from mailer_lib.audience.criteria import read_tree
from mailer_lib.audience.operands import Span
from mailer_lib.audience.rules import (
    MAX_DEPTH,
    MAX_RULES,
    MAX_VALUES,
    CriteriaError,
    Group,
    Rule,
    Sample,
    behaviours,
    parse,
    references,
)
from tests.audience.world import ATTRIBUTES, CHOICES, rule

STORED = {
    "gold": rule("attribute.tier", "=", "gold"),
    "circle": rule("criteria", "=", "square"),
    "square": rule("criteria", "!=", "circle"),
    "broken": rule("criteria", "=", "outdated"),
    "outdated": {"combinator": "or", "rules": [*rule("locale", "=", "de")["rules"], *rule("gone", "=", "x")["rules"]]},
}
CATALOGUE = Catalogue(
    ATTRIBUTES, {"newsletter": 1, "offers": 2}, CHOICES, STORED, frozenset({"spring-sale", "welcome"})
)
NOW = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)


def only_rule(tree: Any) -> Rule:
    (member,) = parse(tree, CATALOGUE, now=NOW).members
    assert isinstance(member, Rule)
    return member


def problems(tree: Any) -> dict[str, str]:
    with pytest.raises(CriteriaError) as caught:
        parse(tree, CATALOGUE)
    return {problem.path: problem.text for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("field", "operator", "value", "values"),
    [
        ("locale", "=", " de-DE ", ("de-DE",)),
        ("given_name", "=", "  Anna   Lena ", ("Anna Lena",)),
        ("given_name", "beginsWith", "Anna ", ("Anna ",)),
        ("given_name", "=", "Zoe\u0308", ("Zoë",)),
        ("attribute.points", ">", 12, (12.0,)),
        ("attribute.points", ">", "12.5", (12.5,)),
        ("attribute.points", "between", "10,20", (10.0, 20.0)),
        ("attribute.points", "in", [1, 2], (1.0, 2.0)),
        ("attribute.tier", "in", "gold, silver", ("gold", "silver")),
        ("attribute.tier", "notIn", ["gold"], ("gold",)),
        ("attribute.vip", "=", False, (False,)),
        ("attribute.customer_since", "<", "2024-02-29", ("2024-02-29",)),
        ("attribute.city", "null", None, ()),
        ("attribute.city", "notNull", "ignored", ()),
        ("attribute.grade", "in", "a,B", ("a", "B")),
        ("attribute.interests", "contains", " hiking  far ", ("hiking far",)),
        ("subscription.offers.state", "=", "pending", ("pending",)),
        ("attribute.customer_since", "inLastDays", 0, ("2026-11-24", "2026-11-24")),
        ("attribute.customer_since", "inLastDays", "90", ("2026-08-26", "2026-11-24")),
        ("attribute.customer_since", "inNextDays", 7, ("2026-11-24", "2026-12-01")),
        ("attribute.customer_since", "beforeLastDays", 1, ("2026-11-23",)),
        ("attribute.customer_since", "anniversaryInDays", 7, ("11-24", "12-01")),
        ("attribute.customer_since", "anniversaryInDays", 60, ("11-24", "01-23")),
        ("attribute.customer_since", "anniversaryInDays", 96, ("11-24", "02-29")),
        ("attribute.customer_since", "anniversaryInDays", 97, ("11-24", "03-01")),
        ("attribute.customer_since", "anniversaryInDays", 365, ("01-01", "12-31")),
        ("list", "=", "offers", (2,)),
        ("list.confirmed", "notIn", ["offers", "newsletter"], (2, 1)),
    ],
)
def test_what_react_querybuilder_writes_is_read(field: str, operator: str, value: Any, values: tuple[Any, ...]) -> None:
    read = only_rule(rule(field, operator, value))
    assert (read.field.name, read.operator, read.values) == (field, operator, values)


def test_a_day_means_the_whole_day_and_a_moment_itself() -> None:
    day = datetime(2026, 11, 24, tzinfo=UTC)
    assert only_rule(rule("created_at", "=", "2026-11-24")).values == (Span(day, day + timedelta(days=1)),)
    moment = day + timedelta(hours=7)
    (span,) = only_rule(rule("created_at", ">", "2026-11-24T08:00:00+01:00")).values
    assert span == Span(moment, moment + timedelta(microseconds=1))


def test_a_tree_has_a_time_zone_for_its_days() -> None:
    day = datetime(2026, 11, 24, 23, tzinfo=UTC)  # the 25th begins in Berlin, where it is 0:30
    berlin = {"timezone": "Europe/Berlin"}
    assert only_rule(rule("created_at", "inLastDays", 0) | berlin).values == (Span(day, day + timedelta(days=1)),) * 2
    assert only_rule(rule("created_at", "=", "2026-11-25") | berlin).values == (Span(day, day + timedelta(days=1)),)
    (long_day,) = only_rule(rule("created_at", "=", "2026-10-25") | berlin).values
    assert isinstance(long_day, Span) and long_day.end - long_day.start == timedelta(hours=25)


@pytest.mark.parametrize(
    ("operator", "value", "least", "most", "absent"),
    [
        ("null", None, 1, None, True),
        ("notNull", {}, 1, None, False),
        ("=", 0, 1, None, True),
        ("=", {"times": "2"}, 2, 2, False),
        (">=", 2, 2, None, False),
        (">", 2, 3, None, False),
        ("<", 2, 2, None, True),
        ("<=", {"times": 0}, 1, None, True),
        ("<=", 2, 3, None, True),
    ],
)
def test_how_often_is_a_set_of_people_or_everybody_else(
    operator: str, value: Any, least: int, most: int | None, absent: bool
) -> None:
    (asked,) = only_rule(rule("behaviour.opened", operator, value)).values
    assert isinstance(asked, Occurrence)
    assert (asked.people.least, asked.people.most, asked.absent) == (least, most, absent)


def asked_of(value: dict[str, Any], **root: Any) -> Behaviour:
    (asked,) = only_rule(rule("behaviour.sent", "notNull", value) | root).values
    assert isinstance(asked, Occurrence)
    return asked.people


def test_behaviour_ends_now_and_begins_with_a_day_of_the_tree() -> None:
    after_now = NOW + timedelta(microseconds=1)
    everything = asked_of({})
    assert (everything.since, everything.until, everything.campaign) == (None, after_now, None)
    assert asked_of({"withinDays": 0}, timezone="Europe/Berlin").since == datetime(2026, 11, 24, 23, tzinfo=UTC)
    assert asked_of({"withinDays": "1"}).since == datetime(2026, 11, 23, tzinfo=UTC)
    span = asked_of({"from": "2026-11-01", "to": "2026-11-02"})
    assert (span.since, span.until) == (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 3, tzinfo=UTC))
    assert asked_of({"to": "2027-01-01"}).until == after_now
    edition = asked_of({"campaign": "spring-sale#3", "includeMachine": True})
    assert (edition.campaign, edition.edition, edition.machines) == ("spring-sale", "3", True)


def test_the_same_question_is_one_set() -> None:
    opened = rule("behaviour.opened", ">=", 2)["rules"] * 2 + rule("behaviour.opened", "<", 2)["rules"]
    tree = {"combinator": "or", "rules": opened + rule("behaviour.opened", "notNull")["rules"]}
    assert [each.least for each in behaviours(parse(tree, CATALOGUE, now=NOW))] == [2, 1]
    many = {"combinator": "or", "rules": [r for n in range(30) for r in rule("behaviour.sent", "=", n)["rules"]]}
    with pytest.raises(CriteriaError, match="30 different behaviours"):
        parse(many, CATALOGUE, now=NOW)


def test_a_sample_is_a_percentage_or_a_number_with_a_seed() -> None:
    tree = rule("locale", "=", "de")
    assert parse(tree | {"sample": {"percent": 0.1, "seed": "x"}}, CATALOGUE).sample == Sample("", "x", Fraction(1, 10))
    assert parse(tree | {"sample": {"count": 5, "seed": "x"}}, CATALOGUE).sample == Sample("", "x", count=5)


def test_other_criteria_are_a_group_of_their_own() -> None:
    (other,) = parse(rule("criteria", "!=", "gold"), CATALOGUE).members
    assert isinstance(other, Group) and other.negated
    assert other.members == (parse(STORED["gold"], CATALOGUE),)
    assert references(rule("criteria", "=", "circle"), CATALOGUE) == {n: STORED[n] for n in ("circle", "square")}


def test_criteria_may_not_lead_back_to_themselves() -> None:
    found = problems(rule("criteria", "=", "circle"))["$.rules[0].value"]
    assert found.endswith("leads back to itself: circle → square → circle")
    assert 'in criteria "circle", $.rules[0].value: in criteria "square", $.rules[0].value: ' in found
    with pytest.raises(CriteriaError, match="leads back to itself: gold → gold"):
        parse(rule("criteria", "=", "gold"), CATALOGUE, name="gold")


def test_what_is_wrong_in_other_criteria_is_told_with_the_way_there() -> None:
    assert problems(rule("criteria", "=", "broken")) == {
        "$.rules[0].value": 'in criteria "broken", $.rules[0].value: in criteria "outdated", $.rules[1].field: '
        'there is no field "gone"'
    }


def test_criteria_that_grow_by_naming_others_have_the_limits_of_one_tree() -> None:
    bomb = {f"c{n}": {"combinator": "or", "rules": rule("criteria", "=", f"c{n + 1}")["rules"] * 2} for n in range(12)}
    stored = {**bomb, "c12": rule("locale", "=", "de")}
    with pytest.raises(CriteriaError, match="500 rules"):
        parse(bomb["c0"], Catalogue(criteria=stored))


def test_keys_that_only_the_editor_needs_are_passed_over() -> None:
    tree = rule("locale", "=", "de")
    tree |= {"id": "g-1", "not": False, "version": 1}
    tree["rules"][0] |= {"id": "r-1", "valueSource": "value"}
    assert isinstance(parse(tree, CATALOGUE), Group)


@pytest.mark.parametrize(
    ("tree", "path", "says"),
    [
        ([], "$", "must be a group"),
        ({}, "$.combinator", '"and" or "or"'),
        ({"combinator": "xor", "rules": []}, "$.combinator", '"xor"'),
        ({"combinator": "and", "rules": "all"}, "$.rules", "an array"),
        ({"combinator": "or", "rules": []}, "$.rules", "is empty"),
        ({"combinator": "and", "rules": [], "not": True}, "$.rules", "is empty"),
        ({"combinator": "and", "rules": [{"combinator": "and", "rules": []}]}, "$.rules[0].rules", "is empty"),
        ({"combinator": "and", "rules": [], "not": "yes"}, "$.not", "true or false"),
        ({"combinator": "and", "rules": [], "version": 2}, "$.version", "version 1"),
        ({"combinator": "and", "rules": [], "where": "1=1"}, "$", '"where"'),
        ({"combinator": "and", "rules": ["and"]}, "$.rules[0]", "a rule"),
        (rule("attribute.teir", "=", "gold"), "$.rules[0].field", 'did you mean "attribute.tier"?'),
        (rule("attributes) OR 1=1 --", "=", "x"), "$.rules[0].field", "no field"),
        (rule("address", "=", "x"), "$.rules[0].field", "no field"),
        ({"combinator": "and", "rules": [{"operator": "="}]}, "$.rules[0].field", "no field null"),
        (rule("locale", "~", "x"), "$.rules[0].operator", 'no operator "~"'),
        (rule("locale", "<", "x"), "$.rules[0].operator", "doesn't suit locale, a text"),
        (rule("attribute.vip", ">", True), "$.rules[0].operator", "attribute.vip takes = !="),
        (rule("list", "null"), "$.rules[0].operator", "doesn't suit"),
        (rule("locale", "=", 5), "$.rules[0].value", "must be a text, not a number"),
        (rule("locale", "contains", ""), "$.rules[0].value", "at least one character"),
        (rule("locale", "=", "a\x00b"), "$.rules[0].value", "control character"),
        (rule("attribute.points", "=", "many"), "$.rules[0].value", 'must be a number, not "many"'),
        (rule("attribute.points", "=", True), "$.rules[0].value", "must be a number"),
        (rule("attribute.points", "=", "nan"), "$.rules[0].value", "must be a number"),
        (rule("attribute.points", "between", [1]), "$.rules[0].value", "two values, not 1"),
        (rule("attribute.points", "in", [1, "x"]), "$.rules[0].value[1]", "must be a number"),
        (rule("attribute.tier", "in", []), "$.rules[0].value", "1 to 500 values"),
        (rule("attribute.tier", "in", 5), "$.rules[0].value", "takes an array"),
        (rule("attribute.vip", "=", "true"), "$.rules[0].value", "must be true or false, not a text"),
        (rule("attribute.customer_since", "=", "24.11.2026"), "$.rules[0].value", "a day like 2026-11-24"),
        (rule("attribute.customer_since", "=", "2026-02-30"), "$.rules[0].value", "a day like"),
        (rule("created_at", "<", "2026-11-24T08:00:00"), "$.rules[0].value", "time zone"),
        (rule("locale", "=", "de") | {"timezone": "Berlin"}, "$.timezone", "a time zone like Europe/Berlin"),
        (rule("locale", "=", "de") | {"sample": {"seed": "x"}}, "$.sample", '"percent" or "count"'),
        (rule("locale", "=", "de") | {"sample": {"percent": 5}}, "$.sample.seed", "a text"),
        (rule("locale", "=", "de") | {"sample": {"percent": 0, "seed": "x"}}, "$.sample.percent", "above 0"),
        (rule("locale", "=", "de") | {"sample": {"count": 1.5, "seed": "x"}}, "$.sample.count", "a whole number"),
        ({"combinator": "and", "rules": [rule("locale", "=", "de") | {"sample": {}}]}, "$.rules[0]", '"sample"'),
        (rule("attribute.grade", "=", "b"), "$.rules[0].value", '"b" is no choice of attribute.grade'),
        (rule("attribute.interests", "=", "x"), "$.rules[0].operator", "attribute.interests takes contains in notIn"),
        (rule("attribute.points", "inLastDays", 7), "$.rules[0].operator", "doesn't suit attribute.points"),
        (rule("created_at", "anniversaryInDays", 7), "$.rules[0].operator", "doesn't suit created_at"),
        (rule("created_at", "inLastDays", -1), "$.rules[0].value", "0 to 36525, not -1"),
        (rule("created_at", "inLastDays", 1.5), "$.rules[0].value", "whole number of days"),
        (rule("attribute.customer_since", "anniversaryInDays", 366), "$.rules[0].value", "0 to 365"),
        (rule("behaviour.opened", ">=", 0), "$.rules[0].value.times", '">=" 0 is everybody'),
        (rule("behaviour.opened", "<", 0), "$.rules[0].value.times", "is nobody"),
        (rule("behaviour.opened", "=", {"times": 1.5}), "$.rules[0].value.times", "a whole number"),
        (rule("behaviour.opened", "=", {}), "$.rules[0].value.times", "not null"),
        (rule("behaviour.opened", "null", {"times": 1}), "$.rules[0].value.times", 'means nothing with "null"'),
        (rule("behaviour.opened", "null", 3), "$.rules[0].value", "must be an object"),
        (rule("behaviour.opened", "=", [1]), "$.rules[0].value", "must be an object"),
        (rule("behaviour.opened", "between", [1, 2]), "$.rules[0].operator", "behaviour.opened takes ="),
        (rule("behaviour.opened", "null", {"within": 3}), "$.rules[0].value", '"within", which means nothing'),
        (rule("behaviour.opened", "null", {"withinDays": -1}), "$.rules[0].value.withinDays", "0 to 36525"),
        (rule("behaviour.opened", "null", {"withinDays": 1, "to": "2026-01-01"}), "$.rules[0].value", "either"),
        (rule("behaviour.opened", "null", {"from": "1.1.2026"}), "$.rules[0].value.from", "must be a day"),
        (rule("behaviour.opened", "null", {"includeMachine": 1}), "$.rules[0].value.includeMachine", "true or false"),
        (rule("behaviour.sent", "null", {"campaign": "sprig-sale"}), "$.rules[0].value.campaign", '"spring-sale"'),
        (rule("behaviour.sent", "null", {"campaign": "welcome#"}), "$.rules[0].value.campaign", "welcome#1"),
        (rule("behaviour.sent", "null", {"campaign": "welcome#../1"}), "$.rules[0].value.campaign", "welcome#1"),
        (rule("subscription.newsleter.state", "=", "x"), "$.rules[0].field", '"subscription.newsletter.state"'),
        (rule("criteria", "=", "golden"), "$.rules[0].value", 'no criteria "golden"; did you mean "gold"?'),
        (rule("list", "=", "newsleter"), "$.rules[0].value", 'did you mean "newsletter"?'),
        (rule("list", "in", ["newsletter", 3]), "$.rules[0].value[1]", "no list 3"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(tree: Any, path: str, says: str) -> None:
    found = problems(tree)
    assert says in found[path], found


def test_a_field_is_not_compared_with_another_field() -> None:
    tree = rule("locale", "=", "timezone")
    tree["rules"][0]["valueSource"] = "field"
    assert "$.rules[0].valueSource" in problems(tree)


def test_every_problem_is_told_at_once() -> None:
    tree = {"combinator": "and", "rules": [*rule("nope", "=", 1)["rules"], rule("locale", "<", "x")]}
    assert set(problems(tree)) == {"$.rules[0].field", "$.rules[1].rules[0].operator"}


def nested(depth: int) -> dict[str, Any]:
    tree = rule("locale", "=", "de")
    for _ in range(depth - 1):
        tree = {"combinator": "and", "rules": [tree]}
    return tree


def test_depth_has_a_limit() -> None:
    parse(nested(MAX_DEPTH), CATALOGUE)
    (path,) = problems(nested(MAX_DEPTH + 1))
    assert path == "$" + ".rules[0]" * MAX_DEPTH
    assert problems(nested(900))


def test_width_has_a_limit() -> None:
    one = rule("locale", "=", "de")["rules"]
    parse({"combinator": "or", "rules": one * MAX_RULES}, CATALOGUE)
    assert "500 rules" in problems({"combinator": "or", "rules": one * (MAX_RULES + 1)})["$"]
    wide = {"combinator": "and", "rules": [{"combinator": "or", "rules": one * 300}] * 300}
    assert "500 rules" in problems(wide)["$"]
    parse(rule("attribute.tier", "in", ["x"] * MAX_VALUES), CATALOGUE)
    assert "$.rules[0].value" in problems(rule("attribute.tier", "in", ["x"] * (MAX_VALUES + 1)))


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[NaN]", b"[" * 100_000, b"", b'{"a": Infinity}'])
def test_what_is_no_json_is_a_sentence(text: bytes) -> None:
    with pytest.raises(CriteriaError, match=r"^\$"):
        read_tree(text)


def test_every_kind_of_field_has_operators_and_every_operator_a_field() -> None:
    assert {f.kind for f in CATALOGUE.fields.values()} == set(SUITED)
    assert set().union(*SUITED.values()) == set(Operator)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["combinator", "rules", "not", "field", "operator", "value", "and"]), inner, max_size=5
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_whatever_json_comes_it_is_read_or_refused_with_paths(tree: Any) -> None:
    try:
        parse(tree, CATALOGUE)
    except CriteriaError as error:
        assert error.problems
        assert all(p.path.startswith("$") and p.text for p in error.problems)


@given(
    st.sampled_from(sorted(CATALOGUE.fields)),
    st.sampled_from([*Operator, "doesNotContain", ""]),
    json_values | st.sampled_from(["2026-11-24", "5", "newsletter", "gold", ["a", "b"]]),
)
def test_one_rule_of_any_shape_is_read_or_refused(field: str, operator: str, value: Any) -> None:
    try:
        (read,) = parse(rule(field, operator, value), CATALOGUE, now=NOW).members
    except CriteriaError as error:
        assert all(p.path.startswith("$.rules[0]") for p in error.problems)
    else:
        assert operator in CATALOGUE.fields[field].operators
        assert isinstance(read, Rule) == (field != "criteria")
        json.dumps(value)
