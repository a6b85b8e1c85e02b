"""
# Start what is due

Every five minutes: campaigns with a time (`at`) or a rhythm (`cron`, in the campaign's time zone) whose moment
has come are started through **campaign_send**, mode `send`, with approval. A rhythm's editions are named by their slot,
such as `2026-11-24T0900`. After an outage only the latest slot of a rhythm is caught up. What nobody started or
approved before it expired is marked *expired*, and never sent late.

## Parameters

None. When a campaign is due is part of its file: `schedule: {at: …}` for once, `schedule: {cron: …, timezone: …}` for a
rhythm, and `expires_after`.

## Stop it, recover it

Pause this DAG and nothing starts by itself; what runs goes on. A run that failed needs no repair: the next one looks
again. One campaign less: take `schedule` out of its file and `mailfleet campaign create` it again.
A slot is never started twice: its edition is a send, and a send is opened once.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, task
from mailfleet_airflow.installation import installation
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, tags
from pendulum import datetime

log = logging.getLogger(__name__)


@dag(
    schedule=timedelta(minutes=5),
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.SENDING, Tag.SCHEDULED),
    doc_md=__doc__,
)
def campaign_schedule() -> None:
    TriggerDagRunOperator.partial(
        task_id="start",
        trigger_dag_id="campaign_send",
        logical_date=None,
        skip_when_already_exists=True,
        map_index_template="{{ task.trigger_run_id }}",
    ).expand_kwargs(look())


@task(task_id="look")
def look() -> list[dict[str, Any]]:
    """Expire what is too late; return what is to be triggered."""
    from mailer_lib.database.engine import now
    from mailer_lib.dispatch import schedule

    engine, _ = installation()
    moment = now()
    for expired in schedule.expire_overdue(engine, moment):
        log.warning("%s", expired)
    found = schedule.due_now(engine, moment)
    for one in found:
        log.info("due: %s#%s since %s", one.campaign, one.edition, one.slot.isoformat(timespec="minutes"))
    return [
        {
            "trigger_run_id": f"scheduled__{one.campaign}__{one.edition}",
            "conf": {"campaign": one.campaign, "edition": one.edition, "mode": "send", "approval": True},
        }
        for one in found
    ]


campaign_schedule()
