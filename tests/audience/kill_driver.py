"""Builds snapshots that are killed at random moments, by SIGKILL from outside, then does them over undisturbed.

    python -m tests.audience.kill_driver FIRST_SEND KILLS PROCESSES RULES LIST

Settings come from the environment. Send FIRST_SEND is built undisturbed, and says how long that takes; each of the next
KILLS sends is killed somewhere in that time, and built again. Prints one JSON line for each send.
"""

import json
import os
import random
import signal
import sys
import time
from functools import partial
from typing import Any

import pandas  # noqa: F401  pyarrow imports it in every child otherwise
import pyarrow as pa

from mailer_lib.audience import snapshot
from mailer_lib.audience.snapshot import build, plan_snapshot
from mailer_lib.audience.verify import verify
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from mailer_lib.shard.files import shard_table
from tests.audience.crash_driver import forked

RANGES, SHARDS = 6, 3


def built(send_id: int, processes: int, rules: Any, list_id: int, *, tell: bool, killed: bool = False) -> None:
    settings = load_settings()
    engine = open_engine(settings.url)
    snapshot.range_count = lambda matching: RANGES
    snapshot.shard_count = lambda matching, rows: SHARDS
    plan = plan_snapshot(engine, settings, send_id, rules=rules, list_id=list_id, attributes=["points"])
    ready = len(list(plan.folder(settings).glob("ranges/[0-9]*/done.json")))
    made = build(engine, settings, plan, processes=processes)
    if not tell:
        return
    folder = plan.published_folder(settings)
    tables = [shard_table(folder / entry.path).drop_columns("message_key") for entry in made.shards]
    left = sorted(path.name for path in folder.parent.iterdir() if not path.name.startswith(".publish-"))
    found = {"rows": pa.concat_tables(tables).to_pylist(), "left": left, "problems": verify(folder)}
    for row in found["rows"]:
        row["address_hash"] = row["address_hash"].hex()
    found |= {"killed": killed, "ready": ready, "excluded": made.counts.excluded}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def killed_after(seconds: float, send_id: int, processes: int, rules: Any, list_id: int) -> bool:
    """Whether the kill came in time."""
    child = os.fork()
    if not child:
        code = 1
        try:
            built(send_id, processes, rules, list_id, tell=False)
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(first_send: int, kills: int, processes: int, rules: Any, list_id: int) -> None:
    choose = random.Random(first_send)
    started = time.monotonic()
    forked(partial(built, first_send, processes, rules, list_id, tell=True))
    whole_s = time.monotonic() - started
    for send_id in range(first_send + 1, first_send + 1 + kills):
        killed = killed_after(choose.uniform(0, whole_s), send_id, processes, rules, list_id)
        forked(partial(built, send_id, processes, rules, list_id, tell=True, killed=killed))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), json.loads(sys.argv[4]), int(sys.argv[5]))
