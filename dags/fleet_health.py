"""
# Look after the dispatch servers

Every few minutes each server that is in service, draining or on standby is asked how it is: its MTA's queue by domain
and age, load, disk, clock, and the age of certificate and key. What was found is stored for 14 days; `fleet_scale`
reads the queues from it. When a server turns sick, or doesn't answer twice, people are told once: in this task's log,
and at the address that `MAILFLEET_NOTIFY_URL_REF` points to.

## Parameters

None. `MAILFLEET_SCALE_EVERY_MIN` says how often.

## Stop it, recover it

Pause this DAG and nobody looks; nothing else stops, but `fleet_scale` can't take a server away while its queue isn't
known. A run that failed needs no repair: the next one looks again. The same on the command line:
`mailfleet server health`, with `--look` to ask at once.
"""

from __future__ import annotations

from airflow.sdk import dag
from mailfleet_airflow.policy import DEFAULT_ARGS, Tag, every_minutes, tags
from mailfleet_airflow.sick_server import look_at_servers
from pendulum import datetime


@dag(
    schedule=every_minutes("MAILFLEET_SCALE_EVERY_MIN", 5),
    start_date=datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.FLEET, Tag.SCHEDULED),
    doc_md=__doc__,
)
def fleet_health() -> None:
    look_at_servers()


fleet_health()
