"""Recalled messages in the books: real agents, a real Exim, and everything that reads ledgers."""

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from mailer_lib.contacts.consent import suppress
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, leases, rollups_hourly, sends, shards, suppressions
from mailer_lib.dispatch import control
from mailer_lib.dispatch.agent_keeper import AgentKeeper
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.channels import open_channel
from mailer_lib.dispatch.close import close_send
from mailer_lib.dispatch.recall_due import due_recalls
from mailer_lib.dispatch.recall_send import Recalled, recall_send
from mailer_lib.dispatch.row_outcome import row_outcome
from mailer_lib.dispatch.sends import SendRecord, get_send
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.slot_report import say
from mailer_lib.dispatch.slot_rules import SlotProgress
from mailer_lib.dispatch.topup import already_sent
from mailer_lib.fleet import servers
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, SendState, SuppressionReason
from tests.dispatch.exim_world import equip_with_exim, queue_of
from tests.dispatch.ledgers import leased
from tests.dispatch.real import Running, job_folder, ready_send
from tests.dispatch.world import World
from tests.mta.exim import Exim

SEND = "spring-sale#1"


@pytest.fixture
def exim(tmp_path: Path) -> Iterator[Exim]:
    with Exim(tmp_path / "mta") as started:
        yield started
        assert not started.panics


def outcomes_in_rollups(world: World, send_id: int) -> dict[str, int]:
    with read(world.engine) as connection:
        rows = connection.execute(
            select(rollups_hourly.c.metric, func.sum(rollups_hourly.c.count))
            .where(rollups_hourly.c.send_id == send_id)
            .group_by(rollups_hourly.c.metric)
        )
        return {metric: int(count) for metric, count in rows if count}


def test_a_stopped_send_books_what_was_queued_as_cancelled(world: World, exim: Exim) -> None:
    equip_with_exim(world, exim)
    send_id = ready_send(world, [40, 40])
    control.set_pace(world.engine, SEND, 20, "ann")
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.injected >= 15)
    lying = queue_of(exim, send_id).messages()
    queue_of(exim, send_id).hold([])
    subprocess.run([*exim.command.split(), f"-qGs{send_id}", "-Mg", lying[0].queue_id], check=True)  # it bounces
    control.stop(world.engine, SEND, "ann")
    assert running.report().state is SlotState.STOPPED
    books = close_send(world.engine, world.settings, send_id)

    assert books.balanced
    log = (job_folder(world, world.slot()) / "agent.log").read_text()
    assert books[Outcome.INJECTED] == 1, log  # what Exim itself gave up
    assert books[Outcome.CANCELLED] == 79
    assert books.recalled >= 14
    assert not [message for message in queue_of(exim, send_id).messages() if message.queue_id != lying[0].queue_id]
    assert outcomes_in_rollups(world, send_id) == {"injected": 1, "cancelled": 79}
    assert len(already_sent(world.engine, world.settings, send_id)) == 1  # a top-up sends to all others
    with read(world.engine) as connection:
        assert connection.scalar(select(func.sum(leases.c.injected))) == 1
        assert connection.scalar(select(sends.c.state)) == SendState.STOPPED
        assert connection.scalar(select(func.count()).where(audit_log.c.action == "send.recalled")) >= 1
        both = connection.scalars(select(shards.c.id)).all()
        said = [row_outcome(connection, store(world.settings), shard, row) for shard in both for row in range(40)]
    assert any(word.reply and "recalled: the send was stopped" in word.reply for word in said)


def test_a_person_who_leaves_after_the_hand_over_is_booked_as_cancelled(world: World, exim: Exim) -> None:
    equip_with_exim(world, exim)
    send_id = ready_send(world, [20, 20])
    control.set_pace(world.engine, SEND, 10, "ann")
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.injected >= 5)
    address = re.findall(r"^p\d+@\S+$", _recipients(exim)[0], re.MULTILINE)[0]
    gone = world.settings.identity().address_hash(address)
    with write(world.engine) as connection:
        suppress(connection, address_hash=gone, reason=SuppressionReason.UNSUBSCRIBED, source="test", at=now())
    deadline = time.monotonic() + 20
    while len(exim.queued()) and any(address in text for text in _recipients(exim)) and time.monotonic() < deadline:
        time.sleep(0.1)
    control.set_pace(world.engine, SEND, None, "ann")
    assert running.report().state is SlotState.DONE
    books = close_send(world.engine, world.settings, send_id)
    assert books.balanced
    assert (books[Outcome.INJECTED], books[Outcome.CANCELLED], books.recalled) == (39, 1, 1)
    assert len(exim.queued()) == 39
    assert not any(address in text for text in _recipients(exim))


