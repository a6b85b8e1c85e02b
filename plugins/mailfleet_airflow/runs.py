"""What a run of a DAG is called in the central database."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk.exceptions import AirflowFailException, AirflowRuntimeError

log = logging.getLogger(__name__)
_PREFIX = "airflow:"


def claim_of(dag_run: Any) -> str:
    """The claim that this run holds on its send, in every task and every retry."""
    return f"{_PREFIX}{dag_run.run_id}"


def has_ended(ti: Any, claim: str) -> bool:
    """Whether ``claim`` is that of another run of this DAG that is over, so that nobody will free it.

    Somebody marked that run as failed, or it was deleted in mid-air; its last task never came to close the send.
    """
    run_id = claim.removeprefix(_PREFIX)
    if run_id == claim or "…" in claim or run_id == ti.run_id:  # not ours, or shortened: can't be known
        return False
    try:
        state = ti.get_dagrun_state(dag_id=ti.dag_id, run_id=run_id)
    except AirflowRuntimeError as error:
        return (error.error.detail or {}).get("status_code") == 404  # there is no such run
    return str(state) in ("success", "failed")


def launched_by(dag_run: Any) -> str:
    """Who triggered the run: the user, or the DAG or schedule that did."""
    return str(dag_run.triggering_user_name or dag_run.run_id.split("__", 1)[0])


def batches(count: int, *, a_task: int, tasks_at_most: int) -> list[list[int]]:
    """``range(count)`` dealt to tasks of about ``a_task`` each, or more when that would be too many tasks.

    A task costs two seconds of CPU before it reads its first row, and a mapping holds 1,024 of them at most.
    """
    tasks = min(-(-count // a_task), tasks_at_most)
    return [list(range(first, count, tasks)) for first in range(tasks)]


def failed_tasks(ti: Any, *, but: tuple[str, ...]) -> list[str]:
    """Names of the tasks of this run that failed themselves; ``but``: tasks that aren't looked at.

    A mapped task is called ``<task>_<map index>`` here.
    """
    states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
    return sorted(name for name, state in states.items() if state == "failed" and re.sub(r"_\d+$", "", name) not in but)


@contextmanager
def not_retried(*kinds: type[Exception]) -> Iterator[None]:
    """What is wrong with the campaign, or with what was asked for, is said once: another try would find the same."""
    try:
        yield
    except kinds as error:
        raise AirflowFailException(str(error)) from error


def note_failure(context: Any) -> None:
    """A task of campaign_send failed for good: its sentence becomes the send's reason."""
    send = context["ti"].xcom_pull(task_ids="open")
    if send is not None:
        fail_send(send, str(context.get("exception") or f"the task {context['ti'].task_id} failed"))


def fail_send(send: dict[str, Any], reason: str) -> None:
    """Mark the send as failed, unless it has ended already or another run holds it."""
    from mailer_lib.dispatch import steps
    from mailer_lib.dispatch.sends import ClaimLostError
    from mailfleet_airflow.installation import installation

    try:
        steps.fail_step(*installation(), send["send_id"], send["claim"], reason)
    except ClaimLostError as error:
        log.info("%s", error)
