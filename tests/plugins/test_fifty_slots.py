"""Fifty job folders on three hosts at once, as one triggerer runs them: no worker, a connection to each host.

The hosts are three OpenSSH servers on this machine, so their agents run here too; what is counted is what the centre
needs. A pace holds every agent back until all fifty are there.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select, update

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers, leases, sends, slot_reports
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.plan import Slot, slots_for
from mailer_lib.dispatch.slot import SlotState
from mailer_lib.fleet import login_key
from mailer_lib.sink.process import start
from tests.dispatch.real import equip, ready_send, received
from tests.dispatch.world import World, make_world
from tests.sshd import Sshd

CLAIM = "airflow:run-1"
SLOTS_OF = (17, 17, 16)
SHARDS, ROWS = 200, 10
SLOW_PER_S = 5.0

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def world(sqlite_engine, settings) -> Iterator[World]:
    import airflow.sdk.module_loading  # noqa: F401  # brings the plugins' folder onto the path
    from mailfleet_airflow.installation import installation

    installation.cache_clear()
    yield make_world(sqlite_engine, settings, servers=len(SLOTS_OF))
    installation.cache_clear()


@pytest.fixture
def hosts(world: World, tmp_path: Path) -> Iterator[list[Sshd]]:
    login_key.make_login_key(world.settings.keys_dir / "ssh_ed25519")
    line = login_key.public_line(world.settings)
    with ExitStack() as stack:
        made = []
        for number, slots in enumerate(SLOTS_OF):
            made.append(Sshd(tmp_path / f"sshd-{number}", line))
            stack.callback(made[-1].stop)
            values = made[-1].reached_as(tmp_path / f"jobs-{number}") | {"slots": slots}
            with write(world.engine) as connection:
                connection.execute(
                    update(dispatch_servers).where(dispatch_servers.c.id == world.servers[number]).values(values)
                )
        yield made
        for process in agents(tmp_path):
            process.kill()


def agents(tmp_path: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mailer_lib.agent" in command and str(tmp_path) in command[-1]:
            found.append(process)
    return found


async def run_to_its_end(send_id: int, slot: Slot) -> dict:
    """What the triggers of a task do: run the slot, and wait while the rows that are left are with others."""
    from mailfleet_airflow.slot import SlotWaitTrigger
    from mailfleet_airflow.slot_trigger import SlotRunTrigger

    where = {"server": slot.server, "server_id": slot.server_id, "slot": slot.slot, "label": slot.label}
    while True:
        async for event in SlotRunTrigger(send_id, CLAIM, where, earliest_s=0).run():
            report = event.payload
        if report.get("state") != SlotState.IDLE:
            return report
        async for _ in SlotWaitTrigger(send_id, slot.server_id, poll_s=0.5).run():
            pass


def test_fifty_job_folders_on_three_hosts_need_threads_of_one_triggerer_and_three_connections(
    world: World, hosts: list[Sshd], tmp_path: Path
) -> None:
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        send_id = ready_send(world, [ROWS] * SHARDS, pace_per_s=SLOW_PER_S)
        with write(world.engine) as connection:
            connection.execute(update(sends).where(sends.c.id == send_id).values(claim=CLAIM))
        slots = slots_for(world.engine, send_id)
        assert len(slots) == 50
        threads_before = threading.active_count()
        children_before = set(psutil.Process().children())
        seen: dict[str, float] = {}

        async def all_at_once() -> list[dict]:
            began = time.monotonic()
            running = [asyncio.ensure_future(run_to_its_end(send_id, slot)) for slot in slots]
            while await asyncio.to_thread(sending, world, send_id) < len(slots):
                assert not (ended := [one.result() for one in running if one.done()]), ended
                await asyncio.sleep(0.5)
            seen["all sending after s"] = time.monotonic() - began
            seen["agents"] = len(agents(tmp_path))
            seen["connections"] = sum(len(host.sessions()) for host in hosts)
            seen["threads"] = threading.active_count() - threads_before
            seen["processes"] = len(set(psutil.Process().children()) - children_before)
            control.set_pace(world.engine, "spring-sale#1", None, "ann")
            return await asyncio.gather(*running)

        reports = asyncio.run(all_at_once())
        print(seen)
        assert (seen["agents"], seen["connections"], seen["processes"]) == (50, 3, 0)
        assert seen["threads"] <= 60  # one for each slot, and those that wait for nothing
        assert {report.get("state") for report in reports} == {SlotState.DONE}, reports
        assert balance(world.engine, world.settings, send_id).line() == (
            f"frozen={SHARDS * ROWS} injected={SHARDS * ROWS} rejected=0 suppressed=0 failed=0 expired=0 cancelled=0 "
            "unknown=0 duplicates=0"
        )
        assert received(sink) == SHARDS * ROWS
        assert sum(report["injected"] for report in reports) == SHARDS * ROWS
        assert all(report["injected"] for report in reports), "each of the fifty sent something"
    assert not agents(tmp_path)
    with read(world.engine) as connection:
        used = connection.execute(select(leases.c.server_id, leases.c.slot).distinct()).all()
    assert len(used) == 50


def sending(world: World, send_id: int) -> int:
    query = select(func.count()).where(
        slot_reports.c.send_id == send_id, slot_reports.c.state.in_((SlotState.SENDING, SlotState.WAITING))
    )
    with read(world.engine) as connection:
        return int(connection.scalar(query) or 0)
