"""The task that asks a person before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time.hitl import HITLUser
from airflow.sdk.timezone import utcnow

from mailer_lib.terms import SendMode, SendState
from mailfleet_airflow.installation import installation
from mailfleet_airflow.links import PreviewLink
from mailfleet_airflow.runs import launched_by

if TYPE_CHECKING:
    from airflow.sdk import Context

APPROVE = "Approve"
REJECT = "Reject"
VALID_FOR = timedelta(hours=24)
NO_ANSWER = "nobody answered within 24 hours, so nothing was sent: trigger the DAG again to ask again"


class ApproveSendOperator(HITLOperator):
    """Show what would be sent, to whom, and wait for Approve or Reject.

    The question is the step *summary*'s markdown: counts by mailbox provider and exclusion reason, the difference from
    the last send, warnings, forecast and a link to the rendered preview. An approval holds for the content hash and the
    snapshot checksum that were shown: they are compared again when the answer comes. A rejection, or 24 hours without
    an answer, ends the send. Nothing is asked when there is nothing to decide (``reason_not_to_ask``).

    Args:
        send: what *open* returned.
        summary: what *summary* returned.

    Whether to ask and who may answer: the run's parameters ``approval`` and ``approvers``, and the campaign's own
    ``approval: {required, approvers}``. A form can't switch off what the campaign requires.
    """

    template_fields: Sequence[str] = ("send", "summary")
    operator_extra_links = (PreviewLink(),)

    def __init__(self, *, send: Any, summary: Any, **kwargs: Any) -> None:
        super().__init__(
            subject="Send it?", options=[APPROVE, REJECT], defaults=None, response_timeout=VALID_FOR, **kwargs
        )
        self.send = send
        self.summary = summary

    def execute(self, context: Context) -> Any:
        from mailer_lib.database.engine import read
        from mailer_lib.dispatch import steps
        from mailer_lib.dispatch.sends import get_send
        from mailer_lib.message.campaign import get_campaign

        engine, settings = installation()
        send_id, claim = self.send["send_id"], self.send["claim"]
        with read(engine) as connection:
            rule = get_campaign(connection, self.send["campaign"]).approval
            present = get_send(connection, send_id)
        if present.state is SendState.REJECTED:  # the answer was noted, and Airflow lost the task that noted it
            raise AirflowFailException(present.reason or "rejected")
        wanted = bool(context["params"].get("approval", True)) or rule.required
        approvers = context["params"].get("approvers") or rule.approvers
        why_not = reason_not_to_ask(present.mode, present.state, nothing_to_send=self.summary["nothing_to_send"])
        if why_not is None and not wanted:
            why_not = "approval is switched off for this run"
            steps.skip_approval(engine, settings, send_id, claim)
        if why_not is not None:
            self.log.info("Nobody is asked: %s.", why_not)
            return {"approved_by": None, "why": why_not}
        self.subject = f"Send {self.summary['send']} to {self.summary['left']:,} people?"
        self.body = self.summary["markdown"]
        self.assigned_users = [HITLUser(id=name, name=name) for name in approvers]
        context["ti"].xcom_push(key=PreviewLink().xcom_key, value=self.summary["preview_url"])
        context["ti"].xcom_push(key="asked_at", value=utcnow().isoformat())
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        from mailer_lib.dispatch import steps

        engine, settings = installation()
        send_id, claim = self.send["send_id"], self.send["claim"]
        try:
            answer = super().execute_complete(context, event)
        except HITLTimeoutError:
            raise AirflowFailException(NO_ANSWER) from None
        asked_at = context["ti"].xcom_pull(task_ids=self.task_id, key="asked_at")
        if answered_too_late(datetime.fromisoformat(asked_at), answer["responded_at"]):
            raise AirflowFailException(NO_ANSWER)
        who = answer["responded_by_user"]["name"] if answer["responded_by_user"] else "nobody"
        if settings.approver_must_differ and who == launched_by(context["dag_run"]) and approved(answer):
            self.log.warning("%s launched this send and so can't approve it; the question stays open.", who)
            return super().execute(context)  # drops the answer and waits again; asked_at stays
        if not approved(answer):
            steps.record_rejection(engine, settings, send_id, claim, by=who)
            raise AirflowFailException(f"rejected by {who}")
        try:
            return steps.record_approval(engine, settings, send_id, claim, digest=self.summary["digest"], approver=who)
        except ValueError as error:  # asking again would show the same outdated numbers
            raise AirflowFailException(str(error)) from error


def reason_not_to_ask(mode: SendMode, state: SendState, *, nothing_to_send: bool) -> str | None:
    """Why there is nothing to decide; None when there is."""
    if mode is SendMode.DRY_RUN:
        return "a dry run sends nothing"
    if nothing_to_send:
        return "nobody is left to send to"
    if state in (SendState.APPROVED, SendState.RUNNING):
        return "it was approved before, and neither message nor recipients have changed"
    return None


def approved(answer: Any) -> bool:
    """Whether the answer is a yes, and nothing else."""
    return list(answer["chosen_options"]) == [APPROVE]


def answered_too_late(asked_at: datetime, responded_at: datetime | str) -> bool:
    """Airflow accepts an answer to a question whose time is over; we don't."""
    if isinstance(responded_at, str):
        responded_at = datetime.fromisoformat(responded_at)
    return responded_at - asked_at > VALID_FOR
