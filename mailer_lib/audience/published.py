"""Which snapshots are published, and where they lie."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from mailer_lib.audience.plan import SnapshotError
from mailer_lib.database.schema import campaigns, sends, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import StorePath, store
from mailer_lib.terms import SnapshotState


@dataclass(frozen=True)
class PublishedSnapshot:
    id: int
    send: str  # campaign#edition
    phase: int
    folder: StorePath
    manifest_sha256: str
    frozen: int
    excluded: int
    published_at: datetime


def published(connection: Connection, settings: Settings, campaign: str, edition: str) -> list[PublishedSnapshot]:
    """Every published phase of a send, the first one first."""
    rows = connection.execute(
        select(snapshots)
        .join(sends, snapshots.c.send_id == sends.c.id)
        .join(campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(campaigns.c.name == campaign, sends.c.edition == edition, snapshots.c.state == SnapshotState.PUBLISHED)
        .order_by(snapshots.c.phase)
    )
    return [
        PublishedSnapshot(
            id=row.id,
            send=f"{campaign}#{edition}",
            phase=row.phase,
            folder=store(settings) / row.path,
            manifest_sha256=row.manifest_sha256,
            frozen=row.frozen,
            excluded=row.excluded,
            published_at=row.published_at,
        )
        for row in rows
    ]


def find_published(
    connection: Connection, settings: Settings, campaign: str, edition: str, phase: int | None = None
) -> PublishedSnapshot:
    """One phase, the newest by default.

    Raises:
        SnapshotError: there is none; the sentence says which there are.
    """
    found = published(connection, settings, campaign, edition)
    wanted = found[-1:] if phase is None else [each for each in found if each.phase == phase]
    if wanted:
        return wanted[0]
    if found:
        known = ", ".join(str(each.phase) for each in found)
        raise SnapshotError(f"{campaign}#{edition} has no published phase {phase}; published are: {known}")
    send = f"{campaign}#{edition}"
    raise SnapshotError(f"{send} has no published snapshot; build one with `mailfleet snapshot build {send}`")
