"""Two servers that are each held to ten messages a second, 600 people and 45 seconds: real agents, real sink.

The same servers and settings in both tests; only what the receivers answer differs.
"""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mailer_lib.database.engine import now
from mailer_lib.dispatch import backlog, scale_book
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.scale_apply import Applier
from mailer_lib.dispatch.scale_book import StoredDecision
from mailer_lib.dispatch.scaling import Policy
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Outcome, ScaleAction, ScaleFinding, ServerState
from tests.dispatch.real import Running, equip, ready_send, received
from tests.dispatch.test_backlog import put
from tests.dispatch.world import PROVIDERS, World

PER_HOUR, SECONDS = 36_000, 45
TRY_LATER = "{defer: {code: 451, enhanced: 4.7.1, text: Try later, first: 1000, share: 1.0}}"
DEFERS = "domains: {" + ", ".join(f"{name}.example: {TRY_LATER}" for name in PROVIDERS) + "}"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


@pytest.fixture
def late(sqlite_world: World, sink: SinkProcess, monkeypatch: pytest.MonkeyPatch) -> World:
    """One server in service, and one on standby whose address is warm."""
    world = sqlite_world
    equip(world, sink)
    for number in range(2):
        put(world, number, per_hour=PER_HOUR)
    put(world, 1, state=ServerState.STANDBY, served_until=now() - timedelta(days=1))
    at_once = Policy(confirm=timedelta(0), warm_lead=timedelta(0))
    for module in (backlog, scale_book):
        monkeypatch.setattr(module, "policy_of", lambda settings: at_once)
    return world


def look(world: World) -> StoredDecision:
    (made,) = scale_book.look(world.engine, world.settings, actor="test")
    return made


def begin(world: World) -> tuple[int, Running]:
    send_id = ready_send(world, [20] * 30, expires_at=now() + timedelta(seconds=SECONDS), started_at=now())
    return send_id, Running(world, send_id, world.slot(0))


def test_a_warm_standby_joins_the_send_that_one_server_would_not_finish(late: World, sink: SinkProcess) -> None:
    send_id, first = begin(late)
    first.until(lambda said: said.settled > 0)
    assert run_slot(late.engine, late.settings, send_id, late.slot(1)).state is SlotState.IDLE
    made = look(late)
    assert (made.action, made.server, made.finding) == (ScaleAction.ACTIVATE, "local-2", ScaleFinding.LATE), made.reason
    scale_book.approve(late.engine, made.id, by="ann")
    Applier(late.engine, late.settings, "test").apply(made.id)
    second = Running(late, send_id, late.slot(1))
    second.until(lambda said: said.injected > 0)
    for slot in (first, second):
        slot.stop.set()
    injected = sum(slot.report().injected for slot in (first, second))
    assert injected == balance(late.engine, late.settings, send_id)[Outcome.INJECTED] == received(sink)


def test_nothing_is_added_when_it_is_the_receivers_who_defer(late: World, sink: SinkProcess) -> None:
    sink.set_rules(DEFERS)
    _, first = begin(late)
    first.until(lambda said: said.deferred >= 40)
    while (made := look(late)).finding is not ScaleFinding.RECEIVERS_BIND:  # not before they have said so often enough
        assert made.action is ScaleAction.NONE, made.reason
        time.sleep(0.5)
    assert "deferred" in made.reason
    first.stop.set()
    first.report()
