"""A server is lost in mid-send and comes back: real agents, a real Exim, SIGKILL, and a job folder that is away."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer_lib.agent.job import Status
from mailer_lib.agent.recall import ListedMessage, QueueListing
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.close import close_send
from mailer_lib.dispatch.lease import take_lease
from mailer_lib.dispatch.loss import lose_server
from mailer_lib.dispatch.reconciling import reconcile_server
from mailer_lib.dispatch.slot import SlotState
from mailer_lib.dispatch.stranded import call_unknown, stranded_rows
from mailer_lib.dispatch.unknown import unknown_rows
from mailer_lib.fleet import servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.identity import message_key
from mailer_lib.terms import Outcome, ServerState
from tests.dispatch.exim_world import equip_with_exim
from tests.dispatch.ledgers import final, intents, leased, write_ledger
from tests.dispatch.real import Running, job_folder, ready_send
from tests.dispatch.world import World
from tests.mta.exim import Exim

SEND = "spring-sale#1"
ROWS = 400


@pytest.fixture
def exims(tmp_path: Path) -> Iterator[tuple[Exim, Exim]]:
    with Exim(tmp_path / "one") as one, Exim(tmp_path / "two") as two:
        yield one, two
        assert not one.panics
        assert not two.panics


@pytest.fixture
def lost(sqlite_world: World, exims: tuple[Exim, Exim]) -> tuple[World, int, Path]:
    """A send in whose middle agent and Exim of local-1 were killed, and the machine went away with its disk. Returns
    the world, the send, and where the job folder is when it comes back."""
    world = sqlite_world
    for number, exim in enumerate(exims):
        equip_with_exim(world, exim, number)
    send_id = ready_send(world, [ROWS])
    control.set_pace(world.engine, SEND, 20, "ann")
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.injected >= 20)
    folder = job_folder(world, world.slot())
    os.kill(Status.load(folder / "status.json").pid, signal.SIGKILL)
    exims[0].kill()
    away = folder.with_name("powered-off")
    folder.rename(away)
    running.stop.set()
    running.thread.join(60)
    shutil.rmtree(folder, ignore_errors=True)  # what the slot made in its last round, before it heard of it
    return world, send_id, away


def come_back(world: World, away: Path, exim: Exim) -> None:
    away.rename(job_folder(world, world.slot()))
    exim.start()


def finish_elsewhere(world: World, send_id: int) -> None:
    control.set_pace(world.engine, SEND, None, "ann")
    assert Running(world, send_id, world.slot(1)).report().state is SlotState.DONE
    close_send(world.engine, world.settings, send_id)


def test_a_lost_server_costs_what_it_was_granted_and_its_return_mends_that(
    lost: tuple[World, int, Path], exims: tuple[Exim, Exim]
) -> None:
    world, send_id, away = lost
    (loss,) = lose_server(world.engine, world.settings, "local-1", "ann")
    assert loss.given_back > 0
    finish_elsewhere(world, send_id)
    before = balance(world.engine, world.settings, send_id)
    assert before.balanced
    assert before[Outcome.UNKNOWN] == loss.unknown > 0
    assert before[Outcome.INJECTED] == ROWS - loss.unknown
    assert len(exims[1].queued()) == loss.given_back  # never granted: they went on elsewhere

    with write(world.engine) as connection, pytest.raises(FleetError, match="reconcile local-1"):
        servers.set_state(connection, "local-1", ServerState.ACTIVE, actor="ann")
    come_back(world, away, exims[0])
    (told,) = reconcile_server(world.engine, world.settings, "local-1", "ann")
    after = balance(world.engine, world.settings, send_id)
    assert after.balanced
    assert sum(told.mended.values()) == loss.unknown - told.unknown
    assert (
        told.unknown == after[Outcome.UNKNOWN] <= 1
    )  # what Exim was taking when it was killed, if nothing tells of it
    queued = len(exims[0].queued()) + len(exims[1].queued())
    assert after[Outcome.INJECTED] <= queued <= after[Outcome.INJECTED] + told.unknown
    assert after[Outcome.INJECTED] + after[Outcome.CANCELLED] + told.unknown == ROWS
    assert not exims[0].queued().keys() & exims[1].queued().keys()  # nobody got it from both
    assert len(unknown_rows(world.engine, world.settings, send_id)) == told.unknown
    with read(world.engine) as connection:
        assert servers.get(connection, "local-1").state is ServerState.STANDBY


def test_an_unreconciled_server_gets_no_lease_whatever_its_state_was_made(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = ready_send(world, [10])
    with write(world.engine) as connection:
        servers.fence(connection, "local-1", actor="ann")
        connection.execute(
            dispatch_servers.update().where(dispatch_servers.c.name == "local-1").values(state=ServerState.ACTIVE)
        )
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None
    with write(world.engine) as connection:
        servers.set_reconciled(connection, "local-1", actor="ann")
        servers.set_state(connection, "local-1", ServerState.ACTIVE, actor="ann")
    assert take_lease(world.engine, send_id, world.servers[0], 0) is not None


def test_what_its_mta_held_is_listed_as_stranded_and_made_unknown_only_when_the_operator_says_so(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    with write(world.engine) as connection:
        connection.execute(dispatch_servers.update().values(mta="exim", mta_log="/x", mta_spool="/x"))
    send_id = ready_send(world, [3])
    lease = leased(world, send_id)
    told = [*intents(world, lease, range(3)), *(final(row, t_ms=at) for row, at in ((0, 1000), (1, 1000), (2, 9000)))]
    write_ledger(world, lease, told)
    send_key = world.settings.identity().send_key("spring-sale", "1")
    key = message_key(send_key, world.settings.identity().address_hash("p0@gmail.example"))
    listed = ListedMessage(queue_id="q0", message_key=key.hex(), domain="gmail.example", received_at=1, frozen=False)
    path = world.settings.storage / "queues" / str(send_id) / "local-1.0.json"
    path.parent.mkdir(parents=True)
    QueueListing(at=5.0, messages=(listed,)).store(path)
    assert stranded_rows(world.engine, world.settings, SEND) == []  # it isn't lost
    lose_server(world.engine, world.settings, "local-1", "ann")
    rows = stranded_rows(world.engine, world.settings, SEND)
    assert [(row.queue_id, row.why) for row in rows] == [
        ("q0", "lay in its queue at 00:00:05"),
        ("q2", "taken after its queue was listed at 00:00:05"),
    ]
    assert call_unknown(world.engine, world.settings, SEND, "ann") == 2
    assert call_unknown(world.engine, world.settings, SEND, "ann") == 0
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.UNKNOWN]) == (1, 2)
    assert len(unknown_rows(world.engine, world.settings, send_id)) == 2
