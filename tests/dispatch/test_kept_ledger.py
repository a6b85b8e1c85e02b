"""The store's copy of a ledger: byte for byte, never a torn end, whatever is killed in between."""

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from mailer_lib.agent.ledger import Final, Header, LedgerError, Opened, encode
from mailer_lib.dispatch.accounting import Tally, record_progress
from mailer_lib.dispatch.kept_ledger import KeptLedger, chain_of
from mailer_lib.dispatch.tally import count, hour_of
from mailer_lib.shard.store import S3Path, StorePath, store
from mailer_lib.terms import Outcome
from tests.dispatch.ledgers import AT_MS, deferral, final, fresh, leased, write_ledger
from tests.dispatch.world import World

LEDGER = b"".join(
    encode(record) for record in [Header("j", 0, 1, 1, 0), Opened(1, "b", 1, AT_MS), *(final(row) for row in range(12))]
)


@pytest.mark.usefixtures("any_store")
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
        delta = KeptLedger(store(world.settings), lease).take(lambda o, n, g=grown: g[o : o + n], 1 << 20)
        if step in crashes and size != len(LEDGER):
            continue  # killed between the copy and the database: the same bytes are read again
        if delta.records:
            record_progress(world.engine, lease, delta.next_offset, count(delta.records, lambda row: 0).tally)
            lease = fresh(world, lease)
    assert lease.counts == {Outcome.INJECTED: 12}
    kept = KeptLedger(store(world.settings), lease)
    kept.finish()
    kept.finish()
    assert kept.final.read_bytes() == LEDGER


@pytest.mark.usefixtures("any_store")
def test_an_incomplete_copy_is_not_called_finished(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    record_progress(world.engine, lease, 500, Tally())
    with pytest.raises(LedgerError, match="has 0 bytes, but 500 were accounted for"):
        KeptLedger(store(world.settings), fresh(world, lease)).finish()


def test_a_copy_that_fell_behind_is_filled_from_the_agents_ledger(sqlite_world: World) -> None:
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    line = len(encode(Header("j", 0, 1, 1, 0)))
    record_progress(world.engine, lease, line, Tally())
    lease = fresh(world, lease)
    kept = KeptLedger(store(world.settings), lease)
    delta = kept.take(lambda offset, limit: LEDGER[offset : offset + limit], 1 << 20)
    assert delta.next_offset == len(LEDGER)
    assert kept.syncing.read_bytes() == LEDGER
    kept.syncing.unlink()
    with pytest.raises(LedgerError, match="doesn't have the rest"):
        kept.take(lambda offset, limit: b"", 1 << 20)


def test_a_job_folder_that_isnt_the_one_the_lease_was_begun_in_is_refused(sqlite_world: World) -> None:
    """An agent there would send everything that was granted again."""
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = write_ledger(world, leased(world, send_id), [final(row) for row in range(5)], settle=False)
    with pytest.raises(LedgerError, match="isn't the one that the lease was begun in"):
        KeptLedger(store(world.settings), lease).take(lambda offset, limit: b"", 1 << 20)


def on_another_machine(world: World, folder: Path) -> StorePath:
    """The store as a machine with an empty work folder sees it."""
    root = store(world.settings)
    assert isinstance(root, S3Path)
    return replace(root, service=replace(root.service, work=folder))


@pytest.mark.s3
@pytest.mark.parametrize("_store", ["s3"], indirect=True)
def test_on_s3_another_machine_finds_every_byte_that_was_counted(sqlite_world: World, tmp_path: Path) -> None:
    """A worker is gone with its disk, in mid-lease: reading, going on and finishing need nothing of it."""
    world = sqlite_world
    send_id = world.send()
    world.publish(send_id, [12])
    lease = leased(world, send_id)
    ends = [n + 1 for n, byte in enumerate(LEDGER) if byte == ord("\n")]
    for size in ends[2:8]:
        delta = KeptLedger(store(world.settings), lease).take(lambda o, n, s=size: LEDGER[o:s], 1 << 20)
        record_progress(world.engine, lease, delta.next_offset, count(delta.records, lambda row: 0).tally)
        lease = fresh(world, lease)
    KeptLedger(store(world.settings), lease).take(lambda o, n: LEDGER[o : ends[8]], 1 << 20)  # killed before it counted
    reader = KeptLedger(on_another_machine(world, tmp_path / "reader"), lease)
    assert [r.row for r in reader.records() if isinstance(r, Final)] == list(range(6))
    other = on_another_machine(world, tmp_path / "other")
    delta = KeptLedger(other, lease).take(lambda o, n: LEDGER[o:], 1 << 20)
    record_progress(world.engine, lease, delta.next_offset, count(delta.records, lambda row: 0).tally)
    lease = fresh(world, lease)
    KeptLedger(other, lease).finish()
    assert KeptLedger(store(world.settings), lease).final.read_bytes() == LEDGER
    (left,) = (store(world.settings) / lease.snapshot_path / "ledgers").files()
    assert left.name == lease.ledger_name


@given(counted=st.lists(st.integers(1, 9), max_size=12), data=st.data())
def test_the_counted_deltas_are_found_among_those_that_were_never_counted(
    counted: list[int], data: st.DataObject
) -> None:
    """A stray one begins where a counted one does, and ends beside it: its writer was killed before it counted."""
    bounds = list(accumulate(counted, initial=0))
    names = {f"{a:012d}-{b:012d}" for a, b in pairwise(bounds)}
    for first in data.draw(st.lists(st.sampled_from(bounds), max_size=6)):
        names.add(f"{first:012d}-{first + data.draw(st.integers(1, 30)):012d}")
    chain = chain_of(names, bounds[-1])
    assert chain is not None
    edges = [tuple(map(int, name.split("-"))) for name in chain]
    assert set(chain) <= names
    assert [0, *(end for _, end in edges)] == [*(first for first, _ in edges), bounds[-1]]
    assert chain_of([name for name in names if int(name[13:]) != bounds[-1]], bounds[-1]) in (None, [])


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
