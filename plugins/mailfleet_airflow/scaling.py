"""The task that asks a person whether a server is to be added or taken away, and the one that does it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from mailer_lib.terms import ScaleAction, ScaleState
from mailfleet_airflow.approval import APPROVE, REJECT, approved
from mailfleet_airflow.installation import installation

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)
ASK_FOR = timedelta(hours=1)  # as dispatch.scale_book has it


class ApproveScalingOperator(HITLOperator):
    """Show a decision with its reason, and wait for Approve or Reject, for an hour at most.

    An approval is stored before anything is done about it. It holds for this decision; what is decided anew when it is
    applied must be the same. Nothing is asked about what is approved already: by the setting ``scale_automatic``, or on
    the command line.

    Args:
        decision: one element of what *look* returned.
    """

    template_fields: Sequence[str] = ("decision",)

    def __init__(self, *, decision: Any, **kwargs: Any) -> None:
        super().__init__(
            subject="Change the fleet?", options=[APPROVE, REJECT], defaults=None, response_timeout=ASK_FOR, **kwargs
        )
        self.decision = decision

    def execute(self, context: Context) -> Any:
        present = self._present()
        if present["state"] != ScaleState.PROPOSED:
            self.log.info("Nobody is asked: decision %s is %s.", present["id"], present["state"])
            return present
        self.subject = f"{present['title'].capitalize()}?"
        self.body = f"{present['reason']}\n\nDecision {present['id']}; `mailfleet fleet show` has its figures."
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        from mailer_lib.dispatch import scale_book

        engine, _ = installation()
        try:
            answer = super().execute_complete(context, event)
        except HITLTimeoutError:
            self.log.info("Nobody answered within an hour; the next look asks again if it still holds.")
            return self._present()
        who = answer["responded_by_user"]["name"] if answer["responded_by_user"] else "nobody"
        answered = scale_book.approve if approved(answer) else scale_book.reject
        try:
            answered(engine, self.decision["id"], by=who)
        except scale_book.ScaleError as error:  # answered before, or too late
            self.log.info("%s", error)
        return self._present()

    def _present(self) -> dict[str, Any]:
        from mailer_lib.database.engine import read
        from mailer_lib.dispatch import scale_book

        engine, _ = installation()
        with read(engine) as connection:
            return scale_book.get(connection, self.decision["id"]).as_dict()


@task(task_id="look")
def look_at_pools() -> list[dict[str, Any]]:
    """Decide about each sending pool; return what a person, or the next task, has to do with."""
    from mailer_lib.dispatch import scale_book

    engine, settings = installation()
    found = scale_book.look(engine, settings, actor=f"airflow:{get_current_context()['dag_run'].run_id}")
    for one in found:
        log.info("%s: %s (%s, %s)", one.pool, one.reason, one.title, one.state)
    waiting = (ScaleState.PROPOSED, ScaleState.APPROVED)
    return [one.as_dict() for one in found if one.action is not ScaleAction.NONE and one.state in waiting]


@task(task_id="apply", map_index_template="{{ decision['title'] }}")
def apply_decision(decision: dict[str, Any]) -> str:
    from mailer_lib.dispatch.scale_apply import Applier
    from mailer_lib.dispatch.server_builder import FleetBuilder
    from mailer_lib.fleet.hosts import source_of

    if decision["state"] not in (ScaleState.APPROVED, ScaleState.APPLYING):
        log.info("Nothing is done: decision %s is %s.", decision["id"], decision["state"])
        return decision["state"]
    engine, settings = installation()
    actor = f"airflow:{get_current_context()['dag_run'].run_id}"
    builder = FleetBuilder(engine, settings, actor, log.info)
    done = Applier(engine, settings, actor, builder, source_of(settings), log.info).apply(decision["id"])
    if done.state is ScaleState.FAILED:  # stored with its cause: the next look decides anew
        raise AirflowFailException(f"{done.title}: {done.outcome}")
    return f"{done.state}: {done.outcome}"
