"""The tasks of campaign_send, one for each step of a send (docs/architecture.md, "Steps of a send").

A task gets plain data, calls its step, and returns plain data; the library is imported when it runs, because importing
it costs a second that the parsing of a DAG file hasn't got.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from airflow.sdk import TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from mailer_lib.terms import SendMode, UnknownPolicy
from mailfleet_airflow.installation import installation
from mailfleet_airflow.policy import AirflowPool
from mailfleet_airflow.runs import (
    batches,
    claim_of,
    fail_send,
    failed_tasks,
    has_ended,
    launched_by,
    not_retried,
)

log = logging.getLogger(__name__)
BATCHES = {"a_task": 4, "tasks_at_most": 16}  # of id ranges


@task(task_id="open", on_failure_callback=None)
def open_send() -> dict[str, Any]:
    from mailer_lib.dispatch import steps
    from mailer_lib.dispatch.claims import free_claims

    context = get_current_context()
    engine, settings = installation()
    run, params = context["dag_run"], context["params"]
    for claim in free_claims(engine, params["campaign"], partial(has_ended, context["ti"])):
        log.warning("%s ended without closing its send; its claim is freed", claim)
    with not_retried(ValueError):
        return steps.open_step(
            engine,
            settings,
            campaign=params["campaign"],
            edition=params["edition"],
            mode=SendMode(params["mode"]),
            launched_by=launched_by(run),
            claim=claim_of(run),
        )


@task(task_id="message")
def freeze_message(send: dict[str, Any]) -> dict[str, Any]:
    from mailer_lib.dispatch import steps

    return steps.freeze_message(*installation(), send["send_id"], send["claim"])


@task(task_id="plan")
def plan_recipients(send: dict[str, Any]) -> list[dict[str, Any]]:
    from mailer_lib.dispatch import steps

    plan = steps.plan_recipients(*installation(), send["send_id"], send["claim"])
    return [{"plan": plan["plan"], "indexes": indexes} for indexes in batches(plan["ranges"], **BATCHES)]


@task(task_id="ranges", pool=AirflowPool.SNAPSHOT)
def build_ranges(send: dict[str, Any], batch: dict[str, Any]) -> dict[str, int]:
    from mailer_lib.dispatch import steps

    built = [
        steps.build_recipients(*installation(), send["send_id"], send["claim"], batch["plan"], index)
        for index in batch["indexes"]
    ]
    return {name: sum(one[name] for one in built) for name in ("rows", "excluded")}


@task(task_id="publish", trigger_rule=TriggerRule.NONE_FAILED)
def publish_recipients(send: dict[str, Any]) -> dict[str, Any]:
    from mailer_lib.dispatch import steps

    policy = UnknownPolicy(get_current_context()["params"]["unknown_policy"])
    return steps.publish_recipients(*installation(), send["send_id"], send["claim"], unknown_policy=policy)


@task(task_id="check")
def check_message(send: dict[str, Any]) -> dict[str, Any]:
    from mailer_lib.dispatch import steps

    with not_retried(steps.PreflightError):
        checked = steps.check_message(*installation(), send["send_id"], send["claim"])
    for warning in checked["warnings"]:
        log.warning("%s", warning)
    return checked


@task(task_id="summary")
def summarise(send: dict[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
    from mailer_lib.dispatch import steps

    summary = steps.approval_summary(*installation(), send["send_id"], send["claim"], checked["warnings"])
    log.info("%s", summary["markdown"])
    return summary


@task(task_id="slots")
def start_sending(send: dict[str, Any], summary: dict[str, Any]) -> list[dict[str, Any]]:
    from mailer_lib.dispatch import steps

    if send["mode"] == SendMode.DRY_RUN or summary["nothing_to_send"]:
        log.info("Nothing is sent: %s.", "a dry run" if send["mode"] == SendMode.DRY_RUN else "nobody is left")
        return []
    return steps.start_sending(*installation(), send["send_id"], send["claim"])


@task(task_id="report", trigger_rule=TriggerRule.ALL_DONE, on_failure_callback=None)
def report(send: dict[str, Any] | None) -> dict[str, Any]:
    from mailer_lib.dispatch import steps

    context = get_current_context()
    broken = failed_tasks(context["ti"], but=("dispatch", "dispatch_rest", "report"))
    if send is None:
        raise AirflowFailException("nothing was opened: the log of the task *open* says why")
    if broken:  # a task that was killed had no last word of its own
        fail_send(send, f"a task failed: {', '.join(broken)}; its log says why")
    steps.close_step(*installation(), send["send_id"], send["claim"])
    result = steps.report(*installation(), send["send_id"])
    log.info("%s", result["markdown"])
    if not result["ok"]:
        raise AirflowFailException(result["reason"])
    return result["books"]
