"""Random samples: stable by seed, one threshold for the whole, the same on both databases and in plain Python."""

import hashlib
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select

from mailer_lib.audience import catalogue, criteria, sampling
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import contacts
from tests.audience.world import EVERYBODY, World, rule

PEOPLE = 200


@pytest.fixture
def crowd(world: World) -> World:
    world.add_many(PEOPLE, lambda n: {"address": f"p{n}@example.org", "attributes": {"points": n}})
    return world


def picked(world: World, tree: Any, last_id: int | None = None) -> set[str]:
    with read(world.engine) as connection:
        known = catalogue.load(connection)
        with sampling.picking(connection, world.settings, tree, known, now=now(), last_id=last_id) as condition:
            return set(connection.scalars(select(contacts.c.address_given).where(condition)))


def in_order(world: World, seed: str, addresses: set[str]) -> list[str]:
    """As the sample takes them, without SQL."""
    return sorted(addresses, key=lambda a: hashlib.sha256(seed.encode() + world.hash_of(a)).digest())


def sample(seed: str = "spring", **size: Any) -> dict[str, Any]:
    return {"sample": {"seed": seed, **size}}


@given(seed=st.text("aé😀'%\\ ", min_size=1, max_size=4), count=st.integers(1, PEOPLE + 5))
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_number_of_people_is_the_first_ones_of_one_order(crowd: World, seed: str, count: int) -> None:
    everybody = {f"p{n}@example.org" for n in range(PEOPLE)}
    assert picked(crowd, EVERYBODY | sample(seed, count=count)) == set(in_order(crowd, seed, everybody)[:count])


@given(percent=st.floats(0.001, 100) | st.sampled_from([1, 50, 100]))
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_percentage_is_that_part_of_all_points(crowd: World, percent: float) -> None:
    def point(address: str) -> int:
        return int.from_bytes(hashlib.sha256(b"spring" + crowd.hash_of(address)).digest(), "big")

    chosen = {a for n in range(PEOPLE) if point(a := f"p{n}@example.org") < Fraction(str(percent)) / 100 * 2**256}
    assert picked(crowd, EVERYBODY | sample(percent=percent)) == chosen


def test_the_sample_is_of_those_who_match_and_grows_by_adding(crowd: World) -> None:
    few, more = (picked(crowd, rule("attribute.points", "<", 100) | sample(count=n)) for n in (10, 30))
    assert len(few) == 10 and len(more) == 30 and few < more
    assert all(int(a[1:].partition("@")[0]) < 100 for a in more)
    assert picked(crowd, rule("attribute.points", "<", 100) | sample("autumn", count=10)) != few


def test_whoever_came_later_does_not_move_the_threshold(crowd: World) -> None:
    before = picked(crowd, EVERYBODY | sample(count=20), PEOPLE)
    crowd.add_many(50, lambda n: {"address": f"later{n}@example.org"})
    assert {a for a in picked(crowd, EVERYBODY | sample(count=20), PEOPLE) if not a.startswith("later")} == before


def test_samples_of_other_criteria_and_their_negation(crowd: World) -> None:
    with write(crowd.engine) as connection:
        known = catalogue.load(connection)
        criteria.save(connection, known, "half", EVERYBODY | sample(percent=50), actor="ann")
        criteria.save(connection, known, "ten", EVERYBODY | sample(count=10), actor="ann")
    half = picked(crowd, rule("criteria", "=", "half"))
    ten = picked(crowd, rule("criteria", "=", "ten"))
    assert len(ten) == 10
    assert half | picked(crowd, rule("criteria", "!=", "half")) == picked(crowd, EVERYBODY)
    assert not half & picked(crowd, rule("criteria", "!=", "half"))
    both = {
        "combinator": "and",
        "rules": [*rule("criteria", "=", "half")["rules"], *rule("criteria", "!=", "ten")["rules"]],
    }
    assert picked(crowd, both) == half - ten
    assert picked(crowd, both | sample("x", count=5)) == set(in_order(crowd, "x", half - ten)[:5])
