"""The task that waits until a person has decided which variant the rest of a test slice gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from mailfleet_airflow.installation import installation
from mailfleet_airflow.links import PreviewLink
from mailfleet_airflow.slot import SlotWaitTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class DecideRestOperator(BaseOperator):
    """Wait for the decision, and return the slots that the rest is sent from; none when no row waits for one.

    It is deferred and takes no worker. The decision is made with the DAG campaign_control or ``mailfleet send decide``,
    not as an answer to this task: it is stored in the central database, so it counts whatever Airflow loses, and both
    ways lead to the same one. What is known of the variants is in this task's log.

    Args:
        send: what *open* returned; None when it failed.
    """

    template_fields: Sequence[str] = ("send",)
    operator_extra_links = (PreviewLink(),)

    def __init__(self, *, send: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.send = send

    def execute(self, context: Context) -> Any:
        return self._look()

    def resume(self, context: Context, event: Any = None) -> Any:
        """After the trigger fired: look again."""
        return self._look()

    def _look(self) -> list[dict[str, Any]]:
        from mailer_lib.dispatch import steps
        from mailer_lib.dispatch.decision import Verdict
        from mailer_lib.dispatch.sends import ClaimLostError

        if self.send is None:
            return []
        send_id, claim = self.send["send_id"], self.send["claim"]
        try:
            verdict = Verdict(steps.judge(*installation(), send_id, claim)["verdict"])
        except ClaimLostError as error:  # closed already, or another run goes on with it
            self.log.info("%s", error)
            return []
        if verdict is Verdict.WAITING:
            self.log.info("%s", steps.decision_question(*installation(), send_id))
            self.defer(trigger=DecisionWaitTrigger(send_id=send_id), method_name="resume")
        if verdict is Verdict.DECIDED:
            return steps.start_sending(*installation(), send_id, claim)
        self.log.info("No row waits for a decision.")
        return []


class DecisionWaitTrigger(SlotWaitTrigger):
    """Fires when the decision was made, its time is over, or the send is. It only reads."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        _, arguments = super().serialize()
        return "mailfleet_airflow.decision.DecisionWaitTrigger", arguments

    def _worth_a_look(self) -> bool:
        from mailer_lib.dispatch.decision import worth_judging

        engine, _ = installation()
        return worth_judging(engine, self.send_id)
