"""Names that a run has in the central database, and how ranges are dealt to tasks."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 5000), st.integers(1, 16), st.integers(1, 64))
def test_every_range_is_dealt_once_and_evenly(count, a_task, at_most):
    from mailfleet_airflow.runs import batches

    dealt = batches(count, a_task=a_task, tasks_at_most=at_most)
    assert sorted(index for batch in dealt for index in batch) == list(range(count))
    assert len(dealt) <= at_most
    assert len(dealt) == at_most or all(len(batch) <= a_task for batch in dealt)
    assert not dealt or max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize(
    ("user", "run_id", "name"),
    [
        ("olivia", "manual__2026-11-24T09:00:00+00:00", "olivia"),
        (None, "scheduled__weekly__2026-11-23T0900", "scheduled"),
    ],
)
def test_who_launched_a_run(user, run_id, name):
    from mailfleet_airflow.runs import launched_by

    assert launched_by(SimpleNamespace(triggering_user_name=user, run_id=run_id)) == name


def test_a_failed_server_is_judged_by_the_books_and_every_other_failure_counts():
    from mailfleet_airflow.runs import failed_tasks

    states = {"check": "failed", "dispatch_0": "failed", "ranges_1": "failed", "summary": "upstream_failed"}
    ti = SimpleNamespace(dag_id="d", run_id="r", get_task_states=lambda **_: {"r": states})
    assert failed_tasks(ti, but=("dispatch", "dispatch_rest", "report")) == ["check", "ranges_1"]


@pytest.mark.parametrize(
    ("claim", "state", "ended"),
    [
        ("airflow:manual__old", "failed", True),
        ("airflow:manual__old", "success", True),
        ("airflow:manual__old", "running", False),
        ("airflow:manual__old", 404, True),  # the run was deleted
        ("airflow:manual__old", 503, False),  # Airflow doesn't answer
        ("airflow:manual__me", "running", False),
        ("airflow:manual__a-very-long-name…0123456789abcdef", "failed", False),  # shortened: can't be known
        ("process:host:1:abcd", "failed", False),
    ],
)
def test_whose_claim_is_freed(claim, state, ended):
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse
    from mailfleet_airflow.runs import has_ended

    def get_dagrun_state(dag_id, run_id):
        if isinstance(state, int):
            answer = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": state})
            raise AirflowRuntimeError(answer)
        return state

    ti = SimpleNamespace(dag_id="campaign_send", run_id="manual__me", get_dagrun_state=get_dagrun_state)
    assert has_ended(ti, claim) is ended
