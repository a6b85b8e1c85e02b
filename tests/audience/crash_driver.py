"""Builds snapshots and is killed: once before each of its durable effects, by SIGKILL, then does it over undisturbed.

    python -m tests.audience.crash_driver FIRST_SEND STEP RULES LIST

Settings come from the environment. Send FIRST_SEND is built undisturbed; send FIRST_SEND + k is killed before the k-th
effect (mkdir, rename, replace, rmtree, commit; on S3 also each object written or removed) and then built again. Prints
one JSON line for each send.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  pyarrow imports it in every child otherwise
from sqlalchemy import event

from mailer_lib.audience import snapshot
from mailer_lib.audience.sharing import published_path
from mailer_lib.audience.snapshot import build, plan_snapshot
from mailer_lib.audience.verify import verify
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from mailer_lib.shard.files import shard_table
from mailer_lib.shard.store import S3Path, StorePath, store


def run(send_id: int, rules: Any, list_id: int, kill_at: int = 0) -> None:
    settings = load_settings()
    engine = open_engine(settings.url)
    snapshot.range_count = lambda matching: 2
    snapshot.shard_count = lambda matching, rows: 2
    if kill_at:
        kill_before(engine, kill_at)
    plan = plan_snapshot(engine, settings, send_id, rules=rules, list_id=list_id, weights=(1,))
    made = build(engine, settings, plan)
    path = published_path(engine, plan)
    assert path is not None
    folder = store(settings) / path
    contacts = [shard_table(folder / e.path)["contact_id"].to_pylist() for e in made.shards]
    found = {"send": send_id, "contacts": contacts, "left": _left(folder.parent), "inside": _names(folder)}
    own = plan.folder(settings).parent
    found["own"] = [] if own == folder.parent else sorted(p.name for p in own.iterdir() if p.name[:9] != ".publish-")
    found |= {"excluded": made.counts.excluded, "problems": verify(folder)}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    engine.dispose()


def _names(folder: StorePath) -> list[str]:
    """What lies directly in a folder of the store, but for locks."""
    if isinstance(folder, Path):
        names = {path.name for path in folder.iterdir()}
    else:
        names = {path.relative_to(folder).parts[0] for path in folder.files()}
    return sorted(name for name in names if not name.startswith(".publish-"))


def _left(edition: StorePath) -> list[str]:
    """What the edition has, without the hash that a publication on S3 has in its name."""
    return [name.partition("-")[0] if name[0] != "." else name for name in _names(edition)]


def kill_before(engine: Any, number: int) -> None:
    """Die before the ``number``-th durable effect of this process."""
    left = [number]

    def count(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            count()
            return original(*arguments, **more)

        return call

    for module, name in [(os, "rename"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree")]:
        setattr(module, name, watched(getattr(module, name)))
    for name in ("write_bytes", "unlink", "remove_all"):
        setattr(S3Path, name, watched(getattr(S3Path, name)))
    event.listen(engine, "commit", count)


def forked(task: Callable[[], None]) -> int:
    """Run in a child; 0, or the number of the signal that ended it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            task()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(first_send: int, step: int, rules: Any, list_id: int) -> None:
    forked(lambda: run(first_send, rules, list_id))
    for kill_at in itertools.count(1, step):
        disturbed = partial(run, first_send + kill_at, rules, list_id, kill_at)
        if forked(disturbed) != signal.SIGKILL:
            break
        forked(partial(run, first_send + kill_at, rules, list_id))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
