"""
# Remove what isn't kept for ever

Once a night: job folders of sends that have been over for `MAILFLEET_JOB_FOLDER_DAYS`, on this machine and on dispatch
servers (their ledgers are kept with the snapshots); verifications of servers older than 180 days and looks at them
older than 14, but for the newest of each server. Snapshots are blanked by `mailfleet snapshot expire`, when you say so.

## Parameters

None.

## Stop it, recover it

Pause this DAG and nothing is removed. It may be run at any time, and again after a failure: a server that couldn't be
reached is asked then. A server that was given up is left alone until it is reconciled. The same on the command line:
`mailfleet fleet tidy`.
"""

from __future__ import annotations

import logging

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowException
from mailfleet_airflow.installation import installation
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, tags
from pendulum import datetime

log = logging.getLogger(__name__)


@dag(
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.FLEET, Tag.SCHEDULED),
    doc_md=__doc__,
)
def housekeeping() -> None:
    keep_house()


@task(task_id="keep_house")
def keep_house() -> None:
    from mailer_lib.dispatch import housekeeping as work

    engine, settings = installation()
    done = work.keep_house(engine, settings, actor="airflow:housekeeping")
    for sentence in done.sentences():
        log.info("%s", sentence)
    if done.troubles:
        raise AirflowException("; ".join(done.troubles))


housekeeping()
