"""Outcomes that no agent writes: what nobody may send any more, and what nobody can tell. Books know only ledgers."""

import os
import time
from collections.abc import Sequence

from sqlalchemy import Connection, Engine, select

from mailer_lib.agent.ledger import Amended, Final, Header, Opened, Record
from mailer_lib.database.engine import read
from mailer_lib.database.schema import shards
from mailer_lib.dispatch.accounting import book_lost, record_progress
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, get_lease, leases_of_send, settle_lease, take_central
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.dispatch.tally import count
from mailer_lib.shard.store import StorePath
from mailer_lib.terms import LeaseState, Outcome, ShardState

CENTRAL = "central"


def write_off(engine: Engine, store: StorePath, send_id: int, outcome: Outcome, why: str) -> int:
    """Give every row that was never granted this outcome, as a central ledger of each open shard. Returns how many.

    Killed half-way it goes on where it was when it is called again, with the outcome of that call.
    """
    with read(engine) as connection:
        begun = [x for x in leases_of_send(connection, send_id, LeaseState.ACTIVE) if x.server_id is None]
        open_shards = connection.scalars(
            select(shards.c.id)
            .where(shards.c.send_id == send_id, shards.c.state == ShardState.OPEN)
            .order_by(shards.c.snapshot_id, shards.c.number)
        ).all()
    rows = 0
    for lease in begun:
        rows += _write(engine, store, lease, outcome, why)
    for shard_id in open_shards:
        taken = take_central(engine, shard_id)
        if taken is not None:
            rows += _write(engine, store, taken, outcome, why)
    return rows


def _write(engine: Engine, store: StorePath, lease: Lease, outcome: Outcome, why: str) -> int:
    if lease.settled < lease.granted:
        records = _finals(store, lease, range(lease.first_row, lease.granted_through), outcome, why)
        size = KeptLedger(store, lease).append([_header(lease), _opened(), *records])
        record_progress(engine, lease, size, count(records, lambda row: 0).tally)
        with read(engine) as connection:
            lease = get_lease(connection, lease.id)
    KeptLedger(store, lease).finish()
    settle_lease(engine, lease.id)
    return lease.granted


def book_unknown(engine: Engine, store: StorePath, lease: Lease, why: str) -> int:
    """Write ``unknown`` into a lost lease's kept ledger for every granted row without an outcome; returns how many.

    ``lease`` is as the database has it, LOST. Doing it twice is the same as once.
    """
    kept = KeptLedger(store, lease)
    missing = sorted(set(range(lease.first_row, lease.granted_through)) - set(final_rows(kept)))
    records = _finals(store, lease, missing, Outcome.UNKNOWN, why)
    size = lease.ledger_bytes
    if missing:
        head: list[Record] = [] if lease.ledger_bytes else [_header(lease)]
        size = kept.append([*head, _opened(), *records])
    book_lost(engine, lease, size, count(records, lambda row: 0).tally)
    with read(engine) as connection:
        KeptLedger(store, get_lease(connection, lease.id)).finish()
    return len(missing)


def final_rows(kept: KeptLedger) -> dict[int, Final]:
    """What a kept ledger says became of each row, as far as it was accounted for and as it was amended since."""
    found: dict[int, Final] = {}
    for record in kept.records():
        if isinstance(record, Final):
            found[record.row] = record
        elif isinstance(record, Amended):
            found[record.row] = Final(*record)
    return found


def _header(lease: Lease) -> Header:
    return Header(CENTRAL, lease.shard, lease.phase, lease.epoch, lease.first_row)


def _opened() -> Opened:
    return Opened(0, CENTRAL, os.getpid(), round(time.time() * 1000))


def _finals(store: StorePath, lease: Lease, rows: Sequence[int], outcome: Outcome, why: str) -> list[Final]:
    if not rows:
        return []
    columns = load_columns(store / lease.snapshot_path / lease.shard_path)
    t_ms = round(time.time() * 1000)
    return [
        Final(
            row=row,
            outcome=outcome,
            code=0,
            enhanced="",
            queue_id="",
            conn="",
            variant=columns.variant_of(row, lease.decided_variant),
            provider=columns.provider[row],
            t_ms=t_ms,
            text=why,
        )
        for row in rows
    ]


def lost_leases_to_book(connection: Connection, send_id: int) -> list[Lease]:
    """Lost leases whose unknown rows aren't booked yet."""
    lost = leases_of_send(connection, send_id, LeaseState.LOST)
    return [lease for lease in lost if lease.settled < lease.granted]