def test_a_send_that_expires_takes_back_what_lies_in_the_queue(world: World, exim: Exim) -> None:
    equip_with_exim(world, exim)
    send_id = ready_send(world, [60])
    control.set_pace(world.engine, SEND, 10, "ann")
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.injected >= 5)
    with write(world.engine) as connection:
        connection.execute(update(sends).values(expires_at=now() - timedelta(seconds=1)))
    assert running.report().state is SlotState.EXPIRED
    books = close_send(world.engine, world.settings, send_id)
    assert books.balanced
    log = (job_folder(world, world.slot()) / "agent.log").read_text()
    assert books[Outcome.INJECTED] == 0, log
    assert books[Outcome.CANCELLED] == books.recalled >= 5
    assert books[Outcome.CANCELLED] + books[Outcome.EXPIRED] == 60
    assert not exim.queued()


def test_a_pause_reaches_the_queue_of_a_slot_whose_agent_has_ended(sqlite_world: World, exim: Exim) -> None:
    world = sqlite_world
    equip_with_exim(world, exim)
    send_id = ready_send(world, [5, 5])
    leased(world, send_id, server=1)  # so there are rows left, and none for this slot
    say(world.engine, send_id, world.slot(1), SlotProgress("local-2", SlotState.SENDING))
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.IDLE
    with open_channel(server_of(world), world.settings, send_of(world, send_id), world.slot()) as channel:
        assert AgentKeeper(channel, "local-1").end()
    lying = queue_of(exim, send_id)
    for act, frozen in ((control.pause, True), (control.resume, False)):
        act(world.engine, SEND, "ann")
        assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.IDLE
        deadline = time.monotonic() + 20
        while {message.frozen for message in lying.messages()} != {frozen} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [message.frozen for message in lying.messages()] == [frozen] * 5
        with open_channel(server_of(world), world.settings, send_of(world, send_id), world.slot()) as channel:
            assert AgentKeeper(channel, "local-1").end()


def server_of(world: World) -> DispatchServer:
    with read(world.engine) as connection:
        return servers.get(connection, world.slot().server)


def send_of(world: World, send_id: int) -> SendRecord:
    with read(world.engine) as connection:
        return get_send(connection, send_id)


def test_a_send_that_ended_in_failure_keeps_its_queue(world: World, exim: Exim) -> None:
    equip_with_exim(world, exim)
    send_id = ready_send(world, [60])
    control.set_pace(world.engine, SEND, 10, "ann")
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.injected >= 5)
    with write(world.engine) as connection:
        connection.execute(update(sends).values(state=SendState.FAILED))
    assert running.report().state is SlotState.STOPPED
    assert balance(world.engine, world.settings, send_id)[Outcome.INJECTED] == len(exim.queued()) >= 5


def _recipients(exim: Exim) -> list[str]:
    return [path.read_text(errors="replace") for path in exim.spool.rglob("input/**/*-H")]


def test_who_leaves_after_a_send_is_over_is_found_due_once_and_taken_back(world: World, exim: Exim) -> None:
    equip_with_exim(world, exim)
    send_id = ready_send(world, [12])
    assert Running(world, send_id, world.slot()).report().state is SlotState.DONE
    close_send(world.engine, world.settings, send_id)
    assert len(exim.queued()) == 12
    assert due_recalls(world.engine, world.settings, now()) == []
    gone = world.settings.identity().address_hash("p0@gmail.example")
    with write(world.engine) as connection:
        suppress(connection, address_hash=gone, reason=SuppressionReason.UNSUBSCRIBED, source="test", at=now())
    assert due_recalls(world.engine, world.settings, now()) == [SEND]
    assert recall_send(world.engine, world.settings, SEND, "ann", due_only=True) == [Recalled("local-1.0", 1)]
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.CANCELLED], len(exim.queued())) == (11, 1, 11)
    with write(world.engine) as connection:  # the minutes by which questions overlap are over
        connection.execute(update(suppressions).values(created_at=now() - timedelta(minutes=10)))
    assert due_recalls(world.engine, world.settings, now()) == []
    with write(world.engine) as connection:
        connection.execute(update(sends).values(expires_at=now()))
    assert due_recalls(world.engine, world.settings, now()) == [SEND]
    assert recall_send(world.engine, world.settings, SEND, "ann", due_only=True) == [Recalled("local-1.0", 11)]
    with write(world.engine) as connection:
        connection.execute(update(sends).values(expires_at=now()))
    assert due_recalls(world.engine, world.settings, now()) == []  # its queue was seen empty
