"""A standby server has a slot in every send of its sending pool from the start, and joins when it becomes active."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, slot_reports
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.slot_report import nobody_sends, say, worth_a_look
from mailer_lib.dispatch.slot_rules import SlotProgress
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import ServerState
from tests.dispatch.real import Running, equip, ready_send, received
from tests.dispatch.world import World


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


def put(world: World, number: int, state: ServerState) -> None:
    with write(world.engine) as connection:
        connection.execute(
            update(dispatch_servers).where(dispatch_servers.c.id == world.servers[number]).values(state=state)
        )


def test_a_standby_server_that_becomes_active_takes_rows_of_the_running_send(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    put(world, 1, ServerState.STANDBY)
    send_id = ready_send(world, [20] * 12, pace_per_s=6.0)
    first = Running(world, send_id, world.slot(0))
    first.until(lambda said: said.settled > 0)
    waiting = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert (waiting.state, waiting.injected) == (SlotState.IDLE, 0)
    assert waiting.reason == "the server is standby; it joins when it becomes active"
    assert not worth_a_look(world.engine, send_id, world.servers[1])
    put(world, 1, ServerState.ACTIVE)
    assert worth_a_look(world.engine, send_id, world.servers[1])
    second = Running(world, send_id, world.slot(1))
    second.until(lambda said: said.leases > 0)
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    first.report()
    second.report()
    joined = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert joined.state is SlotState.DONE
    assert joined.injected > 0
    assert received(sink) == 240
    assert balance(world.engine, world.settings, send_id).balanced


def test_a_server_that_is_put_on_standby_hands_back_what_it_was_not_granted(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [200], pace_per_s=5.0)
    slot = Running(world, send_id, world.slot(0))
    slot.until(lambda said: said.settled > 0)
    put(world, 0, ServerState.STANDBY)
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    assert slot.report().state is SlotState.IDLE
    rest = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert rest.state is SlotState.DONE
    assert rest.injected > 0
    assert received(sink) == 200


def test_a_standby_slot_ends_with_the_send(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    put(world, 1, ServerState.STANDBY)
    send_id = ready_send(world, [5])
    run_slot(world.engine, world.settings, send_id, world.slot(0))
    assert worth_a_look(world.engine, send_id, world.servers[1])
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).state is SlotState.DONE


def test_a_standby_slot_does_not_wait_for_slots_that_have_ended(world: World) -> None:
    put(world, 1, ServerState.STANDBY)
    send_id = ready_send_without_sink(world)
    assert not worth_a_look(world.engine, send_id, world.servers[1])  # the first slot hasn't begun yet
    say(world.engine, send_id, world.slot(0), SlotProgress("local-1", SlotState.FAILED, "no agent"))
    assert not worth_a_look(world.engine, send_id, world.servers[1])  # a retry may come
    with write(world.engine) as connection:
        connection.execute(update(slot_reports).values(at=now() - timedelta(minutes=2)))
    assert worth_a_look(world.engine, send_id, world.servers[1])
    report = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert report.state is SlotState.DRAINED
    assert report.reason.endswith("and the slots that were sending have ended")


def test_an_idle_slot_is_one_that_comes_back(world: World) -> None:
    send_id = world.send()
    say(world.engine, send_id, world.slot(0), SlotProgress("local-1", SlotState.IDLE, "waits for its quota"))
    with write(world.engine) as connection:
        connection.execute(update(slot_reports).values(at=now() - timedelta(hours=9)))
    with read(world.engine) as connection:
        assert not nobody_sends(connection, send_id)


def ready_send_without_sink(world: World) -> int:
    send_id = world.send()
    world.publish(send_id, [10])
    return send_id
