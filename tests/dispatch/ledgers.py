"""Leases with hand-written ledgers, for tests of what is made from ledgers."""

import time
from collections.abc import Iterable

from mailer_lib.agent.ledger import Deferral, Final, Header, Intent, Opened, Record, encode
from mailer_lib.database.engine import read
from mailer_lib.dispatch.accounting import record_progress
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, extend_grant, get_lease, settle_lease, take_lease
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.dispatch.tally import count
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome
from tests.dispatch.world import World

AT_MS = round(time.time() * 1000)


def final(row: int, outcome: Outcome = Outcome.INJECTED, **values: object) -> Final:
    defaults = {
        "code": 250,
        "enhanced": "2.0.0",
        "queue_id": f"q{row}",
        "conn": "1.1",
        "variant": 0,
        "text": "",
        "t_ms": AT_MS,
    }
    return Final(
        row=row,
        outcome=outcome,
        provider="gmail",
        **{**defaults, **values},  # type: ignore[arg-type]
    )


def deferral(row: int, code: int = 451) -> Deferral:
    return Deferral(row, code, "4.7.1", "gmail", AT_MS + 5000, AT_MS, "later")


def fresh(world: World, lease: Lease) -> Lease:
    with read(world.engine) as connection:
        return get_lease(connection, lease.id)


def leased(world: World, send_id: int, through: int | None = None, server: int = 0) -> Lease:
    lease = take_lease(world.engine, send_id, world.servers[server], 0)
    assert lease is not None
    extend_grant(world.engine, lease, lease.shard_rows if through is None else through)
    return fresh(world, lease)


def write_ledger(world: World, lease: Lease, records: Iterable[Record], *, settle: bool = True) -> Lease:
    """As if the agent had written this and the slot had accounted for it."""
    head: list[Record] = [Header("j", lease.shard, lease.phase, lease.epoch, lease.first_row), Opened(1, "b", 1, AT_MS)]
    data = b"".join(encode(record) for record in [*head, *records])
    kept = KeptLedger(store(world.settings), lease)
    delta = kept.take(lambda offset, limit: data[offset : offset + limit], 1 << 20)
    record_progress(world.engine, lease, delta.next_offset, count(delta.records, lambda row: 0).tally)
    lease = fresh(world, lease)
    if settle:
        KeptLedger(store(world.settings), lease).finish()
        settle_lease(world.engine, lease.id)
    return fresh(world, lease)


def intents(world: World, lease: Lease, rows: Iterable[int]) -> list[Record]:
    keys = load_columns(store(world.settings) / lease.snapshot_path / lease.shard_path).message_key
    return [Intent(row, keys[row], 1, "1.1", AT_MS) for row in rows]
