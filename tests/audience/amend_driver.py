"""Blanks one person in snapshots and is killed: in the k-th one before the k-th durable effect, then does it over.

    python -m tests.audience.amend_driver HASH SNAPSHOT…

Prints how each first try ended: 0, or the number of the signal.
"""

import json
import os
import sys
from typing import Any

from mailer_lib.audience.amending import ERASED, amend
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from tests.audience.crash_driver import forked, kill_before


def run(person: bytes, snapshot_id: int, kill_at: int = 0) -> None:
    settings = load_settings()
    engine = open_engine(settings.url)
    if kill_at:
        with engine.connect():
            pass  # what connecting does is none of ours
        kill_before(engine, kill_at)
        _count_unlinks(engine)
    amend(engine, settings, snapshot_id, [person], ERASED)
    engine.dispose()


def _count_unlinks(engine: Any) -> None:
    """Removing a file is an effect too; ``kill_before`` counts commits, so one is feigned."""
    original = os.unlink

    def unlink(*arguments: Any, **more: Any) -> None:
        with engine.connect() as connection:
            engine.dispatch.commit(connection)
        original(*arguments, **more)

    os.unlink = unlink


if __name__ == "__main__":
    wanted, ends = bytes.fromhex(sys.argv[1]), []
    for number, found in enumerate(map(int, sys.argv[2:]), start=1):
        ends.append(forked(lambda n=number, i=found: run(wanted, i, n)))  # type: ignore[misc]
        assert forked(lambda i=found: run(wanted, i)) == 0  # type: ignore[misc]
    sys.stdout.write(json.dumps(ends))
