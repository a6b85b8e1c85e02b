"""A plan's ranges built by the caller and, for a large plan, by other processes of this machine.

Two threads of the caller each build a range: one waits for the database while the other one is busy with what it sent.
Worker processes take their share of the ranges as soon as they have started. The caller hears of each range that is
built, and may stop it all by raising. Workers die with the caller, however it dies: a range that one of them was at is
built again by the next call (``ranges.py``).
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from sqlalchemy import Engine

from mailer_lib.audience.plan import SnapshotError, SnapshotPlan
from mailer_lib.audience.sharing import build_range
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import Settings

READERS = 2  # ranges that the caller has in hand; each has a connection
MAX_PROCESSES = 4  # when nobody said how many; chosen, not tuned
_WORTH_IT = 8  # ranges, 80,000 people: a worker imports for about 4 s of CPU before it begins

_engine: Engine | None = None  # of a worker


def processes_for(ranges: int, cores: int) -> int:
    """How many processes to use when nobody said: half of the cores, for the database needs more of them than we do (of
    600,000 people 5.9 s of CPU against 2.3), and the caller keeps two of its connections busy by itself.
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
    left = deque(ids.index for ids in plan.ranges)
    with ThreadPoolExecutor(READERS, "build range") as own, _workers(count - 1, settings) as (workers, starting):
        running: dict[Future[bool], Callable[[int], Future[bool]]] = {}

        def here(index: int) -> Future[bool]:
            return own.submit(_build, engine, settings, plan, index)

        def there(index: int) -> Future[bool]:
            assert workers is not None
            return workers.submit(_build_in_worker, settings, plan, index)

        try:
            running |= dict.fromkeys(starting, there)
            running |= {here(left.popleft()): here for _ in range(min(READERS, total))}
            built = 0
            while built < total:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    start = running.pop(future)
                    built += future.result()
                    if left:
                        running[start(left.popleft())] = start
                progress(built, total)
        except BrokenProcessPool:
            raise SnapshotError(
                f"a process that built ranges of the snapshot of {plan} was killed; run it again: it goes on there"
            ) from None
        finally:
            own.shutdown(cancel_futures=True)


@contextmanager
def _workers(count: int, settings: Settings) -> Iterator[tuple[ProcessPoolExecutor | None, Sequence[Future[bool]]]]:
    """Processes, and what says of each of them that it has started.

    They are started by threads of their own: ``submit`` waits until the fork server has imported all that a worker
    needs, and the caller would build nothing for so long. Nor does it wait for one that starts when all is built: that
    one ends by itself.
    """
    if count < 1:
        yield None, ()
        return
    context = multiprocessing.get_context("forkserver")  # this process has threads, which a fork would tear apart
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(count, context, _begin, (settings,))
    starters = ThreadPoolExecutor(count + 1, "start worker")
    built = False
    try:
        yield pool, [starters.submit(lambda: pool.submit(_started).result()) for _ in range(count)]
        built = True
    finally:
        ended = starters.submit(pool.shutdown, cancel_futures=True)  # it too waits for a worker that is being started
        if not built:
            ended.result()
        starters.shutdown(wait=not built)


# --- one process ------------------------------------------------------------------------------------------------------


def _build(engine: Engine, settings: Settings, plan: SnapshotPlan, index: int) -> bool:
    build_range(engine, settings, plan, index)
    return True


def _started() -> bool:
    """What a worker does first: it has imported all that it needs, and built no range yet."""
    return False


def _begin(settings: Settings) -> None:
    global _engine  # noqa: PLW0603  one for each worker
    threading.Thread(target=_die_with_parent, name="die with parent", daemon=True).start()
    _engine = open_engine(settings.url)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build_in_worker(settings: Settings, plan: SnapshotPlan, index: int) -> bool:
    assert _engine is not None
    return _build(_engine, settings, plan, index)
