"""What the ledgers say of one row of a shard, as far as they were accounted for."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection, select

from mailer_lib.agent.ledger import Amended, Deferral, Final
from mailer_lib.database.schema import dispatch_servers, leases
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import get_lease
from mailer_lib.shard.store import StorePath
from mailer_lib.terms import Outcome


@dataclass(frozen=True)
class RowOutcome:
    """``outcome`` None: not settled yet; then ``server`` says whether anybody may be sending it at this moment."""

    outcome: Outcome | None = None
    at: datetime | None = None
    reply: str | None = None  # of the MTA, without addresses
    deferrals: int = 0
    server: str | None = None  # whom the row was granted to last; None: nobody, or written off by the centre


def row_outcome(connection: Connection, store: StorePath, shard_id: int, row: int) -> RowOutcome:
    """Of a row (0-based) of the shard with this id in the database. ``store`` is the root of the snapshot store."""
    given = (leases.c.shard_id == shard_id, leases.c.first_row <= row, leases.c.granted_through > row)
    held = connection.execute(
        select(leases.c.id, dispatch_servers.c.name)
        .select_from(leases.outerjoin(dispatch_servers, leases.c.server_id == dispatch_servers.c.id))
        .where(*given)
        .order_by(leases.c.epoch)
    ).all()
    said = RowOutcome()
    for lease_id, server in held:
        lease = get_lease(connection, lease_id)
        said = replace(said, server=server)
        for record in KeptLedger(store, lease).records():
            if isinstance(record, Final | Amended) and record.row == row:
                at = datetime.fromtimestamp(record.t_ms / 1000, UTC)
                reply = " ".join(filter(None, (str(record.code or ""), record.enhanced, record.text)))
                said = replace(said, outcome=record.outcome, at=at, reply=reply or None)
            elif isinstance(record, Deferral) and record.row == row:
                said = replace(said, deferrals=said.deferrals + 1)
    return said
