"""What a run of a DAG is called in the central database."""

from __future__ import annotations

import re
from typing import Any


def claim_of(dag_run: Any) -> str:
    """The claim that this run holds on its send, in every task and every retry."""
    return f"airflow:{dag_run.run_id}"


def launched_by(dag_run: Any) -> str:
    """Who triggered the run: the user, or the DAG or schedule that did."""
    return str(dag_run.triggering_user_name or dag_run.run_id.split("__", 1)[0])


def batches(count: int, at_most: int) -> list[list[int]]:
    """``range(count)`` dealt to at most ``at_most`` tasks, as evenly as it goes.

    A task costs about a second of CPU and a mapping holds 1,024 of them at most, so many small ranges share one.
    """
    tasks = min(count, at_most)
    return [list(range(first, count, tasks)) for first in range(tasks)]


def failed_tasks(ti: Any, *, but: tuple[str, ...]) -> list[str]:
    """Names of the tasks of this run that failed themselves; ``but``: tasks that aren't looked at.

    A mapped task is called ``<task>_<map index>`` here.
    """
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    return sorted(name for name, state in states.items() if state == "failed" and re.sub(r"_\d+$", "", name) not in but)
