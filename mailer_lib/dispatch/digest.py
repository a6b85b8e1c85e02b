"""What an approval is bound to: a digest over the message's content hash and the snapshot's checksum."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from mailer_lib.audience.manifest import approval_digest
from mailer_lib.database.schema import sends, snapshots
from mailer_lib.terms import SnapshotState

__all__ = ["APPROVAL_HOLDS", "approval_digest", "present_digest", "still_valid"]

APPROVAL_HOLDS = timedelta(hours=24)


def still_valid(approved: str | None, approved_at: datetime | None, present: str | None, at: datetime) -> bool:
    """Whether an approval given at ``approved_at`` for the digest ``approved`` covers the digest ``present``."""
    if approved is None or approved_at is None or approved != present:
        return False
    return at - approved_at <= APPROVAL_HOLDS


def present_digest(connection: Connection, send_id: int) -> str | None:
    """The digest of what would be sent now; None while message or snapshot is missing."""
    content_hash = connection.scalar(select(sends.c.content_hash).where(sends.c.id == send_id))
    manifest = connection.scalar(
        select(snapshots.c.manifest_sha256)
        .where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.PUBLISHED)
        .order_by(snapshots.c.phase.desc())
        .limit(1)
    )
    return approval_digest(content_hash, manifest) if content_hash and manifest else None
