"""A test slice at dispatch: no row of the rest is granted before the decision, and the decision is bound once."""

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from mailer_lib.audience.plan import Slice
from mailer_lib.database.engine import now, open_engine, read, write
from mailer_lib.database.schema import audit_log, rollups_hourly, sends, shards
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.central_ledger import write_off
from mailer_lib.dispatch.close import close_send
from mailer_lib.dispatch.decision import Verdict, decide, look, worth_judging
from mailer_lib.dispatch.lease import (
    LeaseLostError,
    UndecidedError,
    extend_grant,
    get_lease,
    lose_lease,
    settle_lease,
    take_lease,
)
from mailer_lib.dispatch.sends import SendError, SendRecord, current_send
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.slot_report import worth_a_look
from mailer_lib.settings import Settings
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Outcome, SendState, ShardState
from tests.dispatch.real import Running, equip, freeze, received
from tests.dispatch.test_lease import book, grant
from tests.dispatch.world import World

REF = "spring-sale#1"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


def sliced(world: World, sizes: list[int], slices: list[int], rule: Slice | None = None, **values: object) -> int:
    """A running send whose shards begin with so many rows of the test slice."""
    send_id = world.send(started_at=now(), **values)
    world.publish(send_id, sizes, slices=slices, rule=rule)
    freeze(world, send_id)
    return send_id


def send_of(world: World, send_id: int) -> SendRecord:
    return current_send(world.engine, send_id)


# --- grants -----------------------------------------------------------------------------------------------------------


def test_rows_of_the_rest_can_t_be_granted_before_the_decision(world: World) -> None:
    send_id = sliced(world, [10], [4])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None and lease.grantable == 4
    for through in (5, 10):
        with pytest.raises(UndecidedError, match="rows from 4 on wait for a decision"):
            extend_grant(world.engine, lease, through)
    assert world.shard_states(send_id) == [(ShardState.LEASED, 1, 0)]
    lease = grant(world, lease, 4)
    assert lease.grantable == 0
    decide(world.engine, world.settings, REF, "B", "ann")
    with read(world.engine) as connection:
        lease = get_lease(connection, lease.id)
    assert (lease.grantable, lease.decided_variant) == (6, 1)  # the lease that sent the slice may go on
    assert grant(world, lease, 10).granted == 10


def test_a_lost_lease_is_still_told_apart_from_an_undecided_one(world: World) -> None:
    send_id = sliced(world, [10], [4])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lose_lease(world.engine, lease.id)
    with pytest.raises(LeaseLostError):
        extend_grant(world.engine, lease, 3)


def test_a_shard_whose_slice_is_through_is_taken_by_nobody_until_it_is_decided(world: World) -> None:
    send_id = sliced(world, [10, 5, 6], [4, 0, 2])
    first = take_lease(world.engine, send_id, world.servers[0], 0)
    third = take_lease(world.engine, send_id, world.servers[1], 0)
    assert first is not None and third is not None
    assert (first.shard, third.shard) == (0, 2)  # shard 1 has nobody of the slice
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.NOTHING
    for lease, rows in ((first, 4), (third, 2)):
        settle_lease(world.engine, book(world, grant(world, lease, rows), rows).id)
    assert [state for state, _, _ in world.shard_states(send_id)] == [ShardState.OPEN] * 3
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None
    assert not worth_a_look(world.engine, send_id) or send_of(world, send_id).state == SendState.RUNNING
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.WAITING
    assert send_of(world, send_id).state == SendState.JUDGING
    assert not worth_judging(world.engine, send_id)
    decide(world.engine, world.settings, REF, "A", "ann")
    assert worth_judging(world.engine, send_id)
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.DECIDED
    again = [take_lease(world.engine, send_id, world.servers[0], 0) for _ in range(3)]
    assert [(lease.shard, lease.first_row, lease.grantable) for lease in again if lease] == [
        (0, 4, 6),
        (1, 0, 5),
        (2, 2, 4),
    ]


