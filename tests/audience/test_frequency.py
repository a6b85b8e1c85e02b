"""The frequency cap counts what other sends sent and have still to send; of two that freeze together one passes."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert, select, update

from mailer_lib.agent.ledger import Final, Header, Opened, encode
from mailer_lib.audience import frequency, publication, snapshot
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import Exclude, FrequencyCap, SnapshotError, SnapshotPlan
from mailer_lib.audience.sharing import published_path
from mailer_lib.audience.verify import verify
from mailer_lib.contacts import consent
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import campaigns, sends, shards
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.store import StorePath, arrow_source, store
from mailer_lib.terms import ExclusionReason, Outcome, SendState, SuppressionReason
from tests.audience.world import LONG_AGO, ON_THE_LIST, World

R = ExclusionReason
PEOPLE = ("ann", "bob", "cleo", "dan")


@pytest.fixture
def people(world: World) -> World:
    for name in PEOPLE:
        world.add(f"{name}@example.org")
    return world


def capped(messages: int = 1, days: int = 7, campaign_class: str = "marketing") -> Exclude:
    return Exclude(frequency_cap=FrequencyCap(messages=messages, days=days, campaign_class=campaign_class))


def plan(world: World, send_id: int, exclude: Exclude = Exclude(), **more: Any) -> SnapshotPlan:  # noqa: B008
    made = snapshot.plan_snapshot(
        world.engine, world.settings, send_id, rules=ON_THE_LIST, list_id=world.newsletter, exclude=exclude, **more
    )
    for ids in made.ranges:
        snapshot.build_range(world.engine, world.settings, made, ids.index)
    return made


def publish(world: World, made: SnapshotPlan) -> Manifest:
    return publication.publish(world.engine, world.settings, made)


def folder_of(world: World, made: SnapshotPlan) -> StorePath:
    path = published_path(world.engine, made)
    assert path is not None
    return store(world.settings) / path


def frozen(world: World, made: SnapshotPlan) -> set[str]:
    folder = folder_of(world, made)
    assert verify(folder) == []
    entries = publish(world, made).shards
    return {r.address.partition("@")[0] for entry in entries for _, r in read_shard(folder / entry.path)}


def reasons(world: World, made: SnapshotPlan) -> list[ExclusionReason]:
    files = folder_of(world, made).glob("excluded/*")
    return sorted(R(row["reasons"]) for file in files for row in pq.read_table(arrow_source(file)).to_pylist())


def send(world: World, edition: str, state: SendState = SendState.RUNNING, **columns: Any) -> SnapshotPlan:
    """Another send, frozen for everybody."""
    made = plan(world, world.add_send(edition))
    publish(world, made)
    set_state(world, made, state, **columns)
    return made


def set_state(world: World, made: SnapshotPlan, state: SendState, **columns: Any) -> None:
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == made.send_id).values(state=state, **columns))


def outcomes(world: World, made: SnapshotPlan, told: Mapping[str, Outcome], at: datetime, epoch: int = 1) -> None:
    """A settled ledger of each shard of the send."""
    folder = folder_of(world, made)
    for entry in publish(world, made).shards:
        lines = [Header("j", entry.number, 1, epoch, 0), Opened(1, "b", 1, 0)]
        rows = {r.address.partition("@")[0]: row for row, r in read_shard(folder / entry.path)}
        finals = [
            Final(rows[name], outcome, 250, "2.0.0", "q", "1.1", 0, "other", round(at.timestamp() * 1000), 'a "b" \\')
            for name, outcome in told.items()
            if name in rows
        ]
        path = folder / "ledgers" / f"{entry.number:04d}.p1.e{epoch}.ledger"
        if isinstance(path, Path):
            path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(encode(line) for line in [*lines, *finals]))


@pytest.mark.usefixtures("any_store")
def test_what_others_have_frozen_and_not_yet_sent_counts(people: World) -> None:
    send(people, "other")
    mine = plan(people, people.add_send("mine"), capped())
    made = publish(people, mine)
    assert frozen(people, mine) == set()
    assert reasons(people, mine) == [R.FREQUENCY_CAP] * 4
    assert made.counts.by_reason == {"frequency-cap": 4}


def test_without_a_cap_or_below_it_all_pass(people: World) -> None:
    send(people, "other")
    free, below = plan(people, people.add_send("free")), plan(people, people.add_send("below"), capped(3))
    publish(people, free)
    publish(people, below)
    assert frozen(people, free) == frozen(people, below) == set(PEOPLE)
    third = plan(people, people.add_send("third"), capped(3))
    publish(people, third)
    assert frozen(people, third) == set()


@pytest.mark.usefixtures("any_store")
def test_an_outcome_counts_when_the_message_was_or_may_have_been_handed_over(people: World) -> None:
    told = {"ann": Outcome.INJECTED, "bob": Outcome.UNKNOWN, "cleo": Outcome.REJECTED, "dan": Outcome.CANCELLED}
    outcomes(people, send(people, "other", SendState.FINISHED, finished_at=now()), told, now() - timedelta(days=1))
    mine = plan(people, people.add_send("mine"), capped())
    publish(people, mine)
    assert frozen(people, mine) == {"cleo", "dan"}


def test_only_the_last_days_count(people: World) -> None:
    old = send(people, "old")
    outcomes(people, old, dict.fromkeys(PEOPLE[:2], Outcome.INJECTED), now() - timedelta(days=8))
    outcomes(people, old, dict.fromkeys(PEOPLE[2:], Outcome.INJECTED), now() - timedelta(days=6), epoch=2)
    week, longer = plan(people, people.add_send("week"), capped()), plan(people, people.add_send("9"), capped(days=9))
    publish(people, week)
    set_state(people, week, SendState.REJECTED, finished_at=now())
    publish(people, longer)
    assert frozen(people, week) == {"ann", "bob"}
    assert frozen(people, longer) == set()


@pytest.mark.parametrize("state", [SendState.REJECTED, SendState.FAILED, SendState.STOPPED, SendState.EXPIRED])
def test_a_send_that_ended_counts_only_for_what_it_may_have_sent(people: World, state: SendState) -> None:
    other = send(people, "other", state, finished_at=now())
    with write(people.engine) as connection:
        connection.execute(update(shards).where(shards.c.send_id == other.send_id).values(next_row=1))
    (entry,) = publish(people, other).shards
    first = next(r for _, r in read_shard(other.published_folder(people.settings) / entry.path))
    mine = plan(people, people.add_send("mine"), capped())
    publish(people, mine)
    assert frozen(people, mine) == set(PEOPLE) - {first.address.partition("@")[0]}


def test_tests_and_other_classes_do_not_count(people: World) -> None:
    send(people, "test-1", mode="test")
    with write(people.engine) as connection:
        row = dict(connection.execute(select(campaigns).where(campaigns.c.name == "spring-sale")).mappings().one())
        row |= {"id": None, "name": "invoices", "definition": {"class": "service"}}
        invoices = connection.execute(insert(campaigns).values(row)).inserted_primary_key[0]
    send(people, "1", campaign_id=invoices)
    marketing, service = (
        plan(people, people.add_send("m"), capped()),
        plan(people, people.add_send("s"), capped(1, 7, "service")),
    )
    publish(people, marketing)
    publish(people, service)
    assert frozen(people, marketing) == set(PEOPLE)
    assert frozen(people, service) == set()


@pytest.mark.usefixtures("any_store")
def test_of_two_that_freeze_together_the_second_counts_the_first(
    people: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have counted before either is published."""
    one, two = plan(people, people.add_send("one"), capped()), plan(people, people.add_send("two"), capped())
    assemble, calls = publication.assemble, []

    def late(*arguments: Any) -> Manifest:
        made = assemble(*arguments)
        calls.append(arguments[1].edition)
        if calls == ["one"]:
            publish(people, two)  # while the first has its files, but isn't recorded
        return made

    monkeypatch.setattr(publication, "assemble", late)
    publish(people, one)
    assert calls == ["one", "two", "one"]
    assert frozen(people, two) == set(PEOPLE)
    assert frozen(people, one) == set()


