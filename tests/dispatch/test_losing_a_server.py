"""A server is lost in mid-send and comes back: real agents, a real Exim, SIGKILL, and a job folder that is away."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from mailer_lib.agent.job import Status
from mailer_lib.agent.ledger import Final, LedgerError, encode
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance, read_books
from mailer_lib.dispatch.close import close_send
from mailer_lib.dispatch.lease import leases_of_send, take_lease
from mailer_lib.dispatch.loss import lose_server
from mailer_lib.dispatch.reconciling import reconcile_server
from mailer_lib.dispatch.slot import SlotState
from mailer_lib.dispatch.stranded import call_unknown, stranded_rows
from mailer_lib.dispatch.unknown import unknown_rows
from mailer_lib.fleet import servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.terms import LeaseState, Outcome, ServerState
from tests.dispatch.exim_world import equip_with_exim, queue_of
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
    assert sum(told.mended.values()) == loss.unknown
    assert told.unknown == after[Outcome.UNKNOWN] == 0  # its log and spool told of every doubt
    assert after[Outcome.INJECTED] == len(exims[0].queued()) + len(exims[1].queued())
    assert after[Outcome.INJECTED] + after[Outcome.CANCELLED] == ROWS
    assert not exims[0].queued().keys() & exims[1].queued().keys()  # nobody got it from both
    assert unknown_rows(world.engine, world.settings, send_id) == []
    with read(world.engine) as connection:
        assert servers.get(connection, "local-1").state is ServerState.STANDBY


def test_what_its_mta_held_is_listed_as_stranded_and_resent_only_when_the_operator_says_so(
    lost: tuple[World, int, Path], exims: tuple[Exim, Exim]
) -> None:
    world, send_id, away = lost
    (loss,) = lose_server(world.engine, world.settings, "local-1", "ann")
    finish_elsewhere(world, send_id)
    books = balance(world.engine, world.settings, send_id)
    rows = stranded_rows(world.engine, world.settings, SEND)
    known = ROWS - loss.given_back - loss.unknown  # injected by the lost server, as far as the centre knows
    assert len(rows) == known  # none of it was delivered: this Exim delivers nothing
    assert {row.server for row in rows} == {"local-1"}
    assert {row.message_key for row in rows} <= set(exims[0].queued())
    assert any(row.why.startswith("lay in its queue") for row in rows)
    assert books[Outcome.UNKNOWN] == loss.unknown  # listing changes nothing

    assert call_unknown(world.engine, world.settings, SEND, "ann") == known
    assert call_unknown(world.engine, world.settings, SEND, "ann") == 0
    books = balance(world.engine, world.settings, send_id)
    assert books.balanced
    assert books[Outcome.UNKNOWN] == loss.unknown + known == len(unknown_rows(world.engine, world.settings, send_id))
    assert stranded_rows(world.engine, world.settings, SEND) == []

    come_back(world, away, exims[0])
    reconcile_server(world.engine, world.settings, "local-1", "ann")
    books = balance(world.engine, world.settings, send_id)
    assert books[Outcome.INJECTED] == len(exims[0].queued()) + len(exims[1].queued())
    assert books[Outcome.UNKNOWN] == 0


def test_a_server_whose_folder_is_gone_stays_fenced_until_the_operator_says_that_it_is_gone(
    lost: tuple[World, int, Path],
) -> None:
    world, send_id, _ = lost
    (loss,) = lose_server(world.engine, world.settings, "local-1", "ann")
    with pytest.raises(FleetError, match="no job folder of spring-sale#1"):
        reconcile_server(world.engine, world.settings, "local-1", "ann")
    with read(world.engine) as connection:
        assert servers.get(connection, "local-1").state is ServerState.FENCED
    reconcile_server(world.engine, world.settings, "local-1", "ann", gone=True)
    with read(world.engine) as connection:
        assert servers.get(connection, "local-1").state is ServerState.STANDBY
    books, problems = read_books(world.engine, world.settings, send_id)
    assert problems == []
    assert books[Outcome.UNKNOWN] == loss.unknown


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


def test_a_server_that_was_only_cut_off_ends_with_its_grant_and_is_read_when_it_is_back(
    sqlite_world: World, exims: tuple[Exim, Exim]
) -> None:
    world = sqlite_world
    for number, exim in enumerate(exims):
        equip_with_exim(world, exim, number)
    send_id = ready_send(world, [ROWS])
    control.set_pace(world.engine, SEND, 20, "ann")
    running = Running(world, send_id, world.slot(), stop_agent=False)
    running.until(lambda word: word.injected >= 20)
    folder = job_folder(world, world.slot())
    running.stop.set()
    running.thread.join(60)  # the centre lost the server; its agent lives
    cut_off = folder.with_name("cut-off")
    folder.rename(cut_off)
    (loss,) = lose_server(world.engine, world.settings, "local-1", "ann")
    with read(world.engine) as connection:
        (lease,) = leases_of_send(connection, send_id, LeaseState.LOST)
    finish_elsewhere(world, send_id)
    deadline = time.monotonic() + 30
    while len(exims[0].queued()) < lease.granted_through and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    assert len(exims[0].queued()) == lease.granted_through  # its grant to the end, and not one row of another epoch
    assert not exims[0].queued().keys() & exims[1].queued().keys()

    cut_off.rename(folder)
    reconcile_server(world.engine, world.settings, "local-1", "ann")
    books = balance(world.engine, world.settings, send_id)
    assert books.balanced
    assert (books[Outcome.INJECTED], books[Outcome.UNKNOWN], books[Outcome.CANCELLED]) == (ROWS, 0, 0)
    assert len(queue_of(exims[0], send_id).messages()) == lease.granted_through  # left to its MTA
    assert loss.unknown > 0


def test_rows_that_were_never_granted_to_it_keep_a_server_fenced(
    lost: tuple[World, int, Path], exims: tuple[Exim, Exim]
) -> None:
    world, send_id, away = lost
    lose_server(world.engine, world.settings, "local-1", "ann")
    with read(world.engine) as connection:
        (lease,) = leases_of_send(connection, send_id, LeaseState.LOST)
    path = away / "ledgers" / lease.ledger_name
    with path.open("ab") as file:
        file.write(encode(Final(ROWS - 1, Outcome.INJECTED, 250, "", "q", "1.1", 0, "other", 1, "")))
    assert lease.granted_through < ROWS
    come_back(world, away, exims[0])
    with pytest.raises(LedgerError, match="weren't granted"):
        reconcile_server(world.engine, world.settings, "local-1", "ann")
    with read(world.engine) as connection:
        state = connection.scalar(select(dispatch_servers.c.state).where(dispatch_servers.c.name == "local-1"))
    assert state == ServerState.FENCED
