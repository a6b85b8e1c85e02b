"""Messages that a lost server's MTA had taken and perhaps not delivered: listed by recipient, left to the operator.

Left alone they stay injected: the server may come back, and its MTA goes on by itself. Called unknown they can be sent
again with ``send resend-unknown``, and then some people may get them twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from mailer_lib.agent.ledger import Amended, Final
from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.dispatch.amendments import amend
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, leases_of_send
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.queue_listings import kept_listing
from mailer_lib.dispatch.sends import find_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.fleet import servers
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import MtaKind, Outcome, ServerState

_GONE = frozenset({ServerState.FENCED, ServerState.FAILED})


@dataclass(frozen=True)
class StrandedRow:
    contact_id: int
    message_key: str  # hex
    provider: str
    server: str
    queue_id: str
    injected_at: datetime
    why: str
    lease_id: int
    row: int


def stranded_rows(engine: Engine, settings: Settings, ref: str) -> list[StrandedRow]:
    """Injected rows of servers that are gone, which their queue held when it was listed last or which came after.

    Raises:
        SendError: there is no such send.
    """
    with read(engine) as connection:
        send = find_send(connection, ref)
        gone = {s.id: s for s in servers.list_servers(connection, states=_GONE) if s.mta is MtaKind.EXIM}
        held = [x for x in leases_of_send(connection, send.id) if x.server_id in gone]
    return [
        row
        for lease in held
        if lease.server_id is not None
        for row in _of_lease(settings, lease, gone[lease.server_id].name)
    ]


def _of_lease(settings: Settings, lease: Lease, server: str) -> Iterator[StrandedRow]:
    slot = Slot(server, lease.server_id or 0, lease.slot, f"{server}.{lease.slot}")
    listing = kept_listing(settings, lease.send_id, slot)
    listed = {message.message_key for message in listing.messages} if listing else set()
    since_ms = listing.at * 1000 if listing else 0.0
    columns = load_columns(store(settings) / lease.snapshot_path / lease.shard_path)
    for row, record in sorted(final_rows(KeptLedger(store(settings), lease)).items()):
        if record.outcome is not Outcome.INJECTED:
            continue
        key = columns.message_key[row].hex()
        why = _why(key in listed, record.t_ms >= since_ms, listing.at if listing else None)
        if why is not None:
            yield StrandedRow(
                contact_id=columns.contact_id[row],
                message_key=key,
                provider=columns.provider[row],
                server=server,
                queue_id=record.queue_id,
                injected_at=datetime.fromtimestamp(record.t_ms / 1000, UTC),
                why=why,
                lease_id=lease.id,
                row=row,
            )


def _why(was_listed: bool, came_after: bool, at: float | None) -> str | None:
    if at is None:
        return "its queue was never listed"
    when = f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"
    if was_listed:
        return f"lay in its queue at {when}"
    return f"taken after its queue was listed at {when}" if came_after else None


def call_unknown(engine: Engine, settings: Settings, ref: str, actor: str) -> int:
    """Make the stranded rows of a send unknown, so that they can be sent again. Returns how many changed."""
    by_lease: dict[int, list[StrandedRow]] = {}
    for row in stranded_rows(engine, settings, ref):
        by_lease.setdefault(row.lease_id, []).append(row)
    changed = 0
    for lease_id, rows in by_lease.items():

        def unknown(there: Mapping[int, Final], rows: list[StrandedRow] = rows) -> Iterator[Amended]:
            for row in rows:
                if there[row.row].outcome is Outcome.INJECTED:
                    text = f"stranded on {row.server}: {row.why}"
                    yield Amended(*there[row.row]._replace(outcome=Outcome.UNKNOWN, text=text))

        changed += len(amend(engine, settings, lease_id, unknown))
    with write(engine) as connection:
        audit.record(connection, actor, "send.stranded-unknown", f"send:{ref}", {"rows": changed})
    return changed
