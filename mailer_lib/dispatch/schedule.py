"""What is due: which editions are to be started now, and which are too late for ever.

``due`` and ``overdue`` are pure functions of plain data and a moment; ``due_now`` and ``expire_overdue`` feed them from
the central database. The DAG ``campaign_schedule`` calls those every few minutes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import croniter
from sqlalchemy import Engine, insert, select, update

from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import campaigns, sends
from mailer_lib.message.campaign import Campaign
from mailer_lib.terms import SendMode, SendState

ONE_OFF_EDITION = "1"
ACTOR = "schedule"
# A rhythm's slot just before the campaign file was stored still counts: an edit must not lose the slot that the
# schedule hasn't looked at yet. Older slots don't: giving an old campaign a rhythm must not send at once.
EDIT_GRACE = timedelta(minutes=15)
_UNSTARTED = (SendState.PLANNED, SendState.FREEZING, SendState.AWAITING_APPROVAL, SendState.APPROVED)


@dataclass(frozen=True)
class Timed:
    """A campaign with a time (``starts_at`` alone) or a rhythm (``cron``, not before ``starts_at``)."""

    name: str
    updated_at: datetime
    starts_at: datetime | None = None
    cron: str | None = None
    timezone: str = "UTC"
    expires_after: timedelta | None = None


@dataclass(frozen=True)
class Due:
    campaign: str
    edition: str
    slot: datetime  # UTC
    too_late: bool  # it would have expired by now: mark it so, and don't start it


def slot_edition(slot: datetime, timezone: str) -> str:
    """Name of a rhythm's edition: its slot on the campaign's own clock, ``2026-11-24T0900``.

    Only with the offset added is the hour that a clock goes through twice in autumn told apart.
    """
    local = slot.astimezone(ZoneInfo(timezone))
    other = local.replace(fold=1 - local.fold)
    repeated = local.utcoffset() != other.utcoffset()
    return local.strftime("%Y-%m-%dT%H%M%z" if repeated else "%Y-%m-%dT%H%M")


def newest_slot(timed: Timed, now: datetime) -> datetime | None:
    """The latest moment at or before ``now`` (UTC) that the campaign names; None when there is none yet."""
    if timed.cron is None:
        return timed.starts_at if timed.starts_at is not None and timed.starts_at <= now else None
    zone = ZoneInfo(timed.timezone)
    # croniter's get_prev is exclusive, and counts in seconds: begin at the next one
    after = now.replace(microsecond=0) + timedelta(seconds=1)
    local: datetime = croniter(timed.cron, after.astimezone(zone)).get_prev(datetime)
    slot = local.astimezone(UTC)
    earliest = timed.updated_at - EDIT_GRACE
    if timed.starts_at is not None:
        earliest = max(earliest, timed.starts_at)
    return slot if slot >= earliest else None


def due(timed: Iterable[Timed], known: Collection[tuple[str, str]], now: datetime) -> list[Due]:
    """What has to be started, oldest slot first. Of a rhythm only the latest slot is caught up.

    Args:
        known: (campaign, edition) of every send there is, whatever its state: an edition is started once.
    """
    found = []
    for one in timed:
        slot = newest_slot(one, now)
        if slot is None:
            continue
        edition = ONE_OFF_EDITION if one.cron is None else slot_edition(slot, one.timezone)
        if (one.name, edition) not in known:
            too_late = one.expires_after is not None and slot + one.expires_after <= now
            found.append(Due(one.name, edition, slot, too_late))
    return sorted(found, key=lambda d: (d.slot, d.campaign))


def due_now(engine: Engine, now: datetime) -> list[Due]:
    """What has to be started now."""
    return [one for one in _look(engine, now) if not one.too_late]


def expire_overdue(engine: Engine, now: datetime) -> list[str]:
    """Mark as EXPIRED what is too late: slots that nobody started, and sends that nobody approved before their end.

    Returns a sentence for each.
    """
    sentences = [_expire_slot(engine, one, now) for one in _look(engine, now) if one.too_late]
    return [*sentences, *_expire_waiting(engine, now)]


def _look(engine: Engine, now: datetime) -> list[Due]:
    with read(engine) as connection:
        rows = connection.execute(
            select(campaigns).where(campaigns.c.starts_at.is_not(None) | campaigns.c.cron.is_not(None))
        ).all()
        timed = [
            Timed(
                name=row.name,
                updated_at=row.updated_at,
                starts_at=row.starts_at,
                cron=row.cron,
                timezone=row.timezone or "UTC",
                expires_after=_expires_after(row.definition),
            )
            for row in rows
        ]
        known = connection.execute(
            select(campaigns.c.name, sends.c.edition)
            .join_from(sends, campaigns)
            .where(campaigns.c.id.in_([row.id for row in rows]))
        ).all()
    return due(timed, {(name, edition) for name, edition in known}, now)


def _expires_after(definition: object) -> timedelta | None:
    hours = Campaign.model_validate(definition).expires_after_h
    return None if hours is None else timedelta(hours=hours)


def _expire_slot(engine: Engine, one: Due, now: datetime) -> str:
    reason = f"due at {one.slot.isoformat(timespec='minutes')}, and not started before it expired"
    with write(engine) as connection:
        campaign_id = connection.scalar(select(campaigns.c.id).where(campaigns.c.name == one.campaign))
        connection.execute(
            insert(sends).values(
                campaign_id=campaign_id,
                edition=one.edition,
                mode=SendMode.SEND,
                state=SendState.EXPIRED,
                reason=reason,
                launched_by=ACTOR,
                created_at=now,
                finished_at=now,
            )
        )
        audit.record(connection, ACTOR, "expire", f"send:{one.campaign}#{one.edition}", {"reason": reason})
    return f"{one.campaign}#{one.edition}: {reason}"


def _expire_waiting(engine: Engine, now: datetime) -> Sequence[str]:
    """Sends that are over before they began. Those that nobody executes any more; a live run ends by itself."""
    reason = "not started before it expired"
    overdue = (
        sends.c.state.in_(_UNSTARTED)
        & (sends.c.expires_at < now)
        & sends.c.claim.is_(None)
        & sends.c.started_at.is_(None)
    )
    with write(engine) as connection:
        rows = connection.execute(
            select(sends.c.id, campaigns.c.name, sends.c.edition).join_from(sends, campaigns).where(overdue)
        ).all()
        for row in rows:
            connection.execute(
                update(sends)
                .where(sends.c.id == row.id, overdue)
                .values(state=SendState.EXPIRED, reason=reason, finished_at=now)
            )
            audit.record(connection, ACTOR, "expire", f"send:{row.name}#{row.edition}", {"reason": reason})
    return [f"{row.name}#{row.edition}: {reason}" for row in rows]
