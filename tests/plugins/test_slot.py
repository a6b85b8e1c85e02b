"""The trigger of an idle slot: patient at first, reads only, fires when there is something to look at."""

import asyncio

import pytest
from sqlalchemy import insert, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, lists, sending_pools, sends, shards, snapshots
from mailer_lib.dispatch.grant_counts import count_grant
from mailer_lib.fleet import servers
from mailer_lib.terms import Control, SendMode, SendState, ShardState, SnapshotState


@pytest.fixture
def send_id(sqlite_engine):
    """A running send with one shard that somebody else has leased."""
    from mailfleet_airflow.installation import installation

    installation.cache_clear()
    at = now()
    row = {"created_at": at}
    with write(sqlite_engine) as connection:

        def add(table, **values) -> int:
            return connection.execute(insert(table).values(row | values)).inserted_primary_key[0]

        list_id, pool_id = add(lists, name="l", title="L"), add(sending_pools, name="p")
        campaign = {"definition": {}, "list_id": list_id, "pool_id": pool_id, "updated_at": at, "updated_by": "t"}
        campaign_id = add(campaigns, name="c", **campaign)
        send = add(sends, campaign_id=campaign_id, edition="1", mode=SendMode.SEND, state=SendState.RUNNING)
        frozen = {"state": SnapshotState.PUBLISHED, "path": "x", "as_of": at, "max_contact_id": 1}
        snapshot = add(snapshots, send_id=send, phase=1, **frozen)
        shard = {"number": 0, "path": "x", "rows": 5, "sha256": "0" * 64, "state": ShardState.OPEN}
        connection.execute(insert(shards).values(snapshot_id=snapshot, send_id=send, **shard))
    yield send
    installation.cache_clear()


def fires(send_id: int, timeout_s: float, server_id: int | None = None) -> bool:
    from mailfleet_airflow.slot import SlotWaitTrigger

    async def first() -> object:
        async for event in SlotWaitTrigger(send_id, server_id, poll_s=0.05).run():
            return event.payload
        return None

    try:
        return asyncio.run(asyncio.wait_for(first(), timeout_s)) == {"send_id": send_id}
    except TimeoutError:
        return False


def test_it_is_made_again_from_what_it_serialises():
    from airflow.sdk.module_loading import import_string
    from mailfleet_airflow.slot import POLL_S, SlotWaitTrigger

    path, arguments = SlotWaitTrigger(7, 3).serialize()
    again = import_string(path)(**arguments)
    assert (again.send_id, again.server_id, again.poll_s) == (7, 3, POLL_S)


def test_the_first_look_comes_late_because_airflow_fails_tasks_whose_trigger_fires_at_once(send_id):
    from mailfleet_airflow.slot import POLL_S, SlotWaitTrigger

    assert POLL_S >= 5

    async def within_a_moment() -> bool:
        try:
            await asyncio.wait_for(anext(SlotWaitTrigger(send_id, poll_s=5).run()), 0.3)
        except TimeoutError:
            return False
        return True

    assert asyncio.run(within_a_moment()) is False  # although rows are free


def test_it_fires_when_rows_are_free(send_id):
    assert fires(send_id, 10)


def test_rows_are_nothing_to_a_server_whose_cap_is_used_up(send_id, sqlite_engine):
    with write(sqlite_engine) as connection:
        spec = servers.make_spec(name="mta-1", pool="p", helo_name="mta1.fjordfern.example", per_day=10)
        server_id, _ = servers.add(connection, spec, actor="test")
        count_grant(connection, server_id, 10, now())
    assert not fires(send_id, 1, server_id)
    with write(sqlite_engine) as connection:
        servers.add(connection, servers.make_spec(**spec.model_dump() | {"per_day": 11}), actor="test", replace=True)
    assert fires(send_id, 10, server_id)


@pytest.mark.parametrize(
    "change",
    [{"state": SendState.FINISHED}, {"control": Control.STOP}, {"expires_at": now()}],
    ids=["over", "stopped", "expired"],
)
def test_it_fires_when_the_send_is_over(sqlite_engine, send_id, change):
    with write(sqlite_engine) as connection:
        connection.execute(update(shards).values(state=ShardState.LEASED))
        connection.execute(update(sends).where(sends.c.id == send_id).values(**change))
    assert fires(send_id, 10)


def test_a_paused_send_wakes_nobody_and_nothing_is_written(sqlite_engine, send_id):
    with write(sqlite_engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(control=Control.PAUSE))
    with read(sqlite_engine) as connection:
        before = connection.execute(select(sends)).all()
    assert not fires(send_id, 0.6)
    with read(sqlite_engine) as connection:
        assert connection.execute(select(sends)).all() == before
