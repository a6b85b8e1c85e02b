"""
# More or fewer dispatch servers

Every few minutes each sending pool is looked at: which sends run, when they would be done, and by when they should be.
When our own capacity is what makes a send late, a server is proposed: one on standby whose address is warm, one that is
cold, or a machine that is rented. A person is asked. When the mailbox providers' limits or deferrals bind, nothing is
added, and the log says so: another server can't help then. A server that was idle for long is drained, and when its
queue is empty it goes back on standby, or its machine is given back.

## Parameters

None. What is allowed are settings: `MAILFLEET_SCALE_AUTOMATIC`, `…_MAX_SERVERS`, `…_BUDGET_PER_DAY`, `…_CONFIRM_S`,
`…_COOLDOWN_S`, `…_IDLE_DAYS`, `…_EVERY_MIN` (docs/deployment.md).

## Approve

The task *approval* waits in state *awaiting input* for at most an hour; its question names the send, how late it would
be, and what the server would change. The same question isn't asked twice at a time. When the answer comes, the decision
is made once more: if it no longer holds, nothing is done.

## Stop it, recover it

Pause this DAG and the fleet stays as it is; sends go on. A run that failed needs no repair: `mailfleet fleet show` has
the cause, and the next look decides anew, after a cool-down. A machine is rented once for a decision, however often its
task is tried. Without Airflow: `mailfleet fleet plan`, `decide`, `approve NUMBER`, `reject NUMBER`.
"""

from __future__ import annotations

from airflow.sdk import dag
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, every_minutes, tags
from mailfleet_airflow.scaling import ApproveScalingOperator, apply_decision, look_at_pools
from pendulum import datetime


@dag(
    schedule=every_minutes("MAILFLEET_SCALE_EVERY_MIN", 5),
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=4,  # a question waits for an hour; other sending pools are looked at meanwhile
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.FLEET, Tag.SCHEDULED),
    doc_md=__doc__,
)
def fleet_scale() -> None:
    approval = ApproveScalingOperator.partial(
        task_id="approval", map_index_template="{{ task.decision['title'] }}"
    ).expand(decision=look_at_pools())
    apply_decision.expand(decision=approval.output)


fleet_scale()
