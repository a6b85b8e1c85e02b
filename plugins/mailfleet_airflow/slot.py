"""One mapped task for each slot of the sending pool, and the trigger that waits while a slot has nothing to do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from mailfleet_airflow.installation import installation
from mailfleet_airflow.links import PreviewLink
from mailfleet_airflow.slot_trigger import SlotRunTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from mailer_lib.dispatch.slot import SlotReport

POLL_S = 10.0
WORKER_S = 20.0  # then a slot on another machine goes on in a trigger: a short send, or an error, never gets there
STAY_S = 30.0  # an idle slot waits so long in its worker: near the end of a send that is cheaper than deferring


class DispatchSlotOperator(BaseOperator):
    """Run the agent of one slot until no shard of the send is left for it (``dispatch.slot.run_slot``).

    A retry re-attaches to the agent that still runs, or starts it again in the same job folder; it never starts a
    second one beside it (the agent's lock decides). While other slots hold all the rows that are left, or the send is
    paused, the task waits deferred and takes no worker. Marking it failed, or clearing it, stops its agent.

    The slot of a server that is reached by SSH is run here for ``WORKER_S`` and then deferred: ``SlotRunTrigger`` goes
    on with it, and no worker is needed until it ends.

    Args:
        send: what *open* returned.
        slot: one element of what *slots* returned.
    """

    template_fields: Sequence[str] = ("send", "slot")
    operator_extra_links = (PreviewLink(),)
    ui_color = "#d9ead3"

    def __init__(self, *, send: Any, slot: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.send = send
        self.slot = slot
        self._stop = threading.Event()

    def execute(self, context: Context) -> Any:
        return self._run(context)

    def resume(self, context: Context, event: Any = None) -> Any:
        """After the trigger fired: the slot's report is there, or it is time to look again."""
        from mailer_lib.dispatch.slot import SlotReport, SlotState

        if event and "error" in event:
            raise AirflowException(event["error"])
        if event and "state" in event:
            return self._conclude(SlotReport(**event | {"state": SlotState(event["state"])}))
        return self._run(context)

    def on_kill(self) -> None:
        self._stop.set()

    def _run(self, context: Context) -> dict[str, Any]:
        from mailer_lib.dispatch.plan import Slot
        from mailer_lib.dispatch.slot import SlotState, run_slot

        engine, settings = installation()
        defer_at = time.monotonic() + WORKER_S if self._is_elsewhere() else float("inf")
        while True:
            report = run_slot(
                engine,
                settings,
                self.send["send_id"],
                Slot(**self.slot),
                on_progress=lambda progress: self.log.info("%s", progress),
                should_stop=self._stop.is_set,
                hand_over=lambda: time.monotonic() >= defer_at,
                claim=self.send["claim"],
            )
            if report.state is not SlotState.IDLE or not self._soon_worth_a_look():
                break
        return self._conclude(report)

    def _conclude(self, report: SlotReport) -> dict[str, Any]:
        from mailer_lib.dispatch.slot import SlotState

        send_id, claim = self.send["send_id"], self.send["claim"]
        if report.state is SlotState.HANDED_OVER:
            self.log.info("%s: goes on in the triggerer", report.label)
            self.defer(trigger=SlotRunTrigger(send_id, claim, dict(self.slot)), method_name="resume")
        sentence = f"{report.label}: {report.state}{', ' + report.reason if report.reason else ''}"
        self.log.info("%s; %d injected", sentence, report.injected)
        if report.state is SlotState.IDLE:
            self.defer(trigger=SlotWaitTrigger(send_id, self.slot["server_id"]), method_name="resume")
        if report.state is SlotState.FAILED or self._stop.is_set():
            raise AirflowException(sentence)
        if report.state is SlotState.LEFT:  # another execution took the send over: a retry would disturb it
            raise AirflowFailException(sentence)
        return {"label": report.label, "state": str(report.state), "reason": report.reason, "injected": report.injected}

    def _is_elsewhere(self) -> bool:
        """Whether the agent is on another machine, so that any process can run its slot."""
        from mailer_lib.database.engine import read
        from mailer_lib.fleet import servers
        from mailer_lib.terms import ChannelKind

        engine, _ = installation()
        with read(engine) as connection:
            return servers.get(connection, self.slot["server"]).channel is ChannelKind.SSH

    def _soon_worth_a_look(self) -> bool:
        """Wait a little, here; whether something has come up meanwhile."""
        from mailer_lib.dispatch.slot import worth_a_look

        engine, _ = installation()
        until = time.monotonic() + STAY_S
        while time.monotonic() < until and not self._stop.wait(1.0):
            if worth_a_look(engine, self.send["send_id"], self.slot["server_id"]):
                return True
        return False


class SlotWaitTrigger(BaseTrigger):
    """Fires when a slot of the send should look again: rows are free that its server may send, or the send is over.

    The first look is ``POLL_S`` after deferring: Airflow 3.3.2 may fail a task falsely whose trigger fires within a few
    seconds (apache/airflow #71580, #72716). It only reads, so a second triggerer that runs it too does no harm, and it
    has nothing to kill: an idle slot has no agent.
    """

    def __init__(self, send_id: int, server_id: int | None = None, poll_s: float = POLL_S) -> None:
        super().__init__()
        self.send_id = send_id
        self.server_id = server_id
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kept = {"send_id": self.send_id, "server_id": self.server_id, "poll_s": self.poll_s}
        return "mailfleet_airflow.slot.SlotWaitTrigger", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(self.poll_s)
        while not await asyncio.to_thread(self._worth_a_look):  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(self.poll_s)
        yield TriggerEvent({"send_id": self.send_id})

    def _worth_a_look(self) -> bool:
        from mailer_lib.dispatch.slot import worth_a_look

        engine, _ = installation()
        return worth_a_look(engine, self.send_id, self.server_id)
