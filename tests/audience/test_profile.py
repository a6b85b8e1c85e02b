"""A profile counts what reading the rows in plain Python counts."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete

from mailer_lib.audience import profile as profiles
from mailer_lib.audience.amending import ERASED, amend
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.audience.profile import PERCENTS, Column, ColumnKind, Profile, profile
from mailer_lib.audience.published import PublishedSnapshot, find_published
from mailer_lib.audience.snapshot import build, plan_snapshot
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import contacts, subscriptions
from tests.audience.world import ATTRIBUTES, CHOICES, ON_THE_LIST, World, rule


def frozen(world: World, edition: str = "1", **more: Any) -> PublishedSnapshot:
    arguments = {"rules": ON_THE_LIST, "list_id": world.newsletter, "attributes": list(ATTRIBUTES)} | more
    plan = plan_snapshot(world.engine, world.settings, world.add_send(edition), **arguments)
    build(world.engine, world.settings, plan)
    with read(world.engine) as connection:
        return find_published(connection, world.settings, "spring-sale", edition)


def column(found: Profile, name: str) -> Column:
    return next(each for each in found.columns if each.name == name)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many have at most."""
    return sorted(values)[max(0, math.ceil(percent * len(values) / 100) - 1)]


numbers = st.lists(st.none() | st.sampled_from([0, 1, 2.5, 7, 100]) | st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(points=numbers, alone=st.booleans())
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_numbers_spread_as_in_plain_python_by_either_way(
    sqlite_world: World, points: list[float | None], alone: bool
) -> None:
    """``alone``: whether the column is taken for one that has another value for almost everybody."""
    world = sqlite_world
    with write(world.engine) as connection:
        connection.execute(delete(subscriptions))
        connection.execute(delete(contacts))
    world.add_many(
        len(points), lambda n: {"address": f"p{n}@example.org", "attributes": {"points": points[n], "vip": True}}
    )
    snapshot = frozen(world, f"{now():%H%M%S%f}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(profiles, "_MANY", -1 if alone else len(points))
        found = column(profile(snapshot), "attribute.points")
    some = [value for value in points if value is not None]
    assert found.missing == len(points) - len(some)
    if not some:
        assert found.spread is None
        return
    assert found.spread is not None
    assert (found.spread.smallest, found.spread.largest) == (min(some), max(some))
    assert found.spread.percentiles == {percent: percentile(some, percent) for percent in PERCENTS}
    if not alone:
        assert found.different == len(set(some))


PEOPLE = [
    {"address": "a@gmail.com", "locale": "de", "attributes": {"vip": True, "interests": ["ski", "art"]}},
    {"address": "b@gmail.com", "locale": "de", "attributes": {"vip": False, "interests": ["ski"]}},
    {"address": "c@example.org", "locale": None, "attributes": {"grade": "B", "interests": []}},
    {"address": "d@example.org", "locale": "fr", "attributes": {"customer_since": "2024-02-29", "city": 'a "b"'}},
    {"address": "e@example.org", "locale": "fr", "attributes": {"customer_since": "2024-02-01", "tier": "gold"}},
    {"address": "f@example.org", "locale": "fr", "attributes": {"customer_since": "2023-12-31", "tier": "gold"}},
]


@pytest.fixture
def six(world: World) -> PublishedSnapshot:
    world.add_many(len(PEOPLE), lambda n: PEOPLE[n])
    return frozen(world)


def test_every_kind_of_column(six: PublishedSnapshot) -> None:
    found = profile(six)
    assert (found.name, found.phase, found.people, found.blanked) == ("spring-sale#1", 1, 6, 0)
    expected = {
        "provider": (ColumnKind.TEXT, 0, 2, (("other", 4), ("gmail", 2))),
        "domain": (ColumnKind.TEXT, 0, 2, (("example.org", 4), ("gmail.com", 2))),
        "locale": (ColumnKind.TEXT, 1, 2, (("fr", 3), ("de", 2))),
        "timezone": (ColumnKind.TEXT, 6, 0, ()),
        "variant": (ColumnKind.TEXT, 0, 1, (("0", 6),)),
        "attribute.vip": (ColumnKind.BOOLEAN, 4, 2, (("false", 1), ("true", 1))),
        "attribute.interests": (ColumnKind.TEXT_LIST, 4, 2, (("ski", 2), ("art", 1))),
        "attribute.grade": (ColumnKind.TEXT, 5, 1, (("B", 1),)),
        "attribute.customer_since": (ColumnKind.DATE, 3, 3, (("2023-12", 1), ("2024-02", 2))),
        "attribute.city": (ColumnKind.TEXT, 5, 1, (('a "b"', 1),)),
        "attribute.tier": (ColumnKind.TEXT, 4, 1, (("gold", 2),)),
        "attribute.points": (ColumnKind.NUMBER, 6, 0, ()),
    }
    assert {c.name: (c.kind, c.missing, c.different, c.values) for c in found.columns} == expected
    assert json.loads(json.dumps(asdict(found)))["people"] == 6
    assert set(CHOICES["grade"]) > {"B"}


def test_the_most_frequent_come_first_and_the_rest_is_counted(world: World) -> None:
    cities = [f"town {n % 30}" if n < 90 else "big" for n in range(130)]
    world.add_many(130, lambda n: {"address": f"p{n}@example.org", "attributes": {"city": cities[n]}})
    found = column(profile(frozen(world)), "attribute.city")
    assert (found.different, len(found.values), found.values[0]) == (31, 20, ("big", 40))
    assert dict(found.values).items() <= Counter(cities).items()


def test_blanked_people_are_not_counted(world: World, six: PublishedSnapshot) -> None:
    amend(world.engine, world.settings, six.id, [world.hash_of("d@example.org")], ERASED)
    found = profile(six)
    assert (found.people, found.blanked) == (5, 1)
    assert column(found, "locale").values == (("de", 2), ("fr", 2))
    assert column(found, "attribute.customer_since").missing == 3


def test_an_empty_audience_has_an_empty_profile(sqlite_world: World) -> None:
    found = profile(frozen(sqlite_world, rules=rule("locale", "=", "tlh")))
    assert found.people == 0 and {c.values for c in found.columns} == {()}


def test_a_missing_file_is_a_sentence(six: PublishedSnapshot) -> None:
    next(six.folder.glob("shard=*/*")).unlink()
    with pytest.raises(SnapshotError, match="can't be read"):
        profile(six)
