"""What a scaling decision is made from: running sends, their deadlines, servers, and the queues of their MTAs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

from sqlalchemy import Connection, func, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.contacts.providers import provider_of
from mailer_lib.database.schema import (
    campaigns,
    grant_counts,
    leases,
    provider_limits,
    rollups_hourly,
    scale_decisions,
    sends,
    server_health,
    slot_reports,
    snapshots,
)
from mailer_lib.dispatch.caps import CapRules, span_start
from mailer_lib.dispatch.forecast import ASSUMED_SLOT_PER_S, capped_providers
from mailer_lib.dispatch.grant_counts import rules_of, used_at
from mailer_lib.dispatch.lease import unsettled_rows
from mailer_lib.dispatch.plan import LIVE_FOR
from mailer_lib.dispatch.scaling import Offer, Past, Policy, PoolView, ProviderQueue, SendNeed, ServerView
from mailer_lib.dispatch.sends import SendRecord, get_send
from mailer_lib.dispatch.slot_rules import SlotState
from mailer_lib.dispatch.tally import DEFERRAL
from mailer_lib.fleet import health_book
from mailer_lib.fleet.health_book import Look
from mailer_lib.fleet.hosts import HostSource
from mailer_lib.fleet.pools import Pool
from mailer_lib.fleet.servers import DispatchServer, list_servers
from mailer_lib.fleet.warmup import effective_ramp, is_through
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import (
    CapSpan,
    Control,
    HealthVerdict,
    LeaseState,
    MtaKind,
    Outcome,
    ScaleAction,
    ScaleFinding,
    ScaleState,
    SendState,
    ServerState,
    SnapshotState,
)

WARM_FOR = timedelta(days=30)  # an address that sent nothing for longer is as good as new to its receivers
FRESH = timedelta(minutes=30)  # an older look at a server says nothing about its queue or health
HISTORY = 200
SLOWEST_PER_S = 0.1


@dataclass(frozen=True)
class Rent:
    """Whom a machine could be rented from, and for how much a day."""

    source: HostSource
    cost_per_day: float


def policy_of(settings: Settings) -> Policy:
    return Policy(
        max_servers=settings.scale_max_servers,
        keep_servers=settings.scale_keep_servers,
        budget_per_day=settings.scale_budget_per_day,
        confirm=timedelta(seconds=settings.scale_confirm_s),
        cooldown=timedelta(seconds=settings.scale_cooldown_s),
        idle=timedelta(days=settings.scale_idle_days),
        warm_lead=timedelta(seconds=settings.scale_warm_lead_s),
        cold_lead=timedelta(seconds=settings.scale_cold_lead_s),
        rent_lead=timedelta(seconds=settings.scale_rent_lead_s),
    )


def pool_view(
    connection: Connection, settings: Settings, pool: Pool, at: datetime, *, rent: Rent | None = None
) -> PoolView:
    """Everything about one sending pool that a decision needs."""
    running = _running(connection, pool.id)
    looks = health_book.latest(connection)
    members = [s for s in list_servers(connection, pool_id=pool.id) if s.state is not ServerState.RETIRED]
    paced = any(send.pace_per_s is not None for send in running)
    needs: list[SendNeed] = []
    handed_over: Counter[str] = Counter()
    for send in running:
        unsent, injected = _by_provider(connection, settings, send)
        handed_over.update(injected)
        needs.append(_need(settings, send, unsent))
    cost = rent.cost_per_day if rent is not None else 0.0
    return PoolView(
        name=pool.name,
        sends=tuple(needs),
        servers=tuple(_server_view(connection, one, pool, looks.get(one.id), at, cost, paced=paced) for one in members),
        provider_per_s=_receivers_limits(connection, pool.id, members),
        provider_caps=capped_providers(connection, pool.id, at),
        queues=_queues(members, looks, handed_over, _lately(connection, running, at), at),
        ramp=effective_ramp(None, pool.warmup),
        offers=(Offer(rent.source.kind, cost, ASSUMED_SLOT_PER_S),) if rent is not None else (),
        rented_per_day=cost * _rented(connection),
        history=tuple(_history(connection, pool.id)),
    )


def _running(connection: Connection, pool_id: int) -> list[SendRecord]:
    ids = connection.scalars(
        select(sends.c.id)
        .join(campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(campaigns.c.pool_id == pool_id, sends.c.state == SendState.RUNNING, sends.c.control == Control.RUN)
        .order_by(sends.c.id)
    ).all()
    return [get_send(connection, send_id) for send_id in ids]


def _by_provider(connection: Connection, settings: Settings, send: SendRecord) -> tuple[dict[str, int], dict[str, int]]:
    """Rows without an outcome, and rows that were handed over.

    Outcomes by provider come from the roll-ups, which the syncing of the ledgers writes; what a central lease wrote off
    isn't in them, so the sum is brought to that of the shards.
    """
    people: Counter[str] = Counter()
    phases = connection.scalars(
        select(snapshots.c.path).where(snapshots.c.send_id == send.id, snapshots.c.state == SnapshotState.PUBLISHED)
    )
    for path in phases:
        people.update(manifests.load(store(settings) / path).counts.by_provider)
    outcomes: Counter[str] = Counter()
    injected: Counter[str] = Counter()
    for provider, metric, count in _replies(connection, send.id):
        if metric != DEFERRAL:
            outcomes[provider] += count
        if metric == Outcome.INJECTED:
            injected[provider] += count
    left = {provider: max(0, count - outcomes[provider]) for provider, count in people.items()}
    whole, exact = sum(left.values()), unsettled_rows(connection, send.id)
    return {name: round(count * exact / whole) for name, count in left.items() if count}, dict(injected)


def _replies(connection: Connection, send_id: int, since: datetime | None = None) -> Iterator[tuple[str, str, int]]:
    """(provider, an Outcome or DEFERRAL, count)."""
    table = rollups_hourly.c
    told = table.metric.in_([*(outcome.value for outcome in Outcome), DEFERRAL])
    query = select(table.provider, table.metric, func.sum(table.count)).where(table.send_id == send_id, told)
    if since is not None:
        query = query.where(table.hour >= since)
    for row in connection.execute(query.group_by(table.provider, table.metric)):
        yield row[0], row[1], int(row[2])


def _lately(connection: Connection, running: list[SendRecord], at: datetime) -> dict[str, tuple[int, int]]:
    """(taken, deferred) by provider, in this hour and the last."""
    since = span_start(CapSpan.HOUR, at) - timedelta(hours=1)
    taken: Counter[str] = Counter()
    deferred: Counter[str] = Counter()
    for send in running:
        for provider, metric, count in _replies(connection, send.id, since):
            if metric in (DEFERRAL, Outcome.INJECTED):
                (deferred if metric == DEFERRAL else taken)[provider] += count
    return {name: (taken[name], deferred[name]) for name in taken.keys() | deferred.keys()}


def _need(settings: Settings, send: SendRecord, unsent: Mapping[str, int]) -> SendNeed:
    wished = None
    if settings.scale_finish_within_h is not None and send.started_at is not None:
        wished = send.started_at + timedelta(hours=settings.scale_finish_within_h)
    deadlines = [one for one in (send.expires_at, wished) if one is not None]
    return SendNeed(send.ref, unsent, min(deadlines, default=None), send.pace_per_s, send.send_window)


# --- servers ----------------------------------------------------------------------------------------------------------


def _server_view(  # noqa: PLR0917  # one place calls it
    connection: Connection,
    server: DispatchServer,
    pool: Pool,
    look: Look | None,
    at: datetime,
    cost: float,
    *,
    paced: bool,
) -> ServerView:
    last_day = connection.scalar(
        select(func.max(grant_counts.c.starts_at)).where(
            grant_counts.c.server_id == server.id, grant_counts.c.span == CapSpan.DAY
        )
    )
    held = connection.scalar(
        select(func.count()).where(leases.c.server_id == server.id, leases.c.state == LeaseState.ACTIVE)
    )
    rules: CapRules = rules_of(connection, server.id)
    return ServerView(
        name=server.name,
        state=server.state,
        per_s=_per_s(connection, server, at, paced=paced),
        rules=rules,
        used=used_at(connection, server.id, at),
        warm=_is_warm(server, pool, last_day, at),
        sick=look is not None and at - look.at <= FRESH and look.health.verdict is not HealthVerdict.WELL,
        idle_since=server.updated_at if last_day is None else max(server.updated_at, last_day + timedelta(days=1)),
        leases=int(held or 0),
        queued=_queued(server, look, at),
        machine_from=server.machine_from,
        cost_per_day=cost if server.machine_id is not None else 0.0,
        ramp=effective_ramp(server.warmup, pool.warmup),
    )


def _is_warm(server: DispatchServer, pool: Pool, last_day: datetime | None, at: datetime) -> bool:
    """Whether its address was through its ramp, or in service, and isn't forgotten."""
    ramp = effective_ramp(server.warmup, pool.warmup)
    if server.served_until is None and not is_through(ramp, server.warming_from, at):
        return False
    last = max((one for one in (server.served_until, last_day) if one is not None), default=None)
    return last is not None and at - last <= WARM_FOR


