"""A tree judged for one contact says what the snapshot's own query says, and for each rule what the contact has."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from mailer_lib.audience import catalogue, sampling
from mailer_lib.audience.evaluation import Judged, judge
from mailer_lib.audience.rules import parse
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import contacts
from tests.audience.events import Event, write_events
from tests.audience.test_criteria import NOW, people, store_criteria, zoned_trees
from tests.audience.world import EVERYBODY, World, add_contact, rule


class _UndoError(Exception):
    pass


def judged(world: World, connection: Connection, tree: Any, contact_id: int) -> Judged:
    known = catalogue.load(connection)
    found = sampling.thresholds(connection, parse(tree, known, now=NOW))
    answer = judge(connection, tree, known, contact_id=contact_id, now=NOW, thresholds=found, settings=world.settings)
    assert answer is not None
    return answer


def one(world: World, tree: Any, **person: Any) -> Judged:
    contact_id = world.add("lea@example.org", **person)
    with read(world.engine) as connection:
        return judged(world, connection, tree, contact_id)


@given(
    tree=zoned_trees,
    sample=st.none() | st.builds(lambda p: {"percent": p, "seed": "s"}, st.integers(1, 100)),
    population=st.lists(people(), min_size=1, max_size=4),
)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_root_holds_for_whom_the_query_picks(
    world: World, tree: dict[str, Any], sample: dict[str, Any] | None, population: list[dict[str, Any]]
) -> None:
    tree = tree | ({"sample": sample} if sample else {})
    with pytest.raises(_UndoError), write(world.engine) as connection:
        store_criteria(connection)
        did = {}
        for number, person in enumerate(population):
            columns = {name: value for name, value in person.items() if name != "did"}
            did[add_contact(connection, world, f"p{number}@example.org", **columns)] = person["did"]
        write_events(world, did)
        known = catalogue.load(connection)
        with sampling.picking(connection, world.settings, tree, known, now=NOW) as condition:
            picked = set(connection.scalars(select(contacts.c.id).where(condition)))
        assert {contact_id for contact_id in did if judged(world, connection, tree, contact_id).holds} == picked
        raise _UndoError


def test_every_rule_is_told_in_the_words_of_the_tree_with_what_the_contact_has(world: World) -> None:
    tree = {
        "combinator": "and",
        "rules": [
            {"field": "attribute.points", "operator": ">=", "value": "100"},
            {"field": "attribute.vip", "operator": "=", "value": True},
            {"field": "list", "operator": "in", "value": ["newsletter", "offers"]},
            {
                "combinator": "or",
                "not": True,
                "rules": [
                    {"field": "locale", "operator": "null", "value": None},
                    {"field": "attribute.interests", "operator": "contains", "value": "ski"},
                    {"field": "created_at", "operator": "inLastDays", "value": 3},
                ],
            },
        ],
    }
    person = {"attributes": {"points": 7.5, "vip": True, "interests": ["ski", "art"]}, "locale": "de"}
    found = one(world, tree, **person)
    assert (found.label, found.holds) == ("all of", False)
    assert [(m.label, m.holds, m.value) for m in found.members] == [
        ('attribute.points >= "100"', False, "7.5"),
        ("attribute.vip = true", True, "true"),
        ('list in "newsletter", "offers"', True, None),
        ("none of", False, None),
    ]
    inner = found.members[3].members
    assert [(m.label, m.holds, m.value) for m in inner] == [
        ("locale null", False, "de"),
        ('attribute.interests contains "ski"', True, "ski, art"),
        ("created_at inLastDays 3", False, "2025-03-01 12:00:00 UTC"),
    ]


def test_what_the_contact_did_is_judged_as_it_is_known_by_now(world: World) -> None:
    tree = {
        "combinator": "and",
        "rules": [
            {"field": "behaviour.clicked", "operator": "notNull", "value": {"campaign": "spring-sale"}},
            {"field": "behaviour.opened", "operator": "null", "value": None},
        ],
    }
    contact_id = world.add("lea@example.org")
    write_events(world, {contact_id: [Event("clicked", NOW - timedelta(days=1))], contact_id + 1: []})
    with read(world.engine) as connection:
        found = judged(world, connection, tree, contact_id)
    assert [(m.label, m.holds) for m in found.members] == [
        ('behaviour.clicked notNull {"campaign": "spring-sale"}', True),
        ("behaviour.opened null", True),
    ]


def test_a_missing_value_is_called_missing(world: World) -> None:
    (points,) = one(world, rule("attribute.points", "!=", 3)).members
    assert (points.holds, points.value) == (False, "missing")


def test_other_criteria_are_told_with_their_own_rules(world: World) -> None:
    with write(world.engine) as connection:
        store_criteria(connection)
    found = one(world, rule("criteria", "!=", "gold"), attributes={"tier": "a"})
    (named,) = found.members
    (tree,) = named.members
    assert (found.holds, named.label, named.holds) == (True, 'criteria != "gold"', True)
    assert (tree.label, tree.holds) == ('criteria "gold": not all of', False)
    assert [(m.label, m.holds, m.value) for m in tree.members] == [('attribute.tier in "a", "é"', True, "a")]


@pytest.mark.parametrize(("percent", "holds"), [(100, True), (0.000001, False)])
def test_a_sample_is_one_more_thing_that_must_hold(world: World, percent: float, holds: bool) -> None:
    found = one(world, {**EVERYBODY, "sample": {"percent": percent, "seed": "spring"}})
    assert found.holds is holds
    assert [(m.label[:6], m.holds) for m in found.members] == [("sample", holds)]


def test_as_many_rules_as_may_be_are_asked_in_one_statement(world: World) -> None:
    rules = [each for n in range(499) for each in rule("attribute.points", "=", n)["rules"]]
    big = rule("attribute.points", "in", list(range(1000, 1500)))["rules"]
    found = one(world, {"combinator": "or", "rules": rules + big}, attributes={"points": 7})
    assert found.holds and [n for n, member in enumerate(found.members) if member.holds] == [7]
    assert found.members[-1].label.endswith("…")


def test_who_is_no_contact_is_not_judged(sqlite_world: World) -> None:
    with read(sqlite_world.engine) as connection:
        known = catalogue.load(connection)
        assert (
            judge(connection, EVERYBODY, known, contact_id=99, now=NOW, thresholds={}, settings=sqlite_world.settings)
            is None
        )
