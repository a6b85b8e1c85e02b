"""A running send at a glance: counts from the leases, rates and reasons from the slots' last words. Only reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.published import published
from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import leases, rollups_hourly, shards
from mailer_lib.dispatch.forecast import Capacity, ServerCapacity, capacity_of, forecast, zones_left
from mailer_lib.dispatch.plan import LIVE_FOR
from mailer_lib.dispatch.sends import SendRecord, find_send
from mailer_lib.dispatch.slot_report import SlotRow, slot_rows
from mailer_lib.dispatch.summary import newest_snapshot
from mailer_lib.settings import Settings
from mailer_lib.shard.store import StorePath
from mailer_lib.terms import Outcome


@dataclass(frozen=True)
class ProviderLeft:
    """Of one mailbox provider. ``eta_s`` None: nothing moves at this moment."""

    provider: str
    frozen: int
    left: int
    eta_s: float | None
    bound_by: str  # what decides when it is done, as in forecast.py; empty while nothing moves


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
    at: datetime
    frozen_by_provider: Mapping[str, int]
    settled_by_provider: Mapping[str, int]
    capacity: Capacity  # of the sending pool, as the forecast has it
    zones: Mapping[str | None, int] | None = None  # rows left by time zone, where the send window asks for it

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

    @property
    def by_provider(self) -> list[ProviderLeft]:
        """Who has messages left, the last to be done first: the forecast anew, at the rate of this moment."""
        frozen = self.frozen_by_provider
        left = {name: max(0, count - self.settled_by_provider.get(name, 0)) for name, count in frozen.items()}
        left = {name: count for name, count in left.items() if count}
        if self.per_s <= 0:
            return [ProviderLeft(name, frozen[name], count, None, "") for name, count in sorted(left.items())]
        expected = forecast(left, _at_rate(self.capacity, self.per_s), self.at, self.zones)
        return [
            ProviderLeft(p.provider, frozen[p.provider], p.messages, _finite(p.done_after_s), p.bound_by)
            for p in expected.by_provider
        ]


def glance(engine: Engine, settings: Settings, ref: str) -> Glance:
    """
    Raises:
        SendError: there is no such send.
        SnapshotError, OSError: a manifest of the send can't be read.
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
        phases = published(connection, settings, send.campaign, send.edition)
        settled = settled_by_provider(connection, send.id)
        capacity = capacity_of(connection, send)
        zones = zones_left(connection, send)
    by_provider: dict[str, int] = {}
    for phase in phases:
        for name, count in _frozen_by_provider(phase.folder, phase.manifest_sha256).items():
            by_provider[name] = by_provider.get(name, 0) + count
    at = now()
    return Glance(
        send=send,
        phase=newest.phase if newest is not None else 0,
        frozen=int(frozen),
        outcomes={outcome: int(count or 0) for outcome, count in zip(Outcome, sums, strict=False)},
        deferrals=int(sums[-1] or 0),
        slots=slots,
        live=frozenset((s.server_id, s.slot) for s in slots if at - s.at < LIVE_FOR),
        at=at,
        frozen_by_provider=by_provider,
        settled_by_provider=settled,
        capacity=capacity,
        zones=zones,
    )


@lru_cache(maxsize=64)
def _frozen_by_provider(folder: StorePath, manifest_sha256: str) -> Mapping[str, int]:
    """Of one phase; whoever looks once a second needn't read a thousand shards' checksums each time."""
    return manifests.load(folder).counts.by_provider


def _at_rate(capacity: Capacity, per_s: float) -> Capacity:
    """The same servers, caps and limits, at the rate that all servers together have now."""
    assumed = sum(server.per_s for server in capacity.servers)
    if not assumed:
        return replace(capacity, servers=(ServerCapacity(per_s),))
    servers = (replace(server, per_s=server.per_s * per_s / assumed) for server in capacity.servers)
    return replace(capacity, servers=tuple(servers))


def _finite(seconds: float) -> float | None:
    return None if seconds == float("inf") else seconds


def settled_by_provider(connection: Connection, send_id: int) -> dict[str, int]:
    """Rows with an outcome, by mailbox provider, from the roll-ups."""
    outcomes = [outcome.value for outcome in Outcome]
    rows = connection.execute(
        select(rollups_hourly.c.provider, func.sum(rollups_hourly.c.count))
        .where(rollups_hourly.c.send_id == send_id, rollups_hourly.c.metric.in_(outcomes))
        .group_by(rollups_hourly.c.provider)
    )
    return {row[0]: int(row[1]) for row in rows}
