"""The task that waits for the decision after a test slice, and its trigger."""

import asyncio

import pytest
from sqlalchemy import update

from mailer_lib.database.engine import write
from mailer_lib.database.schema import sends, shards
from mailer_lib.terms import SendState
from tests.plugins.test_slot import send_id  # noqa: F401  # fixture


def fires(send_id: int, timeout_s: float) -> bool:  # noqa: F811
    from mailfleet_airflow.decision import DecisionWaitTrigger

    async def first() -> object:
        async for event in DecisionWaitTrigger(send_id, poll_s=0.05).run():
            return event.payload
        return None

    try:
        return asyncio.run(asyncio.wait_for(first(), timeout_s)) == {"send_id": send_id}
    except TimeoutError:
        return False


def test_it_is_made_again_from_what_it_serialises():
    from airflow.sdk.module_loading import import_string
    from mailfleet_airflow.decision import DecisionWaitTrigger

    path, arguments = DecisionWaitTrigger(7).serialize()
    again = import_string(path)(**arguments)
    assert type(again) is DecisionWaitTrigger and again.send_id == 7


@pytest.mark.parametrize(
    ("state", "fired"), [(SendState.JUDGING, False), (SendState.RUNNING, True), (SendState.STOPPED, True)]
)
def test_it_fires_when_the_send_judges_no_more(sqlite_engine, send_id, state, fired):  # noqa: F811
    with write(sqlite_engine) as connection:
        connection.execute(update(shards).values(slice_rows=0))
        connection.execute(update(sends).where(sends.c.id == send_id).values(state=state))
    assert fires(send_id, 10 if fired else 0.6) is fired


def test_a_run_that_opened_nothing_or_has_no_slice_waits_for_nobody(sqlite_engine, send_id):  # noqa: F811
    from mailfleet_airflow.decision import DecideRestOperator

    assert DecideRestOperator(task_id="decision", send=None).execute({}) == []
    with write(sqlite_engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(claim="airflow:r"))
    send = {"send_id": send_id, "claim": "airflow:r"}
    assert DecideRestOperator(task_id="decision", send=send).execute({}) == []
    another = send | {"claim": "airflow:another"}  # the send was closed, or taken over
    assert DecideRestOperator(task_id="decision", send=another).execute({}) == []
