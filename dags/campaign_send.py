"""
# Send a campaign

Picks the recipients by the campaign's criteria, freezes them and the message, asks for approval, and sends through
every dispatch server of the campaign's sending pool. Ends with the books, which balance to the recipient:
`frozen = injected + rejected + suppressed + failed + expired + cancelled + unknown`.

## Parameters

| parameter | what it does |
| --- | --- |
| **campaign** | name of a campaign (`mailfleet campaign show NAME` prints a link with this form filled in) |
| **edition** | `1` for a one-off; another edition is another send, and reaches the same people again |
| **mode** | `dry-run` counts and shows, and sends nothing · `test` sends to the campaign's seed list · `send` sends |
| **approval** | ask somebody before anything is sent; off only works where the campaign doesn't require it |
| **approvers** | user names that may answer; empty: the campaign's own, or else whoever may trigger this DAG |
| **unknown_policy** | triggered again: `leave` those whose outcome is unknown, or `resend` (may mail a person twice) |

Example: `{"campaign": "spring-sale", "edition": "1", "mode": "send", "approval": true}`

## Approve

The task *approval* waits in state *awaiting input*, for at most 24 hours: open it, read *Required actions*. An approval
holds for the message and the recipients that were shown. A rejection ends the run as failed, "rejected by NAME".

## Stop, pause, slow down

Use the DAG **campaign_control** with `send` = `campaign#edition`. Airflow's own pause switch does not stop what runs.
Marking a *dispatch* task failed stops the agent of that server only; the other servers take its rows.

## Recover

Nothing is sent twice, whatever you do here. A task that failed: read its log, mend the cause, clear it. A run that
failed or was stopped: trigger the same campaign and edition again; it goes on where it ended. A send that is finished:
triggering it again tops it up with who joined since, or says that nobody is left. Rows are *unknown* when a server was
lost between handing over a message and noting the answer: `mailfleet send books CAMPAIGN#EDITION` counts them.

## Tasks

*open* claims the send (one run at a time) → *message* freezes the message while *plan*, *ranges* and *publish* freeze
the recipients → *check* refuses on an error → *summary* → *approval* → *slots* → *dispatch*, one for each server →
*report*, which always runs, balances the books and decides the state of the run.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from mailfleet_airflow.approval import ApproveSendOperator
from mailfleet_airflow.installation import installation
from mailfleet_airflow.policy import DEFAULT_ARGS, AirflowPool, Tag, tags
from mailfleet_airflow.runs import batches, claim_of, fail_send, failed_tasks, has_ended, launched_by, note_failure
from mailfleet_airflow.slot import DispatchSlotOperator

from mailer_lib.terms import SendMode, UnknownPolicy

log = logging.getLogger(__name__)
BATCHES = {"a_task": 4, "tasks_at_most": 16}  # of id ranges

PARAMS = {
    "campaign": Param(type="string", minLength=1, title="Campaign", description="its name"),
    "edition": Param(
        "1",
        type="string",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}$",
        title="Edition",
        description="1 for a one-off",
    ),
    "mode": Param(
        SendMode.DRY_RUN.value,
        enum=[mode.value for mode in SendMode],
        values_display={"dry-run": "dry run: count, send nothing", "test": "test: to the seed list", "send": "send"},
        title="Mode",
    ),
    "approval": Param(True, type="boolean", title="Approval", description="ask somebody before anything is sent"),
    "approvers": Param(
        [],
        type=["array", "null"],
        items={"type": "string"},
        title="Approvers",
        description="user names; empty: anybody",
    ),
    "unknown_policy": Param(
        UnknownPolicy.LEAVE.value,
        enum=[policy.value for policy in UnknownPolicy],
        title="Unknown outcomes",
        description="leave them, or resend (may mail a person twice)",
    ),
}


@dag(
    schedule=None,
    params=PARAMS,
    max_active_runs=8,
    default_args=DEFAULT_ARGS | {"on_failure_callback": note_failure},
    tags=tags(Tag.SENDING, Tag.OPERATOR),
    doc_md=__doc__,
)
def campaign_send() -> None:
    send = open_send()
    message = freeze_message(send)
    ranges = build_ranges.partial(send=send).expand(batch=plan_recipients(send))
    checked = check_message(send)
    message >> checked
    published = publish_recipients(send)
    [message, ranges] >> published
    summary = summarise(send, checked)
    published >> summary
    approval = ApproveSendOperator(task_id="approval", send=send, summary=summary)
    slots = start_sending(send, summary)
    approval >> slots
    dispatch = DispatchSlotOperator.partial(
        task_id="dispatch",
        send=send,
        pool=AirflowPool.DISPATCH,
        retries=5,
        on_failure_callback=None,  # one server's failure isn't the send's: the books decide
        map_index_template="{{ server_label or task.slot['label'] }}",
    ).expand(slot=slots)
    dispatch >> report(send)


@task(task_id="open", on_failure_callback=None)
def open_send() -> dict[str, Any]:
    from mailer_lib.dispatch import steps
    from mailer_lib.dispatch.claims import free_claims

    context = get_current_context()
    engine, settings = installation()
    run, params = context["dag_run"], context["params"]
    for claim in free_claims(engine, params["campaign"], partial(has_ended, context["ti"])):
        log.warning("%s ended without closing its send; its claim is freed", claim)
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
    broken = failed_tasks(context["ti"], but=("dispatch", "report"))
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


campaign_send()
