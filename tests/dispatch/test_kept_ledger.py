"""The store's copy of a ledger: byte for byte, never a torn end, whatever is killed in between."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mailer_lib.agent.ledger import Header, LedgerError, Opened, encode
from mailer_lib.dispatch.accounting import Tally, record_progress
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.tally import count, hour_of
from mailer_lib.terms import Outcome
from tests.dispatch.ledgers import AT_MS, deferral, final, fresh, leased
from tests.dispatch.world import World

LEDGER = b"".join(
    encode(record) for record in [Header("j", 0, 1, 1, 0), Opened(1, "b", 1, AT_MS), *(final(row) for row in range(12))]
)


@given(cuts=st.lists(st.integers(0, len(LEDGER)), max_size=8), crashes=st.sets(st.integers(0, 8)))
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_copy_equals_the_ledger_however_it_grows(sqlite_world: World, cuts: list[int], crashes: set[int]) -> None:
    world = sqlite_world
    world.edition = getattr(world, "edition", 0) + 1  # type: ignore[attr-defined]
    send_id = world.send(edition=f"k{world.edition}")  # type: ignore[attr-defined]
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    for step, size in enumerate([*sorted(cuts), len(LEDGER)]):
        grown = LEDGER[:size]
        delta = KeptLedger(world.settings.storage, lease).take(lambda o, n, g=grown: g[o : o + n], 1 << 20)
        if step in crashes and size != len(LEDGER):
            continue  # killed between the copy and the database: the same bytes are read again
        if delta.records:
            record_progress(world.engine, lease, delta.next_offset, count(delta.records, lambda row: 0).tally)
            lease = fresh(world, lease)
    assert lease.counts == {Outcome.INJECTED: 12}
    kept = KeptLedger(world.settings.storage, lease)
    kept.finish()
    kept.finish()
    assert kept.final.read_bytes() == LEDGER


def test_an_incomplete_copy_is_not_called_finished(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    record_progress(world.engine, lease, 500, Tally())
    with pytest.raises(LedgerError, match="has 0 bytes, but 500 were accounted for"):
        KeptLedger(world.settings.storage, fresh(world, lease)).finish()


def test_a_copy_that_fell_behind_is_filled_from_the_agents_ledger(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    line = len(encode(Header("j", 0, 1, 1, 0)))
    record_progress(world.engine, lease, line, Tally())
    lease = fresh(world, lease)
    kept = KeptLedger(world.settings.storage, lease)
    delta = kept.take(lambda offset, limit: LEDGER[offset : offset + limit], 1 << 20)
    assert delta.next_offset == len(LEDGER)
    assert kept.syncing.read_bytes() == LEDGER
    kept.syncing.unlink()
    with pytest.raises(LedgerError, match="doesn't have the rest"):
        kept.take(lambda offset, limit: b"", 1 << 20)


def test_a_tally_counts_outcomes_deferrals_and_dead_mailboxes_by_the_hour() -> None:
    records = [
        final(0, variant=1),
        final(1, Outcome.REJECTED, code=550, enhanced="5.1.1", text="no such user"),
        final(2, Outcome.REJECTED, code=550, enhanced="5.7.1", text="blocked for policy reasons"),
        final(3, Outcome.SUPPRESSED),
        deferral(4),
        deferral(5, code=0),  # our own second attempt
    ]
    counted = count(records, lambda row: 1)
    assert counted.tally.counts == {Outcome.INJECTED: 1, Outcome.REJECTED: 2, Outcome.SUPPRESSED: 1}
    assert (counted.tally.deferrals, counted.dead_mailboxes) == (1, (1,))
    hour = hour_of(AT_MS)
    assert counted.tally.rollups == {
        (1, "gmail", hour, "injected"): 1,
        (0, "gmail", hour, "rejected"): 2,
        (0, "gmail", hour, "suppressed"): 1,
        (1, "gmail", hour, "deferral"): 1,
    }
    assert (hour.minute, hour.second, hour.microsecond) == (0, 0, 0)