def _per_s(connection: Connection, server: DispatchServer, at: datetime, *, paced: bool) -> float:
    """What a server hands over: as measured while it sends and nothing but itself holds it back, else as assumed. What
    its MTA takes faster than it delivers is no capacity, so the growth of its queue is taken off."""
    allowed = server.per_hour / 3600 if server.per_hour is not None else inf
    assumed = min(ASSUMED_SLOT_PER_S * server.slots, allowed)
    if paced:
        return assumed
    live = (slot_reports.c.server_id == server.id) & (slot_reports.c.at >= at - LIVE_FOR)
    measured = connection.scalar(
        select(func.sum(slot_reports.c.per_s)).where(live, slot_reports.c.state == SlotState.SENDING)
    )
    if not measured:
        return assumed
    return max(SLOWEST_PER_S, min(float(measured), allowed) - _growth_per_s(connection, server, at))


def _growth_per_s(connection: Connection, server: DispatchServer, at: datetime) -> float:
    """Of the part of its MTA's queue that was never tried, between the last two looks."""
    rows = connection.execute(
        select(server_health.c.at, server_health.c.queued, server_health.c.deferred)
        .where(server_health.c.server_id == server.id, server_health.c.at >= at - FRESH)
        .where(server_health.c.queued.is_not(None))
        .order_by(server_health.c.at.desc())
        .limit(2)
    ).all()
    if len(rows) < 2:
        return 0.0
    newer, older = rows
    grown = (newer.queued - newer.deferred) - (older.queued - older.deferred)
    return max(0.0, float(grown / (newer.at - older.at).total_seconds()))


