"""Who a top-up leaves out: everybody who got this edition, was refused for good, or may have got it."""

from sqlalchemy import Engine

from mailer_lib.database.engine import read
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, leases_of_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, UnknownPolicy

# Failed, expired and cancelled rows were never handed over: a top-up sends them, if they are still in the audience.
# Suppressed ones are left out by the snapshot as long as the suppression stands. A permanent refusal is not asked for
# again under the same edition (docs/decisions/0603).
HANDLED = frozenset({Outcome.INJECTED, Outcome.REJECTED, Outcome.UNKNOWN})


def already_sent(
    engine: Engine, settings: Settings, send_id: int, unknown: UnknownPolicy = UnknownPolicy.LEAVE
) -> set[bytes]:
    """Message keys (16 bytes) of the send that must not be frozen again, from its ledgers.

    With ``UnknownPolicy.RESEND`` unknown rows are not among them, so those people may get it twice. Rows of leases that
    aren't settled (in doubt) always are.
    """
    skipped = HANDLED if unknown is UnknownPolicy.LEAVE else HANDLED - {Outcome.UNKNOWN}
    with read(engine) as connection:
        earlier = leases_of_send(connection, send_id)
    keys: set[bytes] = set()
    for lease in earlier:
        outcomes = outcomes_by_row(settings, lease)
        granted = range(lease.first_row, lease.granted_through)
        wanted = [row for row in granted if row not in outcomes or outcomes[row] in skipped]
        if wanted:
            key = load_columns(store(settings) / lease.snapshot_path / lease.shard_path).message_key
            keys.update(key[row] for row in wanted)
    return keys


def outcomes_by_row(settings: Settings, lease: Lease) -> dict[int, Outcome]:
    """What the kept ledger of a lease says of its rows, as far as it was accounted for."""
    return {row: record.outcome for row, record in final_rows(KeptLedger(store(settings), lease)).items()}
