"""Killed anywhere, and run again, a snapshot is what it would have been undisturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from mailer_lib.database.engine import write
from mailer_lib.database.schema import sends, shards, snapshots
from tests.audience.world import LONG_AGO, ON_THE_LIST, World

ROOT = Path(__file__).parents[2]
SENDS = 150  # more than there are effects to be killed before


@pytest.mark.fault
@pytest.mark.usefixtures("any_store")
def test_killed_before_every_durable_effect_and_run_again(world: World) -> None:
    world.add_many(60, lambda n: {"address": f"p{n}@example.org"})
    world.add("pending@example.org", state="pending")
    with write(world.engine) as connection:
        rows = [
            {"campaign_id": world.campaign_id, "edition": str(n), "mode": "send", "state": "planned"}
            for n in range(SENDS)
        ]
        connection.execute(insert(sends), [{**row, "created_at": LONG_AGO} for row in rows])
        first = min(connection.scalars(select(sends.c.id)))
    shared = world.settings.bucket is not None
    # Every crash point once, and every third on MariaDB, every fifth on S3, which has more of them.
    step = 5 if shared else 1 if world.engine.dialect.name == "sqlite" else 3
    command = [sys.executable, "-m", "tests.audience.crash_driver", first, step, json.dumps(ON_THE_LIST)]
    run = subprocess.run(
        [*map(str, command), str(world.newsletter)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert run.returncode == 0, run.stderr
    undisturbed, *others = [json.loads(line) for line in run.stdout.splitlines()]
    *killed, whole = others  # the last one got through before its turn to be killed came
    assert len(killed) >= 20 // step
    for found in (undisturbed, *killed, whole):
        assert found["problems"] == []
        assert found["contacts"] == undisturbed["contacts"] and found["excluded"] == 1
        # On S3 the plan stays, for a range that is asked for late; it holds no person.
        assert found["left"] == ([".building-1", "1"] if shared else ["1"]), "nothing but the published phase is left"
        assert found["own"] == [], "and nothing on this machine"
        assert found["inside"] == ["excluded", "manifest.json", "people", "plan.json", "shard=0000", "shard=0001"]
    assert sum(map(len, undisturbed["contacts"])) == 60
    assert {(row.phase, row.state) for row in world.fetch(select(snapshots))} == {(1, "published")}
    by_send = world.fetch(select(shards.c.send_id, shards.c.number).order_by(shards.c.send_id, shards.c.number))
    assert [tuple(row) for row in by_send] == [(f["send"], n) for f in sorted(
        (undisturbed, *others), key=lambda f: f["send"]) for n in (0, 1)]  # fmt: skip
