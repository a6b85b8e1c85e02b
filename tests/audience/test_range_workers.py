"""Ranges built by several processes, and killed at any moment, make the snapshot that one undisturbed process makes."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from mailer_lib.audience import range_workers, snapshot
from mailer_lib.audience.plan import SnapshotPlan
from mailer_lib.audience.range_workers import MAX_PROCESSES, build_ranges, processes_for
from mailer_lib.audience.snapshot import build, build_range, plan_snapshot
from mailer_lib.audience.verify import verify
from mailer_lib.database.engine import write
from mailer_lib.database.schema import sends
from mailer_lib.settings import Settings
from mailer_lib.shard.files import shard_table
from tests.audience.world import LONG_AGO, ON_THE_LIST, World
from tests.support import times

ROOT = Path(__file__).parents[2]
FIRST = 1000  # id of the first send that the driver builds


def fill(world: World) -> None:
    domains = ("gmail.com", "outlook.com", "example.org")
    world.add_many(3000, lambda n: {"address": f"p{n}@{domains[n % 3]}", "attributes": {"points": n}})
    world.add("pending@example.org", state="pending")


def planned(world: World) -> SnapshotPlan:
    return plan_snapshot(world.engine, world.settings, world.add_send(), rules=ON_THE_LIST, list_id=world.newsletter)


@pytest.mark.parametrize(
    ("ranges", "cores", "expected"), [(0, 8, 1), (7, 8, 1), (8, 1, 1), (8, 2, 1), (8, 4, 2), (1024, 64, MAX_PROCESSES)]
)
def test_a_small_plan_is_read_by_one_process_and_a_large_one_by_a_few(ranges: int, cores: int, expected: int) -> None:
    assert processes_for(ranges, cores) == expected


def test_several_processes_build_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 5)
    fill(world)
    found = []
    for edition, processes in [("1", 1), ("2", 3)]:
        plan = plan_snapshot(
            world.engine, world.settings, world.add_send(edition), rules=ON_THE_LIST, list_id=world.newsletter
        )
        told: list[tuple[int, int]] = []
        build_ranges(
            world.engine, world.settings, plan, processes=processes, progress=lambda *t, told=told: told.append(t)
        )
        assert told[0] == (0, 5) and told[-1] == (5, 5) and told == sorted(told)
        made = build(world.engine, world.settings, plan)
        folder = plan.published_folder(world.settings)
        assert verify(folder) == []
        found.append([shard_table(folder / entry.path)["contact_id"].to_pylist() for entry in made.shards])
    assert found[0] == found[1]
    until = time.monotonic() + 60  # a worker that started when all was built ends by itself
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def test_the_caller_builds_while_a_worker_starts_and_waits_for_none(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``submit`` returns when the fork server has imported what a worker needs: seconds."""
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 5)
    fill(sqlite_world)
    all_built = threading.Event()

    class Starting:
        def __init__(self, *_: object) -> None: ...

        def submit(self, *_: object) -> "Future[bool]":
            assert all_built.wait(60)
            started: Future[bool] = Future()
            started.set_result(False)
            return started

        def shutdown(self, **_: object) -> None:
            assert all_built.wait(60)

    monkeypatch.setattr(range_workers, "ProcessPoolExecutor", Starting)
    plan = planned(sqlite_world)
    build_ranges(sqlite_world.engine, sqlite_world.settings, plan, processes=2)
    all_built.set()
    assert snapshot.publish(sqlite_world.engine, sqlite_world.settings, plan).counts.frozen == 3000


def test_the_caller_has_two_ranges_in_hand(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 4)
    fill(sqlite_world)
    both = threading.Barrier(2, timeout=60)  # broken unless two threads are at a range at once

    def build_one(engine: Engine, settings: Settings, plan: SnapshotPlan, index: int) -> None:
        both.wait()
        build_range(engine, settings, plan, index)

    monkeypatch.setattr(range_workers, "build_range", build_one)
    made = build(sqlite_world.engine, sqlite_world.settings, planned(sqlite_world), processes=1)
    assert (len(made.ranges), made.counts.frozen) == (4, 3000)


def test_who_hears_of_progress_can_stop_it_all(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 5)
    fill(sqlite_world)
    plan = planned(sqlite_world)

    def lost(built: int, total: int) -> None:
        if built:
            raise RuntimeError("the claim is lost")

    with pytest.raises(RuntimeError, match="the claim is lost"):
        build_ranges(sqlite_world.engine, sqlite_world.settings, plan, processes=2, progress=lost)
    until = time.monotonic() + 60  # one that another test didn't wait for ends by itself
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []


@pytest.mark.fault
@pytest.mark.parametrize(("kills", "processes"), [(times(6, 20), 1), (times(2, 10), 2)])
def test_killed_at_random_moments_and_run_again(world: World, kills: int, processes: int) -> None:
    fill(world)
    with write(world.engine) as connection:
        row = {"campaign_id": world.campaign_id, "mode": "send", "state": "planned", "created_at": LONG_AGO}
        connection.execute(insert(sends), [{**row, "id": FIRST + n, "edition": str(n)} for n in range(kills + 1)])
    command = [sys.executable, "-m", "tests.audience.kill_driver", FIRST, kills, processes, json.dumps(ON_THE_LIST)]
    run = subprocess.run(
        [*map(str, command), str(world.newsletter)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert run.returncode == 0, run.stderr
    undisturbed, *others = [json.loads(line) for line in run.stdout.splitlines()]
    told: list[Any] = [other["rows"] == undisturbed["rows"] for other in others]
    assert told == [True] * kills
    assert len(undisturbed["rows"]) == 3000
    for found in (undisturbed, *others):
        assert (found["problems"], found["left"], found["excluded"]) == ([], ["1"], 1)
    assert any(other["killed"] for other in others)
