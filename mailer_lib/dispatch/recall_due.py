"""Which sends that are over have mail in an MTA's queue that must not be delivered any more: to people who left since,
or all of it, because the send has expired. The DAG ``recall_due`` takes it back (``recall_send``).
"""

from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.contacts.consent import active_suppressions_since
from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log, campaigns, sends, snapshots
from mailer_lib.dispatch.queue_listings import kept_listing
from mailer_lib.dispatch.reattach import slots_of
from mailer_lib.dispatch.recall_send import DONE
from mailer_lib.dispatch.states import FINAL
from mailer_lib.fleet import servers
from mailer_lib.settings import Settings
from mailer_lib.terms import MtaKind

# Exim gives a message up after two days and six hours (include/playbooks/roles/exim/defaults); then nothing is left.
KEPT_BY_MTAS = timedelta(days=3)


def due_recalls(engine: Engine, settings: Settings, at: datetime) -> list[str]:
    """References of these sends (``campaign#edition``), the oldest first. Nothing is due twice for the same reason."""
    with read(engine) as connection:
        over = connection.execute(
            select(
                sends.c.id,
                sends.c.edition,
                sends.c.expires_at,
                sends.c.finished_at,
                campaigns.c.name,
                campaigns.c.list_id,
            )
            .join(campaigns, campaigns.c.id == sends.c.campaign_id)
            .where(sends.c.state.in_(FINAL), sends.c.finished_at >= at - KEPT_BY_MTAS)
            .order_by(sends.c.finished_at)
        ).all()
        found = []
        for send in over:
            ref = f"{send.name}#{send.edition}"
            since = _looked_at(connection, send.id, ref)
            if since is None or not _may_hold_some(connection, settings, send.id, send.finished_at):
                continue
            expired = send.expires_at is not None and since < send.expires_at <= at
            if expired or any(active_suppressions_since(connection, since=since, list_id=send.list_id)):
                found.append(ref)
    return found


def _looked_at(connection: Connection, send_id: int, ref: str) -> datetime | None:
    """When who has left was last asked: at the last recall, or when the snapshot was frozen. None: nothing was."""
    recalled = select(func.max(audit_log.c.at)).where(audit_log.c.object == f"send:{ref}", audit_log.c.action == DONE)
    frozen = select(func.min(snapshots.c.as_of)).where(snapshots.c.send_id == send_id)
    looked_at: datetime | None = connection.scalar(recalled) or connection.scalar(frozen)
    return looked_at


def _may_hold_some(connection: Connection, settings: Settings, send_id: int, over_at: datetime) -> bool:
    """Whether a queue that we can reach wasn't seen empty since the send was over: nothing is added to it then."""
    for slot in slots_of(connection, send_id):
        listing = kept_listing(settings, send_id, slot)
        seen_empty = listing is not None and not listing.messages and listing.at >= over_at.timestamp()
        if servers.get(connection, slot.server).mta is MtaKind.EXIM and not seen_empty:
            return True
    return False
