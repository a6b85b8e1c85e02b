"""Settled ledgers and raw events become small files, whatever came in between and however often."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import select, update

from mailer_lib.agent.ledger import Final, Header, Opened, encode
from mailer_lib.audience import behaviour_store, snapshot
from mailer_lib.audience.amending import ERASED, amend
from mailer_lib.audience.behaviour_store import refresh, root_of
from mailer_lib.database.engine import write
from mailer_lib.database.schema import sends, snapshots
from mailer_lib.identity import message_key
from mailer_lib.shard.files import read_shard
from mailer_lib.terms import Outcome
from mailer_lib.tokens import Token, TokenKind
from mailer_lib.web.events import EventLog
from mailer_lib.web.user_agents import AgentClass
from tests.audience.world import ON_THE_LIST, World, rule

ROOT = Path(__file__).parents[2]
NOON = datetime(2026, 11, 20, 12, 0, 0, 250_000, tzinfo=UTC)
PEOPLE = ("ann", "bob", "cleo", "dan")


@pytest.fixture
def people(world: World) -> dict[str, int]:
    return {name: world.add(f"{name}@example.org") for name in PEOPLE}


def send(world: World, edition: str = "1", **more: Any) -> tuple[int, Path]:
    """Frozen for everybody: id and folder."""
    send_id = world.add_send(edition)
    arguments = {"rules": ON_THE_LIST, "list_id": world.newsletter} | more
    plan = snapshot.plan_snapshot(world.engine, world.settings, send_id, **arguments)
    snapshot.build(world.engine, world.settings, plan)
    return send_id, plan.published_folder(world.settings)


def ledger(folder: Path, told: dict[str, Outcome], epoch: int = 1, at: datetime = NOON) -> Path:
    """A settled ledger of the only shard."""
    rows = {who.address.partition("@")[0]: row for row, who in read_shard(next(folder.glob("shard=*/*.parquet")))}
    t_ms = round(at.timestamp() * 1000)
    finals = [
        Final(rows[name], outcome, 250, "", "", "1.1", 0, "other", t_ms, 'a "b"') for name, outcome in told.items()
    ]
    path = folder / "ledgers" / f"0000.p1.e{epoch}.ledger"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(map(encode, [Header("j", 0, 1, epoch, 0), Opened(1, "b", 1, 0), *finals])))
    return path


def happened(
    world: World, send_id: int, contact_id: int, kind: str, at: datetime, agent: AgentClass = AgentClass.PERSON
) -> None:
    key = message_key(world.settings.identity().send_key("spring-sale", "1"), contact_id.to_bytes(16, "big"))
    log = EventLog(world.settings.storage, clock=at.timestamp)
    log.add(kind, Token(TokenKind.CLICK, send_id, contact_id, key, 1), agent)
    log.close()


def stored(world: World) -> list[tuple[Any, ...]]:
    tables = (pq.read_table(path) for path in sorted(root_of(world.settings).rglob("*.parquet")))
    return [tuple(row.values()) for table in tables for row in table.to_pylist()]


def test_outcomes_of_ledgers_become_what_was_sent_and_bounced(world: World, people: dict[str, int]) -> None:
    _, folder = send(world)
    told = {"ann": Outcome.INJECTED, "bob": Outcome.REJECTED, "cleo": Outcome.UNKNOWN, "dan": Outcome.SUPPRESSED}
    ledger(folder, told)
    assert refresh(world.engine, world.settings).rows == 3
    at = NOON.replace(tzinfo=None)
    assert stored(world) == [
        (people["ann"], "spring-sale", "1", "sent", at, False),
        (people["bob"], "spring-sale", "1", "bounced", at, False),
        (people["cleo"], "spring-sale", "1", "sent", at, False),
    ]


def test_events_become_opens_and_clicks_by_day_and_say_whether_a_machine_did_it(
    world: World, people: dict[str, int]
) -> None:
    send_id, _ = send(world)
    later = NOON + timedelta(days=1)
    happened(world, send_id, people["bob"], "click", NOON)
    happened(world, send_id, people["ann"], "open", NOON, AgentClass.PROXY)
    happened(world, send_id, people["ann"], "view", later)
    happened(world, send_id, people["ann"], "unsubscribe", later)
    happened(world, send_id, 0, "open", later)
    assert refresh(world.engine, world.settings).days == 2
    assert stored(world) == [
        (people["ann"], "spring-sale", "1", "opened", NOON.replace(tzinfo=None), True),
        (people["bob"], "spring-sale", "1", "clicked", NOON.replace(tzinfo=None), False),
        (people["ann"], "spring-sale", "1", "opened", later.replace(tzinfo=None), False),
    ]


def test_only_what_is_new_is_read_and_what_was_there_stays(world: World, people: dict[str, int]) -> None:
    send_id, folder = send(world)
    first = ledger(folder, {"cleo": Outcome.INJECTED})
    happened(world, send_id, people["ann"], "open", NOON)
    assert refresh(world.engine, world.settings).rows == 2
    assert refresh(world.engine, world.settings) == behaviour_store.Refreshed()
    first.unlink()  # it isn't asked for again
    ledger(folder, {"ann": Outcome.INJECTED}, epoch=2)
    assert refresh(world.engine, world.settings).phases == 1
    happened(world, send_id, people["ann"], "open", NOON)
    assert refresh(world.engine, world.settings).days == 1
    kinds = [(row[0], row[3]) for row in stored(world)]
    assert kinds == [(people["ann"], "opened")] * 2 + [(people["ann"], "sent"), (people["cleo"], "sent")]


def test_tests_do_not_count(world: World, people: dict[str, int]) -> None:
    send_id, folder = send(world)
    with write(world.engine) as connection:
        connection.execute(update(sends).values(mode="test"))
    ledger(folder, {"ann": Outcome.INJECTED})
    happened(world, send_id, people["ann"], "open", NOON)
    refresh(world.engine, world.settings)
    assert stored(world) == []


def test_what_can_not_be_read_is_named_and_the_rest_goes_on(world: World, people: dict[str, int]) -> None:
    _, broken = send(world, "1")
    send_id, folder = send(world, "2")
    ledger(broken, {"ann": Outcome.INJECTED})
    next(broken.glob("shard=*/*.parquet")).write_bytes(b"no parquet")
    ledger(folder, {"ann": Outcome.INJECTED})
    happened(world, send_id, people["ann"], "open", NOON)
    (raw,) = (world.settings.storage / "events" / "raw").rglob("*.jsonl")
    with raw.open("a") as file:
        file.write('rubbish\n{"t": "now", "kind": "open"}\n{"t": 1795490000.1, "kind": "cl')
    found = refresh(world.engine, world.settings)
    assert [row[2] for row in stored(world)] == ["2", "2"]
    (phase,), (events,) = found.unread, found.damaged
    assert phase.startswith("spring-sale#1 phase 1: ")
    assert f"{raw}: 3 lines aren't events" in events
    with pytest.raises(snapshot.SnapshotError, match="spring-sale#1 phase 1"):
        send(world, "3", rules=rule("behaviour.sent", "null"))


def test_an_erased_person_is_in_no_file_that_is_made_afterwards(world: World, people: dict[str, int]) -> None:
    _, folder = send(world)
    ((snapshot_id,),) = world.fetch(select(snapshots.c.id))
    ledger(folder, {"ann": Outcome.INJECTED, "bob": Outcome.INJECTED})
    amend(world.engine, world.settings, snapshot_id, [world.hash_of("ann@example.org")], ERASED)
    refresh(world.engine, world.settings)
    assert [row[0] for row in stored(world)] == [people["bob"]]


def test_the_id_of_an_erased_person_is_never_given_again(world: World, people: dict[str, int]) -> None:
    world.remove(people["dan"])
    assert world.add("eve@example.org") > people["dan"]


KILLER = """
import os, sys
from mailer_lib.audience import behaviour_store
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings

left = int(sys.argv[1])

def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call

behaviour_store.sync_folder = counted(behaviour_store.sync_folder)
behaviour_store.os.fsync = counted(os.fsync)
behaviour_store.arrow_reader = counted(behaviour_store.arrow_reader)
settings = load_settings()
behaviour_store.refresh(open_engine(settings.url), settings)
"""


def kill_points() -> Iterator[int]:
    yield from range(6)  # two files: a query, an fsync of the file and one of the folder each


@pytest.mark.fault
def test_killed_anywhere_the_next_refresh_gives_the_same(world: World, people: dict[str, int]) -> None:
    send_id, folder = send(world)
    ledger(folder, {"ann": Outcome.INJECTED, "bob": Outcome.REJECTED})
    happened(world, send_id, people["cleo"], "open", NOON)
    refresh(world.engine, world.settings)
    whole = stored(world)
    for left in kill_points():
        shutil.rmtree(root_of(world.settings))
        killed = subprocess.run([sys.executable, "-c", KILLER, str(left)], cwd=ROOT, check=False)
        assert killed.returncode == -9
        refresh(world.engine, world.settings)
        assert stored(world) == whole
        assert not [path for path in root_of(world.settings).rglob(".*") if path.name != ".lock"]
