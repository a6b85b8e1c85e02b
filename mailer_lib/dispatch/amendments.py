"""Outcomes that change after their lease ended, exactly once: recalled from the MTA's queue, or found out later.

The agent's ledger stays as it is. The centre adds ``A`` records to the kept copy, and moves the counters of the lease
and the hourly roll-ups in the same transaction that counts their bytes (docs/decisions/0609).
"""

from collections.abc import Callable, Iterable, Mapping

from sqlalchemy import Connection, Engine, select

from mailer_lib.agent.ledger import AMENDABLE, Amended, Final
from mailer_lib.audience.behaviour_store import forget_phase
from mailer_lib.database.schema import campaigns, sends
from mailer_lib.dispatch.accounting import account_amended
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import LeaseLostError, get_lease, lock_shard_of, transact
from mailer_lib.dispatch.tally import count_amended
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import LeaseState

Wanted = Callable[[Mapping[int, Final]], Iterable[Amended]]


def amend(engine: Engine, settings: Settings, lease_id: int, wanted: Wanted) -> list[Amended]:
    """Amend rows of an ended lease: ``wanted`` makes the amendments from what the rows are now. Returns those that
    changed something: one that is there already, or whose row has an outcome that stands, is passed over.

    Raises:
        LeaseLostError: the lease hasn't ended, or rows of it have no outcome yet.
        LedgerError: the kept ledger is damaged.
    """

    def work(connection: Connection) -> list[Amended]:
        lock_shard_of(connection, lease_id)  # nobody else appends to the kept copy meanwhile
        lease = get_lease(connection, lease_id)
        if lease.state == LeaseState.ACTIVE or lease.settled != lease.granted:
            raise LeaseLostError(f"{lease.ledger_name} hasn't ended; its outcomes can't be amended yet")
        kept = KeptLedger(store(settings), lease)
        there = final_rows(kept)
        amended = {record.row: record.t_ms for record in kept.records() if isinstance(record, Amended)}
        pairs = [  # times of one row's amendments grow: that is how DuckDB finds the last (audience/ledger_rows.py)
            (there[after.row], after._replace(t_ms=max(after.t_ms, amended.get(after.row, -1) + 1)))
            for after in wanted(there)
            if after.row in there and after.outcome in AMENDABLE.get(there[after.row].outcome, ())
        ]
        if pairs:
            size = kept.append(after for _, after in pairs)
            account_amended(connection, lease, size, count_amended(pairs))
        return [after for _, after in pairs]

    changed = transact(engine, work)
    if changed:
        _forget(engine, settings, lease_id)
    return changed


def _forget(engine: Engine, settings: Settings, lease_id: int) -> None:
    """What was derived from the ledger for rules on behaviour is made again."""
    with engine.connect() as connection:
        lease = get_lease(connection, lease_id)
        send = connection.execute(
            select(campaigns.c.name, sends.c.edition)
            .join_from(sends, campaigns, sends.c.campaign_id == campaigns.c.id)
            .where(sends.c.id == lease.send_id)
        ).one()
    forget_phase(settings, send.name, send.edition, lease.phase)
