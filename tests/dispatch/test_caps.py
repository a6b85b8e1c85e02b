"""Caps and warm-up quotas: what they say at a moment, and that no number of slots at once is granted more."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from mailer_lib.agent.ledger import Final
from mailer_lib.contacts.consent import suppress
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, grant_counts, rollups_hourly, sends, shards
from mailer_lib.dispatch import lease as leases
from mailer_lib.dispatch.accounting import Tally, record_progress
from mailer_lib.dispatch.caps import CapRules, caps_at, exhausted, room, sentence, span_end, span_start, within
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.grant_counts import caps_of_server, used_at
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import LeaseLostError, extend_grant, take_lease
from mailer_lib.dispatch.provider_counts import caps_of_providers, provider_used
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.slot_report import worth_a_look
from mailer_lib.fleet import pools
from mailer_lib.shard.store import store
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import CapSpan, Outcome, ServerState, SuppressionReason
from tests.dispatch.real import Running, equip, ready_send, received
from tests.dispatch.world import PROVIDERS, World

AT = datetime(2026, 11, 24, 17, 30, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


def change(world: World, number: int = 0, **values: Any) -> None:
    with write(world.engine) as connection:
        mine = dispatch_servers.c.id == world.servers[number]
        connection.execute(update(dispatch_servers).where(mine).values(**values))


def granted_today(world: World, number: int = 0) -> int:
    with read(world.engine) as connection:
        return used_at(connection, world.servers[number], now()).get(CapSpan.DAY, 0)


# --- pure -------------------------------------------------------------------------------------------------------------


def test_without_caps_there_is_room_for_all() -> None:
    assert room(caps_at(CapRules("mta-1"), {CapSpan.DAY: 10**9}, AT)) is None


@pytest.mark.parametrize(
    ("rules", "used", "left", "until"),
    [
        (CapRules("mta-1", per_hour=100), {CapSpan.HOUR: 40}, 60, None),
        (CapRules("mta-1", per_hour=100), {CapSpan.HOUR: 100}, 0, AT.replace(hour=18, minute=0, second=0)),
        (CapRules("mta-1", per_hour=100, per_day=500), {CapSpan.HOUR: 20, CapSpan.DAY: 495}, 5, None),
        (CapRules("mta-1", per_hour=100, per_day=500), {CapSpan.HOUR: 100, CapSpan.DAY: 500}, 0, MIDNIGHT),
        (CapRules("mta-1", ramp=(50, 80)), {CapSpan.DAY: 50}, 0, MIDNIGHT),
        (CapRules("mta-1", ramp=(50, 80), warming_from=AT - timedelta(days=1)), {CapSpan.DAY: 50}, 30, None),
        (CapRules("mta-1", ramp=(50, 80), warming_from=AT - timedelta(days=2)), {CapSpan.DAY: 9999}, None, None),
    ],
)
def test_the_tightest_cap_decides_and_the_longest_wait_is_named(
    rules: CapRules, used: dict[CapSpan, int], left: int | None, until: datetime | None
) -> None:
    caps = caps_at(rules, used, AT)
    assert room(caps) == left
    cap = exhausted(caps)
    assert (cap.ends_at if cap else None) == until


def test_a_wait_says_why_and_until_when() -> None:
    cap = exhausted(caps_at(CapRules("mta-1", ramp=(50,)), {CapSpan.DAY: 50}, AT))
    assert cap is not None
    assert sentence(cap) == ("waits until 2026-11-25 00:00 UTC: the warm-up quota of mta-1, day 1 (50) is used up")


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
    st.sampled_from(CapSpan),
)
def test_every_moment_lies_in_one_span_and_spans_follow_each_other(at: datetime, span: CapSpan) -> None:
    assert span_start(span, at) <= at < span_end(span, at)
    assert span_start(span, span_end(span, at)) == span_end(span, at)


@given(
    per_hour=st.none() | st.integers(1, 300),
    per_day=st.none() | st.integers(1, 1000),
    ramp=st.none() | st.lists(st.integers(1, 1000), min_size=1, max_size=4).map(lambda quotas: tuple(sorted(quotas))),
    asks=st.lists(st.tuples(st.integers(0, 5 * 3600), st.integers(1, 400)), max_size=60),
)
def test_who_is_granted_no_more_than_the_room_never_passes_a_cap_and_uses_it_whole(
    per_hour: int | None, per_day: int | None, ramp: tuple[int, ...] | None, asks: list[tuple[int, int]]
) -> None:
    at, first = AT, None
    granted: dict[tuple[CapSpan, datetime], int] = {}
    for later_s, wanted in asks:
        at += timedelta(seconds=later_s)
        rules = CapRules("mta-1", per_hour, per_day, ramp, first)
        used = {span: granted.get((span, span_start(span, at)), 0) for span in CapSpan}
        left = room(caps_at(rules, used, at))
        given_now = wanted if left is None else min(wanted, left)
        for span in CapSpan:
            granted[span, span_start(span, at)] = used[span] + given_now
        first = first or (at if given_now else None)
        if given_now < wanted:  # held back: then a cap is used up
            after = {span: granted[span, span_start(span, at)] for span in CapSpan}
            assert exhausted(caps_at(rules, after, at)) is not None
    for (span, starts_at), rows in granted.items():
        if span is CapSpan.HOUR:
            assert per_hour is None or rows <= per_hour
        else:
            assert per_day is None or rows <= per_day
            day = (starts_at.date() - first.date()).days + 1 if first else 1
            assert ramp is None or day > len(ramp) or rows <= ramp[day - 1]


# --- counted in the database ------------------------------------------------------------------------------------------


def test_every_granted_row_is_counted_once(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    extend_grant(world.engine, lease, 15)
    with read(world.engine) as connection:
        lease = leases.get_lease(connection, lease.id)
    extend_grant(world.engine, lease, 15)
    extend_grant(world.engine, lease, 33)
    with read(world.engine) as connection:
        rows = connection.execute(select(grant_counts.c.server_id, grant_counts.c.span, grant_counts.c.rows)).all()
    assert sorted(map(tuple, rows)) == [(world.servers[0], "day", 33), (world.servers[0], "hour", 33)]


def test_a_grant_beyond_the_quota_changes_nothing(world: World) -> None:
    change(world, state=ServerState.WARMING, warmup=[30, 60])
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    with pytest.raises(LeaseLostError, match="31 more rows would pass a cap"):
        extend_grant(world.engine, lease, 31)
    with read(world.engine) as connection:
        assert leases.get_lease(connection, lease.id).granted_through == 0
        assert not connection.execute(select(grant_counts)).all()
        assert (
            connection.scalar(select(dispatch_servers.c.warming_from).where(dispatch_servers.c.id == world.servers[0]))
            is None
        )
    extend_grant(world.engine, lease, 30)
    with read(world.engine) as connection:
        first = connection.scalar(
            select(dispatch_servers.c.warming_from).where(dispatch_servers.c.id == world.servers[0])
        )
        assert first == span_start(CapSpan.DAY, now())
        assert room(caps_of_server(connection, world.servers[0], now())) == 0
        assert room(caps_of_server(connection, world.servers[0], now() + timedelta(days=1))) == 60
        assert room(caps_of_server(connection, world.servers[0], now() + timedelta(days=2))) is None


def test_slots_that_ask_at_once_are_never_granted_more_than_the_cap_together(world: World) -> None:
    change(world, per_day=100)
    send_id = world.send()
    world.publish(send_id, [50] * 6)
    taken = [take_lease(world.engine, send_id, world.servers[0], slot) for slot in range(6)]
    begin = threading.Barrier(6)

    def ask(lease: leases.Lease) -> None:
        begin.wait()
        for _ in range(50):
            try:
                extend_grant(world.engine, lease, lease.granted_through + 7)
            except (LeaseLostError, ValueError):
                return
            with read(world.engine) as connection:
                lease = leases.get_lease(connection, lease.id)

    threads = [threading.Thread(target=ask, args=(lease,)) for lease in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    granted = sum(through - first for ranges in world.granted_rows(send_id).values() for _, first, through in ranges)
    assert granted == granted_today(world) == 98  # 14 times 7; a fifteenth would pass it


def dropped(world: World, lease: leases.Lease, rows: int) -> None:
    """Account for rows that were left out at the last moment."""
    with read(world.engine) as connection:
        present = leases.get_lease(connection, lease.id)
    record_progress(world.engine, present, present.ledger_bytes + 1, Tally({Outcome.SUPPRESSED: rows}))


def test_a_granted_row_that_was_dropped_uses_up_no_cap(world: World) -> None:
    change(world, per_day=30)
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    extend_grant(world.engine, lease, 30)
    dropped(world, lease, 12)
    assert granted_today(world) == 18
    with read(world.engine) as connection:
        assert room(caps_of_server(connection, world.servers[0], now())) == 12


def test_what_was_granted_yesterday_is_not_credited_today(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    extend_grant(world.engine, lease, 30)
    with write(world.engine) as connection:
        connection.execute(update(leases.leases).values(created_at=now() - timedelta(days=1)))
    dropped(world, lease, 12)
    assert granted_today(world) == 30


def test_a_server_sends_its_whole_cap_however_many_left_meanwhile(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, per_day=30)
    send_id = ready_send(world, [60])
    identity = world.settings.identity()
    with write(world.engine) as connection:
        for person in range(20):
            address = f"p{person}@{PROVIDERS[person % len(PROVIDERS)]}.example"
            suppress(
                connection,
                address_hash=identity.address_hash(address),
                reason=SuppressionReason.MANUAL,
                source="test",
                at=now(),
            )
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    while worth_a_look(world.engine, send_id, world.servers[0]):
        report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert report.state is SlotState.IDLE
    assert received(sink) == granted_today(world) == 30


# --- in a slot --------------------------------------------------------------------------------------------------------


def test_a_warming_server_sends_its_quota_and_says_why_it_waits(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[35])
    send_id = ready_send(world, [30, 30])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected) == (SlotState.IDLE, 35)
    assert "the warm-up quota of local-1, day 1 (35) is used up" in report.reason
    assert received(sink) == granted_today(world) == 35
    assert not worth_a_look(world.engine, send_id, world.servers[0])
    assert worth_a_look(world.engine, send_id, world.servers[1])


def test_what_a_quota_holds_back_goes_on_from_another_server(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[35])
    send_id = ready_send(world, [30, 30])
    run_slot(world.engine, world.settings, send_id, world.slot())
    other = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert (other.state, other.injected) == (SlotState.DONE, 25)
    assert received(sink) == 60
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE


def test_a_send_may_wait_for_the_servers_next_day(world: World, sink: SinkProcess) -> None:
    """The rows that the slot has begun stay with it; others neither get them nor take the slot for gone."""
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[35])
    send_id = ready_send(world, [30, 30], over_quota="waits")
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected) == (SlotState.IDLE, 35)
    assert "the warm-up quota of local-1, day 1 (35) is used up" in report.reason
    other = run_slot(world.engine, world.settings, send_id, world.slot(1), patience=timedelta(0))
    assert (other.state, other.injected) == (SlotState.IDLE, 0)
    assert "local-1" in other.reason
    assert not worth_a_look(world.engine, send_id, world.servers[0])
    yesterday = span_start(CapSpan.DAY, now()) - timedelta(days=1)
    change(world, warmup=[35, 70], warming_from=yesterday)
    assert worth_a_look(world.engine, send_id, world.servers[0])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    assert received(sink) == 60


def test_a_server_that_drains_gives_back_what_it_kept_for_its_next_day(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[35])
    send_id = ready_send(world, [30, 30], over_quota="waits")
    run_slot(world.engine, world.settings, send_id, world.slot())
    change(world, state=ServerState.DRAINING)
    assert worth_a_look(world.engine, send_id, world.servers[0])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DRAINED
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).injected == 25


def test_a_send_may_expire_beyond_the_quotas_of_a_day(world: World, sink: SinkProcess) -> None:
    """Not before all servers of the sending pool have used theirs up."""
    equip(world, sink)
    for number in range(len(world.servers)):
        change(world, number, state=ServerState.WARMING if number < 2 else ServerState.RETIRED, warmup=[20])
    send_id = ready_send(world, [30, 30], over_quota="expires")
    first = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (first.state, first.injected) == (SlotState.IDLE, 20)
    last = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert (last.state, last.injected) == (SlotState.DONE, 20)
    with read(world.engine) as connection:
        assert sum(one.counts.get(Outcome.EXPIRED, 0) for one in leases.leases_of_send(connection, send_id)) == 20
    said = {found.text for found in finals(world, send_id) if found.outcome is Outcome.EXPIRED}
    assert said == {"the warm-up quota of local-2, day 1 (20) was used up"}


def test_nothing_expires_while_a_warm_server_is_there(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[35])
    send_id = ready_send(world, [30, 30], over_quota="expires")
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.IDLE
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).state is SlotState.DONE
    assert received(sink) == 60


def test_the_next_day_brings_the_next_quota(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    yesterday = span_start(CapSpan.DAY, now()) - timedelta(days=1)
    change(world, state=ServerState.WARMING, warmup=[10, 35], warming_from=yesterday)
    send_id = ready_send(world, [60])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected) == (SlotState.IDLE, 35)


def test_what_a_quota_holds_back_expires_with_the_send(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    change(world, state=ServerState.WARMING, warmup=[20])
    send_id = ready_send(world, [30])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.IDLE
    with write(world.engine) as connection:
        connection.execute(update(sends).values(expires_at=now() - timedelta(seconds=1)))
    assert worth_a_look(world.engine, send_id, world.servers[0])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected, received(sink)) == (SlotState.EXPIRED, 20, 20)


# --- caps of a mailbox provider ---------------------------------------------------------------------------------------


def cap(world: World, provider: str, rows: int | None, span: CapSpan = CapSpan.DAY) -> None:
    with write(world.engine) as connection:
        name = pools.list_pools(connection)[0].name
        pools.set_cap(connection, name, provider, span, rows, actor="ann")


def granted_for(world: World, provider: str) -> int:
    with read(world.engine) as connection:
        return provider_used(connection, world.pool_id, now()).get(provider, {}).get(CapSpan.DAY, 0)


@given(
    st.lists(st.sampled_from(PROVIDERS), max_size=60),
    st.dictionaries(st.sampled_from(PROVIDERS), st.integers(0, 8)),
    st.integers(0, 20),
)
def test_a_grant_of_mixed_rows_goes_up_to_the_first_one_without_room(
    providers: list[str], rooms: dict[str, int], first: int
) -> None:
    first = min(first, len(providers))
    through = within(providers, first, len(providers), rooms)
    granted = providers[first:through]
    assert all(granted.count(name) <= rows for name, rows in rooms.items())
    if through < len(providers):
        assert granted.count(providers[through]) == rooms[providers[through]]


def test_servers_that_ask_at_once_are_never_granted_more_for_a_provider_than_its_cap(world: World) -> None:
    cap(world, "gmail", 100)
    send_id = world.send()
    world.publish(send_id, [50] * 6)
    with write(world.engine) as connection:
        connection.execute(update(shards).values(provider="gmail"))
    taken = [take_lease(world.engine, send_id, world.servers[slot % 2], slot) for slot in range(6)]
    begin = threading.Barrier(6)

    def ask(lease: leases.Lease) -> None:
        begin.wait()
        for _ in range(50):
            try:
                extend_grant(world.engine, lease, lease.granted_through + 7)
            except (LeaseLostError, ValueError):
                return
            with read(world.engine) as connection:
                lease = leases.get_lease(connection, lease.id)

    threads = [threading.Thread(target=ask, args=(lease,)) for lease in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    granted = sum(through - first for ranges in world.granted_rows(send_id).values() for _, first, through in ranges)
    assert granted == granted_for(world, "gmail") == 98


def test_a_mixed_grant_is_refused_when_nobody_counted_its_providers(world: World) -> None:
    cap(world, "gmail", 100)
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    with pytest.raises(LeaseLostError, match="was set at this moment"):
        extend_grant(world.engine, lease, 8)
    extend_grant(world.engine, lease, 8, {"gmail": 2, "yahoo": 6})
    assert (granted_for(world, "gmail"), granted_for(world, "yahoo")) == (2, 0)  # only what has a cap is counted


def test_a_dropped_row_uses_up_no_cap_of_its_provider(world: World) -> None:
    cap(world, "gmail", 10)
    send_id = world.send()
    world.publish(send_id, [40])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    extend_grant(world.engine, lease, 40, {"gmail": 10, "yahoo": 30})
    with read(world.engine) as connection:
        present = leases.get_lease(connection, lease.id)
    hour = span_start(CapSpan.HOUR, now())
    gone = {(0, "gmail", hour, "suppressed"): 4, (0, "yahoo", hour, "suppressed"): 3}
    record_progress(world.engine, present, 1, Tally({Outcome.SUPPRESSED: 7}, 0, gone))
    assert granted_for(world, "gmail") == 6


def test_what_went_today_before_a_cap_was_set_counts(world: World) -> None:
    send_id = world.send()
    with write(world.engine) as connection:
        for metric, count in (("injected", 70), ("rejected", 5), ("deferral", 9)):
            connection.execute(
                rollups_hourly.insert().values(
                    send_id=send_id, variant=0, provider="gmail", server_id=world.servers[0],
                    hour=span_start(CapSpan.HOUR, now()), metric=metric, count=count,
                )
            )  # fmt: skip
    cap(world, "gmail", 100)
    with read(world.engine) as connection:
        assert room(caps_of_providers(connection, world.pool_id, now())["gmail"]) == 25
    cap(world, "gmail", None)
    with read(world.engine) as connection:
        assert caps_of_providers(connection, world.pool_id, now()) == {}


def test_two_servers_together_send_a_provider_its_cap_and_the_others_all(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    cap(world, "apple", 6)
    send_id = ready_send(world, [16, 16, 16, 16])
    with write(world.engine) as connection:
        connection.execute(update(shards).where(shards.c.number == 0).values(provider="apple"))
    reports = [run.report() for run in [Running(world, send_id, world.slot(number)) for number in range(2)]]
    assert {report.state for report in reports} == {SlotState.IDLE}
    assert any("the daily cap of apple (6) is used up" in report.reason for report in reports)
    assert received(sink) == 6 + 48
    assert not worth_a_look(world.engine, send_id, world.servers[0])
    cap(world, "apple", 20)
    assert worth_a_look(world.engine, send_id, world.servers[0])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    assert granted_for(world, "apple") == 16


def test_in_mixed_shards_a_slot_stops_before_the_first_row_without_room(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    cap(world, "gmail", 6)
    send_id = ready_send(world, [40])  # every fourth is at gmail
    running = Running(world, send_id, world.slot())
    running.until(lambda word: word.settled == 24 and "the daily cap of gmail (6) is used up" in word.reason)
    assert received(sink) == 24
    running.stop.set()
    running.report()
    assert granted_for(world, "gmail") == 6


def finals(world: World, send_id: int) -> list[Final]:
    with read(world.engine) as connection:
        held = leases.leases_of_send(connection, send_id)
    return [found for one in held for found in final_rows(KeptLedger(store(world.settings), one)).values()]


def window_around(begins: timedelta, ends: timedelta) -> dict[str, object]:
    at = now().replace(second=0)
    return {"from": f"{at + begins:%H:%M}", "until": f"{at + ends:%H:%M}", "timezone": "UTC"}


def test_outside_its_send_window_a_send_hands_nothing_over_and_says_until_when(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    shut = window_around(timedelta(hours=2), timedelta(hours=4))
    send_id = ready_send(world, [20], send_window=shut)
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert report.state is SlotState.IDLE
    assert f"{shut['from']} UTC: outside the send window" in report.reason
    assert not worth_a_look(world.engine, send_id)
    assert received(sink) == granted_today(world) == 0
    with write(world.engine) as connection:
        open_now = window_around(timedelta(hours=-2), timedelta(hours=2))
        connection.execute(update(sends).values(send_window=open_now))
    assert worth_a_look(world.engine, send_id)
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, received(sink)) == (SlotState.DONE, 20)
