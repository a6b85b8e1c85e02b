"""The trigger that runs a slot's loop: it may be cut off at any moment, and only on_kill stops the agent."""

import asyncio
import time

import pytest
from sqlalchemy import update

from mailer_lib.database.engine import write
from mailer_lib.database.schema import dispatch_servers, sends
from mailer_lib.dispatch.channel import LocalChannel
from mailer_lib.dispatch.slot import SlotProgress, SlotReport, SlotState
from mailer_lib.sink.process import start
from tests.dispatch.real import equip, job_folder, ready_send, received
from tests.dispatch.world import make_world

CLAIM = "airflow:run-1"


@pytest.fixture
def world(sqlite_engine, settings):
    import airflow.sdk.module_loading  # noqa: F401  # brings the plugins' folder onto the path
    from mailfleet_airflow.installation import installation

    installation.cache_clear()
    made = make_world(sqlite_engine, settings)
    yield made
    LocalChannel(job_folder(made, made.slot())).kill()
    installation.cache_clear()


def trigger(world, send_id: int, **options):
    from mailfleet_airflow.slot_trigger import SlotRunTrigger

    slot = world.slot()
    where = {"server": slot.server, "server_id": slot.server_id, "slot": slot.slot, "label": slot.label}
    return SlotRunTrigger(send_id, CLAIM, where, **options)


def claimed(world, sizes: list[int], **values) -> int:
    send_id = ready_send(world, sizes, **values)
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(claim=CLAIM))
    return send_id


async def fired(made) -> dict:
    async for event in made.run():
        return event.payload
    raise AssertionError("it doesn't fire")


def test_it_is_made_again_from_what_it_serialises(world):
    from airflow.sdk.module_loading import import_string

    path, arguments = trigger(world, 7).serialize()
    again = import_string(path)(**arguments)
    assert again.serialize() == (path, arguments)


def test_it_fires_with_the_report_but_not_at_once_which_airflow_would_take_for_a_failure(world, tmp_path):
    from mailfleet_airflow.slot_trigger import EARLIEST_S

    assert EARLIEST_S >= 5
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        send_id = claimed(world, [20])
        began = time.monotonic()
        event = asyncio.run(fired(trigger(world, send_id, earliest_s=6)))
        assert time.monotonic() - began >= 6
        assert (event["state"], event["injected"], received(sink)) == ("done", 20, 20)


def test_a_triggerer_that_restarts_leaves_the_agent_and_the_next_goes_on(world, tmp_path):
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        send_id = claimed(world, [60], pace_per_s=20.0)
        agent = LocalChannel(job_folder(world, world.slot()))

        async def cut_off() -> None:
            made = trigger(world, send_id, earliest_s=0)
            running = asyncio.ensure_future(fired(made))
            while not received(sink):
                await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.wait([running])
            await made.cleanup()
            await asyncio.to_thread(made._running.result, 20)
            assert made._running.result().state is SlotState.HANDED_OVER

        asyncio.run(cut_off())
        assert agent.is_alive()
        pid = agent.status().pid
        event = asyncio.run(fired(trigger(world, send_id, earliest_s=0)))
        assert (event["state"], event["injected"], received(sink)) == ("done", 60, 60)
        assert agent.status().pid == pid


def test_two_triggerers_at_once_do_no_harm(world, tmp_path):
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        send_id = claimed(world, [40, 40])

        async def both() -> list[dict]:
            return await asyncio.gather(*(fired(trigger(world, send_id, earliest_s=0)) for _ in range(2)))

        events = asyncio.run(both())
        assert {event.get("state") for event in events} == {"done"}, events
        assert received(sink) == 80


def test_who_fails_or_clears_the_task_stops_the_agent(world, tmp_path):
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        send_id = claimed(world, [500], pace_per_s=10.0)

        async def killed() -> None:
            made = trigger(world, send_id)
            running = asyncio.ensure_future(fired(made))
            while not received(sink):
                await asyncio.sleep(0.05)
            running.cancel()
            await asyncio.wait([running])
            await made.on_kill()
            await made.cleanup()

        asyncio.run(killed())
        assert not LocalChannel(job_folder(world, world.slot())).is_alive()
        assert received(sink) < 500


def test_an_error_is_the_tasks_to_raise(world):
    event = asyncio.run(fired(trigger(world, 4711, earliest_s=0)))
    assert "4711" in event["error"]


# --- the operator -----------------------------------------------------------------------------------------------------


def operator(world, send_id: int):
    from mailfleet_airflow.slot import DispatchSlotOperator

    slot = world.slot()
    where = {"server": slot.server, "server_id": slot.server_id, "slot": slot.slot, "label": slot.label}
    return DispatchSlotOperator(task_id="dispatch", send={"send_id": send_id, "claim": CLAIM}, slot=where)


@pytest.fixture
def at_work(monkeypatch):
    """``run_slot`` that sends until it is asked to hand over, or for two seconds."""

    def run_slot(engine, settings, send_id, slot, *, hand_over, on_progress, **options) -> SlotReport:
        on_progress(SlotProgress(slot.label, SlotState.SENDING))
        until = time.monotonic() + 2
        while time.monotonic() < until and not hand_over():
            time.sleep(0.02)
        return SlotReport(slot.label, SlotState.HANDED_OVER if hand_over() else SlotState.DONE, "", 1, 1)

    monkeypatch.setattr("mailer_lib.dispatch.slot.run_slot", run_slot)
    monkeypatch.setattr("mailfleet_airflow.slot.WORKER_S", 0.2)


def test_only_a_slot_on_another_machine_is_deferred_and_not_before_its_time_in_the_worker(world, at_work):
    from airflow.sdk.exceptions import TaskDeferred
    from mailfleet_airflow.slot_trigger import SlotRunTrigger

    assert operator(world, 1).execute({})["state"] == "done"
    with write(world.engine) as connection:
        connection.execute(update(dispatch_servers).values(channel="ssh", host="10.0.0.7"))
    with pytest.raises(TaskDeferred) as deferred:
        operator(world, 1).execute({})
    assert isinstance(deferred.value.trigger, SlotRunTrigger)
    assert deferred.value.method_name == "resume"


def test_the_report_of_the_trigger_ends_the_task(world):
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

    report = {"label": "mta-1", "reason": "", "injected": 5, "settled": 5}
    task = operator(world, 1)
    assert task.resume({}, report | {"state": "done"})["injected"] == 5
    with pytest.raises(TaskDeferred):
        task.resume({}, report | {"state": "idle"})
    with pytest.raises(AirflowException, match="failed"):
        task.resume({}, report | {"state": "failed"})
    with pytest.raises(AirflowFailException, match="left"):
        task.resume({}, report | {"state": "left"})
    with pytest.raises(AirflowException, match="another host key"):
        task.resume({}, {"error": "ChannelError: another host key"})