def test_all_reasons_are_told(people: World) -> None:
    send(people, "other")
    with write(people.engine) as connection:
        bob = people.hash_of("bob@example.org")
        consent.suppress(connection, address_hash=bob, reason=SuppressionReason.MANUAL, source="t", at=LONG_AGO)
    mine = plan(people, people.add_send("mine"), capped())
    made = publish(people, mine)
    assert reasons(people, mine) == [R.FREQUENCY_CAP] * 3 + [R.FREQUENCY_CAP | R.SUPPRESSED_ADDRESS]
    assert made.counts.by_reason == {"frequency-cap": 4, "suppressed-address": 1}


@pytest.mark.usefixtures("any_store")
def test_a_shard_that_is_missing_is_named(sqlite_world: World) -> None:
    sqlite_world.add("ann@example.org")
    other = send(sqlite_world, "other")
    (entry,) = publish(sqlite_world, other).shards
    (folder_of(sqlite_world, other) / entry.path).unlink()
    mine = plan(sqlite_world, sqlite_world.add_send("mine"), capped())
    with pytest.raises(SnapshotError, match=r"part-0.parquet is missing, so the frequency cap can't be counted"):
        publish(sqlite_world, mine)


@pytest.mark.usefixtures("any_store")
def test_a_count_that_was_killed_leaves_nothing_behind(people: World) -> None:
    send(people, "other")
    mine = plan(people, people.add_send("mine"), capped())
    left: Path = mine.folder(people.settings) / f"{frequency.WORK_PREFIX}abc"
    left.mkdir()
    publish(people, mine)
    assert verify(folder_of(people, mine)) == []
