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

## Decide after a test slice

A campaign with a `test_slice` sends its variants to that part of the people first; nobody else can be sent to before
somebody has decided which variant they get. The send is then *judging*, and the task *decision* waits deferred; its log
has the figures. Trigger **campaign_control** with `{"send": "…", "action": "decide", "variant": "B"}`, or with `stop`.
*dispatch_rest* sends the rest. A decision can't be changed.

## Stop, pause, slow down

Use the DAG **campaign_control** with `send` = `campaign#edition`. Airflow's own pause switch does not stop what runs.
Marking a *dispatch* task failed stops the agent of that server only. The other servers take the rows that it was never
granted; the few that it was wait until the campaign is triggered again, and the report says how many.

## Recover

Nothing is sent twice, whatever you do here. A task that failed: read its log, mend the cause, clear it. A run that
failed or was stopped: trigger the same campaign and edition again; it goes on where it ended. A send that is finished:
triggering it again tops it up with who joined since, or says that nobody is left. Rows are *unknown* when a server was
lost between handing over a message and noting the answer: `mailfleet send books CAMPAIGN#EDITION` counts them.

## Tasks

*open* claims the send (one run at a time) → *message* freezes the message while *plan*, *ranges* and *publish* freeze
the recipients → *check* refuses on an error → *summary* → *approval* → *slots* → *dispatch*, one for each server →
*decision*, which waits after a test slice only → *dispatch_rest* → *report*, which always runs, balances the books and
decides the state of the run.
"""

from __future__ import annotations

from airflow.sdk import Param, TriggerRule, dag
from mailfleet_airflow.approval import ApproveSendOperator
from mailfleet_airflow.decision import DecideRestOperator
from mailfleet_airflow.policy import DEFAULT_ARGS, AirflowPool, Tag, tags
from mailfleet_airflow.runs import note_failure
from mailfleet_airflow.send_tasks import (
    build_ranges,
    check_message,
    freeze_message,
    open_send,
    plan_recipients,
    publish_recipients,
    report,
    start_sending,
    summarise,
)
from mailfleet_airflow.slot import DispatchSlotOperator

from mailer_lib.terms import SendMode, UnknownPolicy

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
DISPATCH = {
    "pool": AirflowPool.DISPATCH,
    "retries": 5,
    "on_failure_callback": None,  # one server's failure isn't the send's: the books decide
    "map_index_template": "{{ task.slot['label'] }}",
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
    dispatch = DispatchSlotOperator.partial(task_id="dispatch", send=send, **DISPATCH).expand(slot=slots)
    decision = DecideRestOperator(task_id="decision", send=send, trigger_rule=TriggerRule.ALL_DONE)
    rest = DispatchSlotOperator.partial(task_id="dispatch_rest", send=send, **DISPATCH).expand(slot=decision.output)
    dispatch >> decision
    [dispatch, rest] >> report(send)


campaign_send()