def _queued(server: DispatchServer, look: Look | None, at: datetime) -> int | None:
    """Messages in its MTA; None: it has a queue, and nobody could look of late. A relay's queue isn't ours."""
    if server.mta is not MtaKind.EXIM:
        return 0
    if look is None or at - look.at > FRESH or look.health.facts is None:
        return None
    return look.health.facts.messages


def _queues(
    members: list[DispatchServer],
    looks: Mapping[int, Look],
    handed_over: Mapping[str, int],
    lately: Mapping[str, tuple[int, int]],
    at: datetime,
) -> dict[str, ProviderQueue]:
    queued: Counter[str] = Counter()
    deferred: Counter[str] = Counter()
    for server in members:
        look = looks.get(server.id)
        if look is None or look.health.facts is None or at - look.at > FRESH:
            continue
        for domain, facts in look.health.facts.queue.items():
            queued[provider_of(domain)] += facts.queued
            deferred[provider_of(domain)] += facts.deferred
    names = queued.keys() | handed_over.keys() | lately.keys()
    return {
        name: ProviderQueue(queued[name], deferred[name], handed_over.get(name, 0), *lately.get(name, (0, 0)))
        for name in sorted(names)
    }


def _receivers_limits(connection: Connection, pool_id: int, members: list[DispatchServer]) -> dict[str, float]:
    """Messages a second to each mailbox provider, by the servers that are in service now."""
    serving = sum(server.state in (ServerState.ACTIVE, ServerState.WARMING) for server in members)
    rows = connection.execute(select(provider_limits).where(provider_limits.c.pool_id == pool_id))
    return {
        row.provider: min(
            row.per_hour / 3600 * serving if row.per_hour is not None else inf,
            row.shared_per_hour / 3600 if row.shared_per_hour is not None else inf,
        )
        for row in rows
        if row.per_hour is not None or row.shared_per_hour is not None
    }


def _rented(connection: Connection) -> int:
    return sum(
        server.machine_id is not None and server.state is not ServerState.RETIRED for server in list_servers(connection)
    )


def _history(connection: Connection, pool_id: int) -> Iterator[Past]:
    rows = connection.execute(
        select(scale_decisions)
        .where(scale_decisions.c.pool_id == pool_id)
        .order_by(scale_decisions.c.id.desc())
        .limit(HISTORY)
    )
    for row in rows:
        yield Past(
            row.at,
            row.changed_at,
            ScaleAction(row.action),
            ScaleFinding(row.finding),
            ScaleState(row.state),
            row.server,
            row.id,
        )
