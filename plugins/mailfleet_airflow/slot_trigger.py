"""The trigger that runs the loop of a slot whose agent is on another machine: no worker is needed while it sends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from mailfleet_airflow.installation import installation

if TYPE_CHECKING:
    from mailer_lib.dispatch.slot import SlotReport

THREADS = 64  # slots at once in one triggerer; a thread mostly sleeps
EARLIEST_S = 10.0  # Airflow 3.3.2 may fail a task falsely whose trigger fires sooner (apache/airflow #71580, #72716)
KILL_S = 25.0  # Airflow gives on_kill 30 s
PROGRESS_EVERY_S = 15.0


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Of this triggerer; slots never take the threads of other triggers."""
    return ThreadPoolExecutor(THREADS, "slot")


class SlotRunTrigger(BaseTrigger):
    """Fires with the slot's report when ``run_slot`` returns.

    The loop keeps nothing that matters, so a triggerer may be killed and another runs the trigger again, and two at
    once do no harm (docs/decisions/0602). ``cleanup`` also runs when a triggerer restarts, so it only ends the loop and
    leaves the agent on its grant. ``on_kill``, which runs when somebody fails or clears the task, stops the agent.
    """

    def __init__(self, send_id: int, claim: str, slot: dict[str, Any], earliest_s: float = EARLIEST_S) -> None:
        super().__init__()
        self.send_id = send_id
        self.claim = claim
        self.slot = slot
        self.earliest_s = earliest_s
        self._stop = threading.Event()
        self._hand_over = threading.Event()
        self._running: Future[SlotReport] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kept = {"send_id": self.send_id, "claim": self.claim, "slot": self.slot, "earliest_s": self.earliest_s}
        return "mailfleet_airflow.slot_trigger.SlotRunTrigger", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def tell(line: str | None) -> None:
            with suppress(RuntimeError):  # the triggerer ends
                loop.call_soon_threadsafe(lines.put_nowait, line)

        self._running = _threads().submit(self._work, tell)
        self._running.add_done_callback(lambda done: tell(None))
        if not self._running.running():
            self.log.info("%d slots run in this triggerer already; this one waits. Start another.", THREADS)
        while (line := await lines.get()) is not None:
            self.log.info("%s", line)
        event = _event(self._running)
        await asyncio.sleep(max(0.0, self.earliest_s - (time.monotonic() - began)))
        yield TriggerEvent(event)

    async def cleanup(self) -> None:
        self._hand_over.set()

    async def on_kill(self) -> None:
        self._stop.set()
        running = self._running
        if running is None or running.cancel():  # it had no thread yet, but an agent may live
            await asyncio.wait_for(asyncio.to_thread(self._work, lambda line: None), KILL_S)
            return
        await asyncio.wait_for(asyncio.wrap_future(running), KILL_S)

    def _work(self, tell: Any) -> SlotReport:
        from mailer_lib.dispatch.plan import Slot
        from mailer_lib.dispatch.slot import run_slot

        engine, settings = installation()
        return run_slot(
            engine,
            settings,
            self.send_id,
            Slot(**self.slot),
            on_progress=lambda progress: tell(str(progress)),
            should_stop=self._stop.is_set,
            hand_over=self._hand_over.is_set,
            claim=self.claim,
            progress_every_s=PROGRESS_EVERY_S,
        )


def _event(done: Future[SlotReport]) -> dict[str, Any]:
    """What the operator needs to go on; an error is for it to raise."""
    error = done.exception()
    if error is not None:
        return {"error": f"{type(error).__name__}: {error}"}
    report = done.result()
    return {
        "label": report.label,
        "state": str(report.state),
        "reason": report.reason,
        "injected": report.injected,
        "settled": report.settled,
    }
