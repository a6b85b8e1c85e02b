"""Slots and limits: who sends, and what share of each limit is whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from mailer_lib.agent.job import Limits
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers, provider_limits
from mailer_lib.dispatch.plan import limits_for, share_limits, slots_for
from mailer_lib.dispatch.sends import get_send
from mailer_lib.dispatch.slot_report import say
from mailer_lib.dispatch.slot_rules import SlotProgress, SlotState
from mailer_lib.fleet import pools
from mailer_lib.terms import ServerState
from tests.dispatch.world import World


def set_server(world: World, number: int, **values: object) -> None:
    with write(world.engine) as connection:
        connection.execute(
            update(dispatch_servers).where(dispatch_servers.c.id == world.servers[number]).values(**values)
        )


def test_slots_are_those_of_servers_that_may_send(world: World) -> None:
    send_id = world.send()
    set_server(world, 0, slots=2)
    assert [slot.label for slot in slots_for(world.engine, send_id)] == ["local-1.0", "local-1.1", "local-2"]
    set_server(world, 0, state=ServerState.DRAINING)
    set_server(world, 1, state=ServerState.WARMING)
    (slot,) = slots_for(world.engine, send_id)
    assert (slot.label, slot.server, slot.slot, slot.folder) == ("local-2", "local-2", 0, "local-2.0")


def test_a_standby_server_has_slots_only_for_who_may_join_later(world: World) -> None:
    send_id = world.send()
    set_server(world, 1, state=ServerState.STANDBY)
    assert [slot.label for slot in slots_for(world.engine, send_id)] == ["local-1"]
    assert [slot.label for slot in slots_for(world.engine, send_id, joining=True)] == ["local-1", "local-2"]
    set_server(world, 1, state=ServerState.RETIRED)
    assert [slot.label for slot in slots_for(world.engine, send_id, joining=True)] == ["local-1"]


@pytest.mark.parametrize(
    ("server_per_hour", "pace", "on_server", "of_send", "per_s"),
    [
        (None, None, 1, 1, None),
        (3600, None, 1, 1, 1.0),
        (3600, None, 2, 4, 0.5),
        (None, 10.0, 1, 4, 2.5),
        (3600, 10.0, 1, 4, 1.0),
        (36000, 10.0, 1, 4, 2.5),
        (3600, None, 0, 0, 1.0),  # the asking slot counts itself before it has said a word
    ],
)
def test_a_slot_has_its_share_of_the_server_and_of_the_send(
    server_per_hour: int | None, pace: float | None, on_server: int, of_send: int, per_s: float | None
) -> None:
    limits = share_limits(
        server_per_hour=server_per_hour,
        provider_per_hour={},
        pace_per_s=pace,
        live_on_server=on_server,
        live_of_send=of_send,
    )
    assert limits.per_s == per_s


def test_provider_limits_hold_for_each_server(world: World) -> None:
    send_id = world.send(pace_per_s=8.0)
    with write(world.engine) as connection:
        connection.execute(insert(provider_limits).values(pool_id=world.pool_id, provider="gmail", per_hour=7200))
    for number in range(2):
        slot = world.slot(number)
        say(world.engine, send_id, slot, SlotProgress(slot.label, SlotState.SENDING))
    with read(world.engine) as connection:
        limits = limits_for(connection, get_send(connection, send_id), world.slot(0))
    assert limits == Limits(per_s=4.0, provider_per_s={"gmail": 2.0})
    say(world.engine, send_id, world.slot(1), SlotProgress("local-2", SlotState.IDLE))  # leaves its share to the other
    with read(world.engine) as connection:
        assert limits_for(connection, get_send(connection, send_id), world.slot(0)).per_s == 8.0


@given(
    st.dictionaries(st.sampled_from(["gmail", "outlook"]), st.integers(1, 10**6)),
    st.dictionaries(st.sampled_from(["gmail", "yahoo"]), st.integers(1, 10**6)),
    st.lists(st.integers(1, 4), min_size=1, max_size=10),
)
def test_the_slots_of_a_pool_together_never_pass_a_shared_limit_nor_a_servers_its_own(
    each: dict[str, int], shared: dict[str, int], slots_of_servers: list[int]
) -> None:
    together: dict[str, float] = {}
    for slots in slots_of_servers:
        limits = share_limits(
            server_per_hour=None,
            provider_per_hour=each,
            pace_per_s=None,
            live_on_server=slots,
            live_of_send=sum(slots_of_servers),
            shared_per_hour=shared,
            live_in_pool=sum(slots_of_servers),
        )
        assert limits.provider_per_s.keys() == each.keys() | shared.keys()
        for provider, per_s in limits.provider_per_s.items():
            assert provider not in each or per_s * slots * 3600 <= each[provider] * (1 + 1e-9)
            together[provider] = together.get(provider, 0.0) + per_s * slots
    assert all(together[provider] * 3600 <= per_hour * (1 + 1e-9) for provider, per_hour in shared.items())


def test_a_shared_limit_is_divided_among_the_working_slots_of_all_sends(world: World) -> None:
    sends = [world.send(edition=str(number)) for number in range(2)]
    with write(world.engine) as connection:
        pools.set_limit(connection, "main", "gmail", 7200, actor="ann", shared=True)
        pools.set_limit(connection, "main", "gmail", 10**6, actor="ann")
        pools.set_limit(connection, "main", "yahoo", 3600, actor="ann", shared=True)
    for number, send_id in enumerate(sends):
        say(world.engine, send_id, world.slot(number), SlotProgress(f"local-{number + 1}", SlotState.SENDING))
    with read(world.engine) as connection:
        limits = limits_for(connection, get_send(connection, sends[0]), world.slot(0))
    assert limits.provider_per_s == {"gmail": 1.0, "yahoo": 0.5}
