"""A running send at a glance: counts from the leases, rates and reasons from the slots' last words. Only reads."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import leases, rollups_hourly, shards
from mailer_lib.dispatch.plan import LIVE_FOR
from mailer_lib.dispatch.sends import SendRecord, find_send
from mailer_lib.dispatch.slot_report import SlotRow, slot_rows
from mailer_lib.dispatch.summary import newest_snapshot
from mailer_lib.terms import Outcome


@dataclass(frozen=True)
class Glance:
    """One look. ``frozen`` and ``outcomes`` are of all phases."""

    send: SendRecord
    phase: int
    frozen: int
    outcomes: dict[Outcome, int]
    deferrals: int
    slots: list[SlotRow]
    live: frozenset[tuple[int, int]]  # (server_id, slot) that spoke in the last seconds

    @property
    def left(self) -> int:
        return self.frozen - sum(self.outcomes.values())

    @property
    def per_s(self) -> float:
        return sum(slot.per_s for slot in self.slots if (slot.server_id, slot.slot) in self.live)

    @property
    def eta_s(self) -> float | None:
        """Seconds until nothing is left at this rate; None while nothing moves."""
        return self.left / self.per_s if self.per_s > 0 else None


def glance(engine: Engine, ref: str) -> Glance:
    """Raises:
    SendError: there is no such send.
    """
    with read(engine) as connection:
        send = find_send(connection, ref)
        newest = newest_snapshot(connection, send.id)
        frozen = connection.scalar(select(func.sum(shards.c.rows)).where(shards.c.send_id == send.id)) or 0
        sums = connection.execute(
            select(*(func.sum(leases.c[o.value]) for o in Outcome), func.sum(leases.c.deferrals)).where(
                leases.c.send_id == send.id
            )
        ).one()
        slots = slot_rows(connection, send.id)
    at = now()
    return Glance(
        send=send,
        phase=newest.phase if newest is not None else 0,
        frozen=int(frozen),
        outcomes={outcome: int(count or 0) for outcome, count in zip(Outcome, sums, strict=False)},
        deferrals=int(sums[-1] or 0),
        slots=slots,
        live=frozenset((s.server_id, s.slot) for s in slots if at - s.at < LIVE_FOR),
    )


def settled_by_provider(connection: Connection, send_id: int) -> dict[str, int]:
    """Rows with an outcome, by mailbox provider, from the roll-ups."""
    outcomes = [outcome.value for outcome in Outcome]
    rows = connection.execute(
        select(rollups_hourly.c.provider, func.sum(rollups_hourly.c.count))
        .where(rollups_hourly.c.send_id == send_id, rollups_hourly.c.metric.in_(outcomes))
        .group_by(rollups_hourly.c.provider)
    )
    return {row[0]: int(row[1]) for row in rows}