def test_an_idle_slot_isn_t_woken_by_rows_that_wait_for_a_decision(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = sliced(world, [10, 5], [4, 0])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    from mailer_lib.dispatch.slot_report import say
    from mailer_lib.dispatch.slot_rules import SlotProgress

    say(world.engine, send_id, world.slot(0), SlotProgress("local-1", SlotState.SENDING))
    assert not worth_a_look(world.engine, send_id)  # shard 1 is open, but its rows wait
    decide(world.engine, world.settings, REF, "A", "ann")
    assert worth_a_look(world.engine, send_id)


# --- the decision -----------------------------------------------------------------------------------------------------


def test_a_decision_is_bound_once_and_audited_with_who_and_when(world: World) -> None:
    send_id = sliced(world, [10], [4])
    made = decide(world.engine, world.settings, REF, "B", "ann")
    assert (made.decided_variant, made.decided_by, made.state) == (1, "ann", SendState.RUNNING)
    assert decide(world.engine, world.settings, REF, "B", "bob") == made  # the same again is fine, and changes nothing
    with pytest.raises(SendError, match=r"ann decided on variant B for spring-sale#1 at .*stop the send"):
        decide(world.engine, world.settings, REF, "A", "bob")
    with read(world.engine) as connection:
        said = connection.execute(select(audit_log).where(audit_log.c.action == "send.decided")).all()
    assert [(one.actor, one.object, one.detail["variant"]) for one in said] == [("ann", f"send:{REF}", "B")]
    assert send_of(world, send_id).decided_at == made.decided_at


@pytest.mark.parametrize(
    ("values", "variant", "says"),
    [
        ({}, "C", "tested the variants A, B; there is none called 'C'"),
        ({"state": SendState.AWAITING_APPROVAL}, "A", "is awaiting-approval; decide when its test slice is being sent"),
        ({"state": SendState.FINISHED}, "A", "is finished; trigger it again"),
        ({"control": "stop"}, "A", "is being stopped"),
    ],
)
def test_what_can_t_be_decided_is_said(sqlite_world: World, values: dict[str, str], variant: str, says: str) -> None:
    world = sqlite_world
    sliced(world, [10], [4], **values)
    with pytest.raises(SendError, match=says):
        decide(world.engine, world.settings, REF, variant, "ann")


def test_a_send_without_a_slice_has_nothing_to_decide(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [10])
    freeze(world, send_id)
    with pytest.raises(SendError, match="has no test slice"):
        decide(world.engine, world.settings, REF, "A", "ann")
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None and lease.grantable == 10


def test_of_two_people_who_decide_at_once_one_is_refused(world: World) -> None:
    send_id = sliced(world, [10], [4])
    barrier, answers = threading.Barrier(2), []

    def answer(variant: str) -> None:
        engine = open_engine(world.settings.url)
        barrier.wait()
        try:
            answers.append(decide(engine, world.settings, REF, variant, variant).decided_by)
        except SendError as error:
            answers.append(str(error))
        engine.dispose()

    threads = [threading.Thread(target=answer, args=(variant,)) for variant in "AB"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    bound = send_of(world, send_id).decided_by
    assert bound in answers
    assert sum("decided on variant" in str(one) for one in answers) == 1


# --- waiting ----------------------------------------------------------------------------------------------------------


def judging(world: World, rule: Slice | None = None, **values: object) -> int:
    """A send that waits; nobody of its one shard is in the slice."""
    send_id = sliced(world, [6], [0], rule, **values)
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.WAITING
    return send_id


def test_without_a_time_limit_it_waits_until_the_send_expires(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = judging(world, expires_at=now() + timedelta(hours=1))
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.WAITING
    assert not worth_judging(world.engine, send_id)
    with write(world.engine) as connection:
        connection.execute(update(sends).values(expires_at=now() - timedelta(seconds=1)))
    assert worth_judging(world.engine, send_id)
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.OVER
    books = close_send(world.engine, world.settings, send_id)
    assert (books[Outcome.EXPIRED], send_of(world, send_id).state) == (6, SendState.EXPIRED)


@pytest.mark.parametrize(("otherwise", "verdict"), [("stop", Verdict.OVER), ("B", Verdict.DECIDED)])
def test_after_the_time_limit_the_file_s_word_counts(sqlite_world: World, otherwise: str, verdict: Verdict) -> None:
    world = sqlite_world
    rule = Slice(percent=10, through="0", decide_within_s=3600, otherwise=otherwise)
    send_id = judging(world, rule)
    limit = send_of(world, send_id).decide_by
    assert limit is not None and timedelta(minutes=59) < limit - now() < timedelta(minutes=61)
    with write(world.engine) as connection:  # opened again after a crash, it doesn't begin to count anew
        connection.execute(update(sends).values(state=SendState.RUNNING))
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.WAITING
    assert send_of(world, send_id).decide_by == limit
    with write(world.engine) as connection:
        connection.execute(update(sends).values(decide_by=now() - timedelta(seconds=1)))
    assert worth_judging(world.engine, send_id)
    assert look(world.engine, world.settings, send_of(world, send_id)) is verdict


def test_a_send_that_is_stopped_while_it_waits_books_the_rest_without_a_variant(world: World) -> None:
    send_id = judging(world)
    control.stop(world.engine, REF, "ann")
    assert look(world.engine, world.settings, send_of(world, send_id)) is Verdict.OVER
    books = close_send(world.engine, world.settings, send_id)
    assert (books[Outcome.CANCELLED], send_of(world, send_id).state) == (6, SendState.STOPPED)
    with read(world.engine) as connection:
        assert set(connection.scalars(select(rollups_hourly.c.variant))) == {-1}


def test_what_is_written_off_after_the_decision_counts_for_the_variant_decided_on(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = judging(world)
    decide(world.engine, world.settings, REF, "B", "ann")
    from mailer_lib.shard.store import store

    assert write_off(world.engine, store(world.settings), send_id, Outcome.EXPIRED, "late") == 6
    with read(world.engine) as connection:
        assert set(connection.scalars(select(rollups_hourly.c.variant))) == {1}


def test_a_send_that_ends_while_it_waits_says_so(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = judging(world)
    close_send(world.engine, world.settings, send_id)
    send = send_of(world, send_id)
    assert send.state == SendState.FAILED
    assert send.reason == f"{REF}: the test slice was sent, and 6 rows wait for a decision; trigger it again to go on"


# --- with a real agent ------------------------------------------------------------------------------------------------


def by_variant(world: World) -> Counter[int]:
    with read(world.engine) as connection:
        rows = connection.execute(select(rollups_hourly).where(rollups_hourly.c.metric == "injected"))
        found: Counter[int] = Counter()
        for row in rows:
            found[row.variant] += row.count
        return found


def test_the_agent_sends_the_slice_then_the_rest_with_the_variant_decided_on(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = sliced(world, [30, 20, 5], [8, 4, 0])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected, received(sink)) == (SlotState.JUDGING, 12, 12)
    assert by_variant(world) == {0: 6, 1: 6}
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).state is SlotState.JUDGING
    assert received(sink) == 12
    decide(world.engine, world.settings, REF, "B", "ann")
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).state is SlotState.DONE
    assert received(sink) == 55
    assert by_variant(world) == {0: 6, 1: 6 + 43}
    assert balance(world.engine, world.settings, send_id).balanced


def test_decided_while_the_slice_is_being_sent_the_same_agent_goes_on_with_the_rest(
    world: World, sink: SinkProcess
) -> None:
    equip(world, sink)
    send_id = sliced(world, [60], [20], pace_per_s=10.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    decide(world.engine, world.settings, REF, "A", "ann")
    control.set_pace(world.engine, REF, None, "ann")
    assert slot.report().state is SlotState.DONE
    assert (received(sink), by_variant(world)) == (60, {0: 50, 1: 10})
    assert balance(world.engine, world.settings, send_id).balanced


def _slot_for_ever(url: str, settings: Settings, send_id: int, number: int, server_id: int) -> None:
    from mailer_lib.dispatch.plan import Slot

    run_slot(open_engine(url), settings, send_id, Slot(f"local-{number}", server_id, 0, f"local-{number}"), claim=None)


def test_killed_again_and_again_on_both_sides_of_the_decision_everybody_gets_one_message(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = sliced(world, [24, 16], [9, 6], pace_per_s=30.0)
    kills, decided = 0, False
    context = multiprocessing.get_context("spawn")
    while any(state != ShardState.SETTLED for state, _, _ in world.shard_states(send_id)):
        before = received(sink)
        process = context.Process(
            target=_slot_for_ever, args=(world.settings.url, world.settings, send_id, 1, world.servers[0])
        )
        process.start()
        while process.is_alive() and received(sink) < before + 6:
            time.sleep(0.02)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if not decided:
            with read(world.engine) as connection:
                left = connection.scalar(select(shards.c.id).where(shards.c.next_row > shards.c.slice_rows).limit(1))
            assert left is None  # whatever was killed: nothing of the rest was granted
            if process.exitcode == 0:  # the slice is through
                assert received(sink) == 15
                decide(world.engine, world.settings, REF, "B", "ann")
                decided = True
    assert decided and kills >= 3
    assert received(sink) == 40
    assert by_variant(world) == {0: 8, 1: 7 + 25}
    assert balance(world.engine, world.settings, send_id).balanced
