"""A plan's ranges built by several processes of this machine.

Each worker takes the next range; the caller hears of each that is built, and may stop it all by raising. Workers die
with the caller, however it dies: a range that one of them was at is built again by the next call (``ranges.py``).
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from sqlalchemy import Engine

from mailer_lib.audience.plan import SnapshotError, SnapshotPlan
from mailer_lib.audience.sharing import build_range
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import Settings

MAX_PROCESSES = 4  # when nobody said how many; chosen, not tuned
_WORTH_IT = 8  # ranges, 80,000 people: until the workers have imported what they need takes 2.8 s

_engine: Engine | None = None  # of a worker


def processes_for(ranges: int, cores: int) -> int:
    """How many processes to use when nobody said: half of the cores, for the database needs nearly as much of a core as
    each of them (6.5 of 8.7 s), and on two cores that it shares a second process gains nothing (8.8 s).
    """
    return 1 if ranges < _WORTH_IT else max(1, min(cores // 2, MAX_PROCESSES))


def build_ranges(
    engine: Engine,
    settings: Settings,
    plan: SnapshotPlan,
    *,
    processes: int | None = None,
    progress: Callable[[int, int], object] = lambda built, total: None,
) -> None:
    """Build what isn't built yet. ``progress`` hears how many ranges of how many are built.

    Args:
        processes: None: as many as suit the plan and this machine.

    Raises:
        SnapshotError: the plan was discarded, or a worker was killed.
    """
    total = len(plan.ranges)
    count = min(processes or processes_for(total, os.cpu_count() or 1), total)
    progress(0, total)
    if count <= 1:
        for built, ids in enumerate(plan.ranges, 1):
            build_range(engine, settings, plan, ids.index)
            progress(built, total)
        return
    context = multiprocessing.get_context("forkserver")  # this process may have threads, which a fork would tear apart
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(count, context, _begin, (settings,)) as pool:
        waiting = {pool.submit(_build, settings, plan, ids.index) for ids in plan.ranges}
        try:
            built = 0
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                _raise_first(done)
                built += len(done)
                progress(built, total)
        except BrokenProcessPool:
            raise SnapshotError(
                f"a process that built ranges of the snapshot of {plan} was killed; run it again: it goes on there"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _raise_first(done: set[Future[None]]) -> None:
    for each in done:
        each.result()


def _begin(settings: Settings) -> None:
    global _engine  # noqa: PLW0603  one for each worker
    threading.Thread(target=_die_with_parent, name="die with parent", daemon=True).start()
    _engine = open_engine(settings.url)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build(settings: Settings, plan: SnapshotPlan, index: int) -> None:
    assert _engine is not None
    build_range(_engine, settings, plan, index)
