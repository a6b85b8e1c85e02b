"""What every DAG of ours has: owner, retries, tags, Airflow pools. tests/dags/test_policy.py holds them to it."""

import os
from datetime import timedelta
from enum import StrEnum
from typing import Any

OWNER = "mailfleet"


class Tag(StrEnum):
    """The only tags there are."""

    SENDING = "sending"
    FLEET = "fleet"
    OPERATOR = "operator"  # people trigger it
    SCHEDULED = "scheduled"  # the clock triggers it


class AirflowPool(StrEnum):
    """Airflow's own pools: how many tasks of a kind run at once. Not a *sending pool*, which shares a reputation."""

    DISPATCH = "mailfleet_dispatch"
    SNAPSHOT = "mailfleet_snapshot"


# Slots that the set-up gives each pool. Ranges of a snapshot read the central database in parallel; a dispatch task
# mostly waits for its agent.
POOL_SLOTS = {AirflowPool.DISPATCH: 64, AirflowPool.SNAPSHOT: 4}

DEFAULT_ARGS: dict[str, Any] = {
    "owner": OWNER,
    "retries": 2,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
}


def every_minutes(setting: str, default: int) -> timedelta:
    """A schedule that is a setting. Read from the environment alone, because a DAG file is parsed where the settings
    may be unusable; a value that is none falls back to the default."""
    text = os.environ.get(setting, "")
    return timedelta(minutes=int(text) if text.isdecimal() and int(text) else default)


def tags(*chosen: Tag) -> list[str]:
    """Tags of one DAG, as Airflow wants them."""
    return [tag.value for tag in chosen]
