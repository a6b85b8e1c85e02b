"""Who did what is asked with the same tables by a count, a plan and its ranges; a plan's sets stay as they were."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from mailer_lib.audience import behaviour_sets, catalogue, counts, criteria, snapshot
from mailer_lib.audience.behaviour import Behaviour, BehaviourKind
from mailer_lib.audience.behaviour_sets import FrozenPeople, StoredPeople, staged, write_people
from mailer_lib.audience.behaviour_store import root_of
from mailer_lib.audience.plan import Exclude, IdRange, SnapshotError
from mailer_lib.audience.verify import verify
from mailer_lib.database import bulk_stage
from mailer_lib.database.engine import now, read, write
from mailer_lib.shard.files import read_shard
from tests.audience.events import Event, write_events
from tests.audience.world import World, rule

LONG_BEFORE = datetime(2026, 1, 5, 9, tzinfo=UTC)
OPENED = Behaviour(BehaviourKind.OPENED, datetime(2030, 1, 1, tzinfo=UTC))
READERS = rule("behaviour.opened", ">=", {"times": 2, "campaign": "welcome"})


def opens(times: int = 2, at: datetime = LONG_BEFORE) -> list[Event]:
    return [Event("opened", at, "welcome")] * times


@pytest.fixture
def people(world: World) -> dict[str, int]:
    return {name: world.add(f"{name}@example.org") for name in ("ann", "bob", "cleo", "dan")}


def ids_of(people: Any, asked: Behaviour = OPENED) -> list[int]:
    return [contact_id for batch in people.ids(asked) for contact_id in batch]


def test_a_frozen_set_is_the_stored_one_and_gives_any_range(sqlite_world: World, tmp_path: Path) -> None:
    settings = sqlite_world.settings
    write_events(sqlite_world, {contact_id: opens(1) for contact_id in range(1, 300_001, 2)})
    write_people(settings, [OPENED], tmp_path / "sets")
    everybody = list(range(1, 300_001, 2))
    assert ids_of(StoredPeople(settings)) == ids_of(FrozenPeople(tmp_path / "sets")) == everybody
    for first, last in [(1, 1), (2, 2), (131_071, 262_147), (299_999, 400_000), (400_000, 500_000)]:
        within = IdRange(index=0, first=first, last=last)
        expected = [n for n in everybody if first <= n <= last]
        assert ids_of(StoredPeople(settings, within)) == ids_of(FrozenPeople(tmp_path / "sets", within)) == expected


def test_what_is_staged_is_there_for_the_block_and_gone_after_it(world: World) -> None:
    write_events(world, {contact_id: opens(1) for contact_id in range(1, 60_001)})
    query = text(f"SELECT count(*), min(contact_id), max(contact_id) FROM {OPENED.table}")
    with read(world.engine) as connection:
        for _ in range(2):
            with staged(connection, [OPENED], StoredPeople(world.settings)):
                assert tuple(connection.execute(query).one()) == (60_000, 1, 60_000)
        with pytest.raises(DatabaseError):
            connection.execute(query)
    with read(world.engine) as connection:
        with pytest.raises(ZeroDivisionError), staged(connection, [OPENED], StoredPeople(world.settings)):
            raise ZeroDivisionError
        with pytest.raises(DatabaseError):
            connection.execute(query)


def test_only_a_plain_name_can_name_a_temporary_table(sqlite_world: World) -> None:
    with read(sqlite_world.engine) as connection, pytest.raises(ValueError, match="temporary table"):
        bulk_stage.create(connection, "x; DROP TABLE contacts")


def test_a_count_says_who_did_it(world: World, people: dict[str, int]) -> None:
    write_events(world, {people["ann"]: opens(2), people["bob"]: opens(1), people["cleo"]: opens(3)})
    with read(world.engine) as connection:
        known = catalogue.load(connection)
        arguments = (connection, world.settings, READERS, known, world.newsletter)
        assert counts.count(*arguments).matching == 2
        assert counts.count(*arguments, now=LONG_BEFORE - timedelta(days=1)).matching == 0


def test_nobody_did_anything_before_the_first_refresh(world: World, people: dict[str, int]) -> None:
    with read(world.engine) as connection:
        known, settings, list_id = catalogue.load(connection), world.settings, world.newsletter
        assert counts.count(connection, settings, READERS, known, list_id).matching == 0
        never = rule("behaviour.sent", "null")
        assert counts.count(connection, settings, never, known, list_id).matching == 4


def test_a_plan_freezes_who_did_it_for_all_its_ranges_and_retries(world: World, people: dict[str, int]) -> None:
    write_events(world, {people["ann"]: opens(2), people["bob"]: opens(2), people["dan"]: opens(1)})
    write_criteria(world, "often", READERS | {"sample": {"count": 10, "seed": "x"}})
    often = rule("criteria", "=", "often")["rules"]
    once = rule("behaviour.opened", "=", {"times": 1, "campaign": "welcome"})["rules"]
    tree = {"combinator": "or", "rules": [*often, *once]}
    write_criteria(world, "bobs", rule("behaviour.sent", "notNull"))
    plan = snapshot.plan_snapshot(
        world.engine,
        world.settings,
        world.add_send(),
        rules=tree,
        list_id=world.newsletter,
        exclude=Exclude(criteria=("bobs",)),
    )
    assert plan.matching == 3
    write_events(world, {people["cleo"]: opens(5, now())})  # and all else is gone
    made = snapshot.build(world.engine, world.settings, plan)
    folder = plan.published_folder(world.settings)
    assert {who.contact_id for entry in made.shards for _, who in read_shard(folder / entry.path)} == {
        people[name] for name in ("ann", "bob", "dan")
    }
    assert verify(folder) == []
    assert not (folder / behaviour_sets.FOLDER).exists()


def write_criteria(world: World, name: str, tree: dict[str, Any]) -> None:
    with write(world.engine) as connection:
        criteria.save(connection, catalogue.load(connection), name, tree, actor="test")


def test_excluded_criteria_may_ask_for_behaviour(world: World, people: dict[str, int]) -> None:
    write_events(world, {people["ann"]: opens(2)})
    write_criteria(world, "readers", READERS)
    plan = snapshot.plan_snapshot(
        world.engine,
        world.settings,
        world.add_send(),
        rules=rule("list", "=", "newsletter"),
        list_id=world.newsletter,
        exclude=Exclude(criteria=("readers",)),
    )
    made = snapshot.build(world.engine, world.settings, plan)
    assert (made.counts.frozen, made.counts.by_reason) == (3, {"excluded-list": 1})


def test_a_set_that_is_gone_is_a_sentence(world: World, people: dict[str, int]) -> None:
    arguments = {"rules": READERS, "list_id": world.newsletter}
    write_events(world, {people["ann"]: opens(2)})
    plan = snapshot.plan_snapshot(world.engine, world.settings, world.add_send(), **arguments)
    shutil.rmtree(plan.folder(world.settings) / behaviour_sets.FOLDER)
    with pytest.raises(SnapshotError, match="opened 2 or more times in welcome"):
        snapshot.build_range(world.engine, world.settings, plan, 0)
    assert root_of(world.settings).exists()
