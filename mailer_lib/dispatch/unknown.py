"""Rows whose outcome nobody knows: perhaps handed over, perhaps not. Listed by recipient, left to the operator."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine

from mailer_lib.database.engine import read
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import leases_of_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.dispatch.topup import already_sent
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, UnknownPolicy


@dataclass(frozen=True)
class UnknownRow:
    contact_id: int
    message_key: str  # hex
    provider: str
    server: str
    at: datetime
    why: str
    phase: int


def unknown_rows(engine: Engine, settings: Settings, send_id: int) -> list[UnknownRow]:
    """Rows with the outcome ``unknown``, by phase and contact, but for those that a later phase sent after all."""
    known_since = already_sent(engine, settings, send_id, UnknownPolicy.RESEND)
    with read(engine) as connection:
        held = [lease for lease in leases_of_send(connection, send_id) if lease.counts.get(Outcome.UNKNOWN)]
        servers = {row.id: row.name for row in connection.execute(dispatch_servers.select())}
    found = []
    for lease in held:
        columns = load_columns(store(settings) / lease.snapshot_path / lease.shard_path)
        for row, record in final_rows(KeptLedger(store(settings), lease)).items():
            if record.outcome is Outcome.UNKNOWN and columns.message_key[row] not in known_since:
                found.append(
                    UnknownRow(
                        contact_id=columns.contact_id[row],
                        message_key=columns.message_key[row].hex(),
                        provider=columns.provider[row],
                        server=servers.get(lease.server_id or 0, "central"),
                        at=datetime.fromtimestamp(record.t_ms / 1000, UTC),
                        why=record.text,
                        phase=lease.phase,
                    )
                )
    return sorted(found, key=lambda row: (row.phase, row.contact_id))
