"""A whole send in this process: the steps in their order, the slots in threads. What the DAG does, without Airflow."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine

from mailer_lib.dispatch import steps
from mailer_lib.dispatch.decision import Verdict, worth_judging
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.sends import HEARTBEAT_S, ClaimLostError, current_send
from mailer_lib.dispatch.slot import SlotProgress, SlotReport, SlotState, run_slot, worth_a_look
from mailer_lib.dispatch.steps import Opened
from mailer_lib.dispatch.summary import ApprovalSummary
from mailer_lib.settings import Settings
from mailer_lib.terms import SendMode, SendState, UnknownPolicy

IDLE_LOOK_S = 0.5
PATIENCE = timedelta(seconds=5)  # all slots are threads here: one that ended isn't coming back


@dataclass(frozen=True)
class Answer:
    """What the approver said. ``by`` None: nobody is asked."""

    approved: bool
    by: str | None = None


@dataclass
class Hooks:
    """What the caller wants to hear and to be asked; all of it optional."""

    step: Callable[[str], object] = lambda sentence: None
    ranges: Callable[[int, int], object] = lambda done, total: None
    progress: Callable[[SlotProgress], object] = lambda progress: None
    approve: Callable[[ApprovalSummary], Answer] = lambda summary: Answer(approved=True)
    judge: Callable[[str], object] = lambda figures: None  # the test slice was sent; hears the figures once
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Trigger:
    """Who wants what sent."""

    campaign: str
    edition: str
    mode: SendMode
    launched_by: str
    claim: str
    take_over: bool = False
    unknown_policy: UnknownPolicy = UnknownPolicy.LEAVE
    processes: int | None = None  # that read recipients; None: as many as suit this machine


def run_send(engine: Engine, settings: Settings, trigger: Trigger, hooks: Hooks | None = None) -> dict[str, Any]:
    """The whole road; returns the report (``summary.make_report``).

    What goes wrong on the way is noted on the send, which ends FAILED and can be triggered again, and then raised.
    """
    hooks = hooks or Hooks()
    opened = steps.open_step(
        engine,
        settings,
        campaign=trigger.campaign,
        edition=trigger.edition,
        mode=trigger.mode,
        launched_by=trigger.launched_by,
        claim=trigger.claim,
        take_over=trigger.take_over,
    )
    send_id, claim = opened["send_id"], opened["claim"]
    hooks.step(f"{opened['send']} opened, phase {opened['phase']}" + (", going on" if opened["resuming"] else ""))
    try:
        _prepare_and_send(engine, settings, trigger, opened, hooks)
    except ClaimLostError:
        raise
    except BaseException as error:
        _note_failure(engine, settings, send_id, claim, error)
        raise
    steps.close_step(engine, settings, send_id, claim)
    return steps.report(engine, settings, send_id)


def _prepare_and_send(engine: Engine, settings: Settings, trigger: Trigger, opened: Opened, hooks: Hooks) -> None:
    send_id, claim = opened["send_id"], opened["claim"]
    message = steps.freeze_message(engine, settings, send_id, claim)
    hooks.step(f"message frozen: {message['content_hash'][:12]}, {message['links']} tracked links")
    plan = steps.plan_recipients(engine, settings, send_id, claim)
    if plan["ranges"]:
        steps.build_all_recipients(
            engine, settings, send_id, claim, plan["plan"], processes=trigger.processes, progress=hooks.ranges
        )
    published = steps.publish_recipients(engine, settings, send_id, claim, unknown_policy=trigger.unknown_policy)
    hooks.step(f"{published['frozen']:,} recipients frozen, {published['excluded']:,} excluded")
    warnings = steps.check_message(engine, settings, send_id, claim)["warnings"]
    summary = steps.approval_summary(engine, settings, send_id, claim, warnings)
    if summary["nothing_to_send"]:
        hooks.step("nobody is left to send to")
        return
    if trigger.mode == SendMode.DRY_RUN:
        hooks.approve(summary)
        return
    if not _approved(engine, settings, opened, summary, hooks):
        return
    while True:
        slots = [Slot(**slot) for slot in steps.start_sending(engine, settings, send_id, claim)]
        hooks.step(f"sending from {', '.join(slot.label for slot in slots)}")
        reports = run_slots(engine, settings, send_id, slots, claim=claim, hooks=hooks)
        for report in reports:
            if report.state in (SlotState.FAILED, SlotState.FENCED, SlotState.STRANDED):
                hooks.step(f"{report.label}: {report.reason}")
        if all(report.state is not SlotState.JUDGING for report in reports):
            return
        if not _decided(engine, settings, send_id, claim, hooks):
            return


def _decided(engine: Engine, settings: Settings, send_id: int, claim: str, hooks: Hooks) -> bool:
    """Wait for the decision after the test slice. False: the send was stopped, has expired, or this shall end."""
    said = False
    while not hooks.should_stop():
        answer = steps.judge(engine, settings, send_id, claim)
        if answer["verdict"] != Verdict.WAITING:
            return answer["verdict"] == Verdict.DECIDED
        if not said:
            hooks.judge(steps.decision_question(engine, settings, send_id))
            said = True
        until = time.monotonic() + HEARTBEAT_S
        while time.monotonic() < until and not hooks.should_stop() and not worth_judging(engine, send_id):
            time.sleep(IDLE_LOOK_S)
    return False


def _approved(engine: Engine, settings: Settings, opened: Opened, summary: ApprovalSummary, hooks: Hooks) -> bool:
    send_id, claim = opened["send_id"], opened["claim"]
    if current_send(engine, send_id).state in (SendState.APPROVED, SendState.RUNNING, SendState.JUDGING):
        return True  # it goes on under the approval that it has
    answer = hooks.approve(summary)
    if not answer.approved:
        steps.record_rejection(engine, settings, send_id, claim, by=answer.by or "nobody")
        return False
    if answer.by is None:
        steps.skip_approval(engine, settings, send_id, claim)
    else:
        steps.record_approval(engine, settings, send_id, claim, digest=summary["digest"], approver=answer.by)
    return True


def run_slots(
    engine: Engine, settings: Settings, send_id: int, slots: list[Slot], *, claim: str, hooks: Hooks
) -> list[SlotReport]:
    """Every slot in a thread of its own, idle ones looking again, until each is at its end."""
    failed = threading.Event()

    def should_stop() -> bool:
        return failed.is_set() or hooks.should_stop()

    def one(slot: Slot) -> SlotReport:
        try:
            while True:
                report = run_slot(
                    engine,
                    settings,
                    send_id,
                    slot,
                    on_progress=hooks.progress,
                    should_stop=should_stop,
                    claim=claim,
                    progress_every_s=1.0,
                    patience=PATIENCE,
                )
                if report.state is not SlotState.IDLE:
                    return report
                while not should_stop() and not worth_a_look(engine, send_id, slot.server_id, ended_after=PATIENCE):
                    time.sleep(IDLE_LOOK_S)
        except BaseException:
            failed.set()  # the others end in order too, and give back what they were not granted
            raise

    with ThreadPoolExecutor(max_workers=len(slots), thread_name_prefix="slot") as threads:
        futures = [threads.submit(one, slot) for slot in slots]
        try:
            return [future.result() for future in futures]
        except BaseException:
            failed.set()
            raise


def _note_failure(engine: Engine, settings: Settings, send_id: int, claim: str, error: BaseException) -> None:
    """The send is FAILED for this reason; what it has booked stays, and a later trigger goes on."""
    reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
    try:
        steps.fail_step(engine, settings, send_id, claim, reason)
    except ClaimLostError:
        return
