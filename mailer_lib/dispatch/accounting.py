"""Accounting: what a ledger's bytes add to the counters of their lease and to the hourly roll-ups, exactly once."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, and_, insert, select, update

from mailer_lib.database.engine import now
from mailer_lib.database.schema import leases, rollups_hourly, sends
from mailer_lib.dispatch.grant_counts import credit
from mailer_lib.dispatch.lease import Lease, LeaseLostError, settle_shard_of, transact
from mailer_lib.dispatch.provider_counts import credit_providers
from mailer_lib.terms import LeaseState, Outcome

NEVER_HANDED_OVER = (Outcome.SUPPRESSED, Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED)


@dataclass(frozen=True)
class Tally:
    """What one ledger delta adds: outcomes and deferrals, and the same by (variant, provider, hour, metric)."""

    counts: Mapping[Outcome, int] = field(default_factory=dict)
    deferrals: int = 0
    rollups: Mapping[tuple[int, str, datetime, str], int] = field(default_factory=dict)

    @property
    def dropped_by_provider(self) -> Mapping[str, int]:
        """Rows that were never handed over."""
        found: Counter[str] = Counter()
        for (_, provider, _, metric), rows in self.rollups.items():
            if metric in NEVER_HANDED_OVER:
                found[provider] += rows
        return found


def record_progress(
    engine: Engine,
    lease: Lease,
    ledger_bytes: int,
    tally: Tally,
    also: Callable[[Connection], None] | None = None,
) -> None:
    """Account for the ledger's bytes from ``lease.ledger_bytes`` to ``ledger_bytes``.

    Counters, roll-ups and ``ledger_bytes`` change in one transaction, guarded by the old ``ledger_bytes``: who reads
    the same bytes a second time changes nothing. ``also`` runs in that transaction (suppressions of dead mailboxes).

    Raises:
        LeaseLostError: somebody else accounted for these bytes, or the lease ended; read the lease again.
    """

    def work(connection: Connection) -> None:
        _account(connection, lease, LeaseState.ACTIVE, ledger_bytes, tally)
        dropped = sum(tally.counts.get(outcome, 0) for outcome in NEVER_HANDED_OVER)
        if dropped:
            credit(connection, lease.id, dropped, now())
            credit_providers(connection, lease.id, tally.dropped_by_provider, now())
        if also is not None:
            also(connection)

    transact(engine, work)


def book_lost(engine: Engine, lease: Lease, ledger_bytes: int, tally: Tally) -> None:
    """Note the rows of a lost lease that are unknown now; its shard is settled when all of its rows have an outcome.

    Raises:
        LeaseLostError: another process booked them.
    """

    def work(connection: Connection) -> None:
        if ledger_bytes != lease.ledger_bytes:
            _account(connection, lease, LeaseState.LOST, ledger_bytes, tally)
        settle_shard_of(connection, lease)

    transact(engine, work)


def account_amended(connection: Connection, lease: Lease, ledger_bytes: int, tally: Tally) -> None:
    """Likewise for records that amend an ended lease's ledger; the tally takes from one outcome what it gives another.

    Raises:
        LeaseLostError: another process amended it; read the lease again.
    """
    _account(connection, lease, lease.state, ledger_bytes, tally)


def _account(connection: Connection, lease: Lease, state: LeaseState, ledger_bytes: int, tally: Tally) -> None:
    values: dict[str, Any] = {o.value: leases.c[o.value] + n for o, n in tally.counts.items() if n}
    if tally.deferrals:
        values["deferrals"] = leases.c.deferrals + tally.deferrals
    unchanged = and_(leases.c.id == lease.id, leases.c.state == state, leases.c.ledger_bytes == lease.ledger_bytes)
    changed = update(leases).where(unchanged).values(ledger_bytes=ledger_bytes, synced_at=now(), **values)
    if connection.execute(changed).rowcount != 1:
        raise LeaseLostError(f"{lease.ledger_name} was accounted for by another process, or ended")
    add_rollups(connection, lease, tally)


def add_rollups(connection: Connection, lease: Lease, tally: Tally) -> None:
    """Add a tally to the hourly roll-ups of the lease's send and server (0: central)."""
    table = rollups_hourly
    for (variant, provider, hour, metric), count in sorted(tally.rollups.items()):
        key = {
            "send_id": lease.send_id,
            "variant": variant,
            "provider": provider,
            "server_id": lease.server_id or 0,
            "hour": hour,
            "metric": metric,
        }
        same = and_(*(table.c[name] == value for name, value in key.items()))
        if connection.execute(update(table).where(same).values(count=table.c.count + count)).rowcount == 0:
            connection.execute(insert(table).values(**key, count=count))
    if tally.counts.get(Outcome.INJECTED, 0) > 0:
        first = and_(sends.c.id == lease.send_id, sends.c.first_injected_at.is_(None))
        if connection.scalar(select(sends.c.id).where(first)) is not None:
            connection.execute(update(sends).where(first).values(first_injected_at=now()))
