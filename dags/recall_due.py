"""
# Take back what must not be delivered any more

Every few minutes: when somebody has left since a send was over, or a send has expired, what the MTAs hold of it and
haven't delivered to them is taken out of their queues, and booked as *cancelled*. While a send runs, its own slots do
so. Only queues of our own Exims can be reached; a send is looked at for three days after its end, or until its queues
were seen empty.

## Parameters

None.

## Stop it, recover it

Pause this DAG, and mail that lies in a queue may reach people who have left meanwhile: don't, for long. A run that
failed says which server could not be reached; the next one tries again. The same for one send on the command line:
`mailfleet send recall CAMPAIGN#EDITION --due`.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException
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
def recall_due() -> None:
    recall()


@task(task_id="recall")
def recall() -> int:
    """Returns how many messages were taken back."""
    from mailer_lib.database.engine import now
    from mailer_lib.dispatch.recall_due import due_recalls
    from mailer_lib.dispatch.recall_send import recall_send

    engine, settings = installation()
    messages, troubles = 0, []
    for ref in due_recalls(engine, settings, now()):
        for one in recall_send(engine, settings, ref, "airflow:recall_due", due_only=True):
            messages += one.messages
            log.info("%s, %s: %s", ref, one.slot, one.trouble or f"{one.messages} taken back")
            if one.again:
                troubles.append(f"{ref}, {one.slot}: {one.trouble}")
    if troubles:
        raise AirflowException("; ".join(troubles))
    return messages


recall_due()
