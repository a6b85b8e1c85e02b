"""Leases and grants: no row is ever granted under two epochs, and every row ends with exactly one outcome."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, sends
from mailer_lib.dispatch.accounting import Tally, book_lost, record_progress
from mailer_lib.dispatch.central_ledger import write_off
from mailer_lib.dispatch.lease import (
    Lease,
    LeaseLostError,
    extend_grant,
    get_lease,
    hand_back,
    leases_of_send,
    leases_of_slot,
    lose_lease,
    next_grant,
    settle_lease,
    take_lease,
    unsettled_rows,
)
from mailer_lib.dispatch.loss import finish_losses
from mailer_lib.terms import Control, LeaseState, Outcome, SendState, ServerState, ShardState
from tests.dispatch.world import World


def fresh(world: World, lease: Lease) -> Lease:
    with read(world.engine) as connection:
        return get_lease(connection, lease.id)


def grant(world: World, lease: Lease, through: int) -> Lease:
    extend_grant(world.engine, lease, through)
    return fresh(world, lease)


def book(world: World, lease: Lease, rows: int, outcome: Outcome = Outcome.INJECTED) -> Lease:
    """Account for ``rows`` outcomes, as one ledger delta."""
    record_progress(world.engine, lease, lease.ledger_bytes + 10 * rows, Tally({outcome: rows}))
    return fresh(world, lease)


# --- next_grant -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "granted", "settled", "per_s", "elsewhere", "expected"),
    [
        (2000, 0, 0, 100.0, 0, 1000),  # ten seconds' worth at once
        (2000, 1000, 0, 100.0, 0, 1000),  # nothing settled: nothing more
        (2000, 1000, 100, 100.0, 0, 1000),  # a small top-up waits
        (2000, 1000, 500, 100.0, 0, 1500),
        (2000, 1900, 1900, 100.0, 0, 2000),  # never beyond the shard
        (2000, 0, 0, 0.1, 0, 20),  # slow slots still get a few rows
        (2000, 0, 0, 100.0, 1000, 0),  # another lease of the slot has them already
        (2000, 0, 0, 100.0, 400, 600),
    ],
)
def test_a_grant_covers_about_ten_seconds_of_sending(
    rows: int, granted: int, settled: int, per_s: float, elsewhere: int, expected: int
) -> None:
    assert next_grant(rows, granted, settled, per_s=per_s, grant_s=10.0, elsewhere=elsewhere) == expected


@given(
    rows=st.integers(1, 5000),
    granted=st.integers(0, 5000),
    settled=st.integers(0, 5000),
    per_s=st.floats(0.01, 1e4),
    elsewhere=st.integers(0, 10_000),
)
def test_a_grant_never_shrinks_and_never_passes_the_shard(
    rows: int, granted: int, settled: int, per_s: float, elsewhere: int
) -> None:
    granted = min(granted, rows)
    through = next_grant(rows, granted, min(settled, granted), per_s=per_s, grant_s=10.0, elsewhere=elsewhere)
    assert granted <= through <= rows


# --- taking -----------------------------------------------------------------------------------------------------------


def test_open_shards_are_leased_one_by_one_under_the_next_epoch(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [3, 2])
    first = take_lease(world.engine, send_id, world.servers[0], 0)
    second = take_lease(world.engine, send_id, world.servers[1], 0)
    assert first is not None and second is not None
    assert [(x.shard, x.epoch, x.first_row, x.granted_through) for x in (first, second)] == [(0, 1, 0, 0), (1, 1, 0, 0)]
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None
    with read(world.engine) as connection:
        assert [x.id for x in leases_of_slot(connection, send_id, world.servers[1], 0)] == [second.id]


@pytest.mark.parametrize(
    "change", [{"control": Control.PAUSE}, {"control": Control.STOP}, {"state": SendState.AWAITING_APPROVAL}]
)
def test_nothing_is_leased_of_a_send_that_may_not_run(world: World, change: dict[str, str]) -> None:
    send_id = world.send()
    world.publish(send_id, [3])
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(**change))
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None


@pytest.mark.parametrize("state", [s for s in ServerState if s not in (ServerState.ACTIVE, ServerState.WARMING)])
def test_only_active_and_warming_servers_take_leases(sqlite_world: World, state: ServerState) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [3])
    with write(world.engine) as connection:
        connection.execute(
            update(dispatch_servers).where(dispatch_servers.c.id == world.servers[0]).values(state=state)
        )
    assert take_lease(world.engine, send_id, world.servers[0], 0) is None


# --- granting and accounting ------------------------------------------------------------------------------------------


def test_a_grant_is_stored_with_the_shard(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [10])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lease = grant(world, lease, 4)
    assert lease.granted_through == 4
    assert world.shard_states(send_id) == [("leased", 1, 4)]
    with pytest.raises(ValueError, match="can't go from 4 to 3"):
        extend_grant(world.engine, lease, 3)
    with pytest.raises(ValueError, match="of 10"):
        extend_grant(world.engine, lease, 11)


def test_the_same_ledger_bytes_are_accounted_for_once(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [10])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lease = grant(world, lease, 4)
    record_progress(world.engine, lease, 100, Tally({Outcome.INJECTED: 2}, deferrals=1))
    with pytest.raises(LeaseLostError, match="accounted for by another process"):
        record_progress(world.engine, lease, 100, Tally({Outcome.INJECTED: 2}, deferrals=1))
    after = fresh(world, lease)
    assert (dict(after.counts), after.deferrals, after.ledger_bytes) == ({Outcome.INJECTED: 2}, 1, 100)


def test_a_lease_is_settled_when_every_granted_row_has_an_outcome(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [4])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lease = book(world, grant(world, lease, 4), 3)
    with pytest.raises(LeaseLostError, match="3 of 4"):
        settle_lease(world.engine, lease.id)
    book(world, lease, 1, Outcome.REJECTED)
    assert settle_lease(world.engine, lease.id) is ShardState.SETTLED
    assert settle_lease(world.engine, lease.id) is ShardState.SETTLED
    with read(world.engine) as connection:
        assert unsettled_rows(connection, send_id) == 0


def test_rows_that_were_never_granted_go_on_under_the_next_epoch(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [10])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    book(world, grant(world, lease, 4), 4)
    assert settle_lease(world.engine, lease.id) is ShardState.OPEN
    again = take_lease(world.engine, send_id, world.servers[1], 0)
    assert again is not None
    assert (again.epoch, again.first_row, again.granted_through) == (2, 4, 4)


def test_a_slot_hands_back_what_was_not_granted_and_settles_the_rest_in_its_own_time(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [10])
    mine = take_lease(world.engine, send_id, world.servers[0], 0)
    assert mine is not None
    mine = grant(world, mine, 4)
    assert hand_back(world.engine, mine)
    assert not hand_back(world.engine, mine)
    with pytest.raises(LeaseLostError):
        extend_grant(world.engine, mine, 5)
    theirs = take_lease(world.engine, send_id, world.servers[1], 0)
    assert theirs is not None
    theirs = book(world, grant(world, theirs, 10), 6)
    assert settle_lease(world.engine, theirs.id) is ShardState.LEASED  # four rows are still with the first
    book(world, mine, 4)
    assert settle_lease(world.engine, mine.id) is ShardState.SETTLED


def test_a_lost_lease_leaves_its_granted_rows_unknown_and_the_others_to_be_sent(world: World) -> None:
    send_id = world.send()
    path = world.publish(send_id, [10])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lease = grant(world, lease, 4)
    lost = lose_lease(world.engine, lease.id)
    assert lost.state is LeaseState.LOST
    assert world.shard_states(send_id) == [("open", 1, 4)]
    with pytest.raises(LeaseLostError):
        extend_grant(world.engine, lease, 6)
    with pytest.raises(LeaseLostError):
        record_progress(world.engine, lease, 50, Tally({Outcome.INJECTED: 1}))
    assert finish_losses(world.engine, world.settings, send_id) == 4
    assert finish_losses(world.engine, world.settings, send_id) == 0
    assert fresh(world, lease).counts == {Outcome.UNKNOWN: 4}
    assert (world.settings.storage / path / "ledgers" / lease.ledger_name).exists()
    other = take_lease(world.engine, send_id, world.servers[1], 0)
    assert other is not None and other.first_row == 4
    book(world, grant(world, other, 10), 6)
    assert settle_lease(world.engine, other.id) is ShardState.SETTLED


def test_first_hand_over_is_noted_once(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [4])
    lease = take_lease(world.engine, send_id, world.servers[0], 0)
    assert lease is not None
    lease = book(world, grant(world, lease, 4), 1)
    with read(world.engine) as connection:
        first = connection.scalar(sends.select().with_only_columns(sends.c.first_injected_at))
    assert first is not None and first <= now()
    book(world, lease, 1)
    with read(world.engine) as connection:
        assert connection.scalar(sends.select().with_only_columns(sends.c.first_injected_at)) == first


# --- whatever the order -----------------------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take", "grant", "book", "settle", "hand back", "lose"]), st.integers(0, 2), st.integers(1, 6)
    ),
    max_size=40,
)


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4), actions=ACTIONS)
@examples(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_no_row_is_granted_under_two_epochs_whatever_happens(
    world: World, sizes: list[int], actions: list[tuple[str, int, int]]
) -> None:
    while len(world.servers) < 3:
        world.servers.append(world.servers[-1])
    world.edition = getattr(world, "edition", 0) + 1  # type: ignore[attr-defined]
    send_id = world.send(edition=f"x{world.edition}")  # type: ignore[attr-defined]
    world.publish(send_id, sizes)
    held: list[Lease] = []
    for what, which, amount in actions:
        if what == "take":
            taken = take_lease(world.engine, send_id, world.servers[which], which)
            held += [taken] if taken else []
            continue
        if not held:
            continue
        lease = fresh(world, held[which % len(held)])
        try:
            if what == "grant":
                extend_grant(world.engine, lease, min(lease.shard_rows, lease.granted_through + amount))
            elif what == "book" and lease.settled < lease.granted:
                book(world, lease, min(amount, lease.granted - lease.settled))
            elif what == "settle":
                settle_lease(world.engine, lease.id)
            elif what == "hand back":
                hand_back(world.engine, lease)
            elif what == "lose":
                lose_lease(world.engine, lease.id)
        except LeaseLostError:
            pass
        check_grants(world, send_id)
    # then everything comes to its end: losses are booked, slots finish what they hold, the rest is cancelled
    with read(world.engine) as connection:
        active = leases_of_send(connection, send_id, LeaseState.ACTIVE)
    for lease in active:
        hand_back(world.engine, lease)
        if lease.settled < lease.granted:
            lease = book(world, lease, lease.granted - lease.settled)
        settle_lease(world.engine, lease.id)
    for lease in held:
        lease = fresh(world, lease)
        if lease.state is LeaseState.LOST and lease.settled < lease.granted:
            missing = lease.granted - lease.settled
            book_lost(world.engine, lease, lease.ledger_bytes + 1, Tally({Outcome.UNKNOWN: missing}))
    write_off(world.engine, world.settings.storage, send_id, Outcome.CANCELLED, "test")
    check_grants(world, send_id, complete=True)
    assert {state for state, _, _ in world.shard_states(send_id)} == {"settled"}
    with read(world.engine) as connection:
        assert unsettled_rows(connection, send_id) == 0


def check_grants(world: World, send_id: int, *, complete: bool = False) -> None:
    with read(world.engine) as connection:
        rows = {x.shard_id: x.shard_rows for x in leases_of_send(connection, send_id)}
    for shard_id, held in world.granted_rows(send_id).items():
        expected = 0
        for _, first, through in held:
            assert first == expected, "epochs follow each other without gap or overlap"
            assert through >= first
            expected = through
        assert expected <= rows[shard_id]
        if complete:
            assert expected == rows[shard_id]


TAKER = """
import sys
from mailer_lib.database.engine import open_engine
from mailer_lib.dispatch.lease import extend_grant, take_lease
engine = open_engine(sys.argv[1])
sys.stdin.readline()
taken = 0
while (lease := take_lease(engine, int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))) is not None:
    extend_grant(engine, lease, lease.shard_rows)
    taken += 1
print(taken)
"""


def test_four_processes_that_take_leases_at_once_share_the_shards(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [1] * 40)
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, world.settings.url, str(send_id), str(world.servers[n % 2]), str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    try:
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("go\n")
            taker.stdin.flush()
        counts = [int(taker.communicate(timeout=60)[0]) for taker in takers]
    finally:
        for taker in takers:
            taker.kill()
            taker.wait()
    assert sum(counts) == 40
    assert all(held == [(1, 0, 1)] for held in world.granted_rows(send_id).values())
    assert len(world.granted_rows(send_id)) == 40
