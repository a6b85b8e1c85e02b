"""When will it be done? A fluid model of a send: every provider's queue flows as fast as the limits let it. Pure.

All rates are messages a second. The capacity of the servers is shared among providers in proportion to what they still
have; what a provider's limit leaves unused goes to the others; when one is done the shares are dealt anew. A server
whose cap or warm-up quota is used up gives nothing until the next hour or day, and a provider whose cap is used up gets
nothing; outside the send window nobody does.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import inf

from sqlalchemy import Connection, func, literal, select

from mailer_lib.database.engine import now
from mailer_lib.database.schema import dispatch_servers, leases, provider_limits, shards
from mailer_lib.dispatch.caps import Cap, CapRules, caps_at, span_start
from mailer_lib.dispatch.grant_counts import rules_of, used_at
from mailer_lib.dispatch.lease import MAY_TAKE
from mailer_lib.dispatch.provider_counts import provider_rules, provider_used
from mailer_lib.dispatch.sends import SendRecord
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import CapSpan, Outcome, ShardState

ASSUMED_SLOT_PER_S = 300.0  # of a slot without limits, behind a plain MTA; the report shows the measured rate
HORIZON = timedelta(days=366)  # what takes longer is forecast as never
ONE_ROW = 1 - 1e-6  # less is left of a cap only as a rounding error
SHORTEST_S = 0.001
NO_CAPS = CapRules("")


@dataclass(frozen=True)
class ProviderForecast:
    provider: str
    messages: int
    done_after_s: float  # inf: never
    bound_by: str  # what held it for longest: "limit of gmail", "capacity", "pace", "send window", a cap by name


@dataclass(frozen=True)
class Forecast:
    by_provider: tuple[ProviderForecast, ...]  # last to finish first
    total_s: float
    per_s: float  # average
    left: float = 0.0  # messages that aren't handed over within the horizon

    def as_dict(self) -> dict[str, object]:
        """JSON-able; times in seconds, None for never."""
        return {
            "total_s": _finite(self.total_s),
            "per_s": round(self.per_s, 1),
            "by_provider": [
                {
                    "provider": p.provider,
                    "messages": p.messages,
                    "done_after_s": _finite(p.done_after_s),
                    "bound_by": p.bound_by,
                }
                for p in self.by_provider
            ],
        }


def _finite(seconds: float) -> float | None:
    return None if seconds == float("inf") else round(seconds, 1)


@dataclass(frozen=True)
class ServerCapacity:
    """What one server can do.

    ``used``: rows granted to it in the present hour and on the present day. ``joins_at``: when it begins; None: now.
    """

    per_s: float
    rules: CapRules = NO_CAPS
    used: Mapping[CapSpan, int] = field(default_factory=dict)
    joins_at: datetime | None = None


@dataclass(frozen=True)
class Capped:
    """What may go to one mailbox provider in an hour and on a day, and what went in the present ones."""

    rules: CapRules
    used: Mapping[CapSpan, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Capacity:
    """What a send can use. ``provider_per_s`` and ``provider_caps``: over all its servers."""

    servers: tuple[ServerCapacity, ...]
    provider_per_s: Mapping[str, float]
    pace_per_s: float | None = None
    window: SendWindow | None = None
    provider_caps: Mapping[str, Capped] = field(default_factory=dict)


class _CappedFlow:
    """What has flowed to a provider, or from a server, and what its caps leave."""

    def __init__(self, rules: CapRules, used: Mapping[CapSpan, int], at: datetime) -> None:
        self.rules = rules
        self._used: dict[tuple[CapSpan, datetime], float] = {
            (span, span_start(span, at)): rows for span, rows in used.items()
        }

    def caps(self, at: datetime) -> list[tuple[Cap, float]]:
        """Each cap with what is left of it."""
        return [
            (cap, max(0.0, cap.rows - self._used.get((cap.span, span_start(cap.span, at)), 0.0)))
            for cap in caps_at(self.rules, {}, at)
        ]

    def binding(self, at: datetime) -> Cap | None:
        """The cap that has to be waited for; None: it can flow."""
        used_up = [cap for cap, left in self.caps(at) if left < ONE_ROW]
        return max(used_up, key=lambda cap: cap.ends_at, default=None)

    def flow(self, rows: float, at: datetime) -> None:
        for span in CapSpan:
            key = span, span_start(span, at)
            self._used[key] = self._used.get(key, 0.0) + rows
        if rows and self.rules.ramp is not None and self.rules.warming_from is None:
            self.rules = replace(self.rules, warming_from=span_start(CapSpan.DAY, at))
        if rows and any(new.warming_from is None for new in self.rules.new_addresses):
            today = span_start(CapSpan.DAY, at)
            begun = (replace(new, warming_from=new.warming_from or today) for new in self.rules.new_addresses)
            self.rules = replace(self.rules, new_addresses=tuple(begun))

    def lasts_s(self, at: datetime, per_s: float) -> list[float]:
        """After how long each cap ends or is used up, at this rate."""
        found = []
        for cap, rows in self.caps(at):
            found.append(_until_s(at, cap.ends_at))
            if per_s > 0:
                found.append(max(SHORTEST_S, rows / per_s))
        return found


class _ServerFlow(_CappedFlow):
    """A server in the model, and how fast it may flow."""

    def __init__(self, capacity: ServerCapacity, at: datetime) -> None:
        super().__init__(capacity.rules, capacity.used, at)
        self.per_s = capacity.per_s
        self.joins_at = capacity.joins_at


@dataclass(frozen=True)
class _Stretch:
    """A time over which nothing changes but how much is left."""

    lasts_s: float
    rates: dict[str, float]  # by provider
    bound_by: str
    flowing: list[_ServerFlow]
    zones: set[str | None]  # whose send window is open
    shut: Mapping[str, Cap] = field(default_factory=dict)  # providers whose cap is used up


def forecast(
    messages: Mapping[str, int],
    capacity: Capacity,
    starts_at: datetime,
    zones: Mapping[str | None, int] | None = None,
    *,
    horizon: timedelta = HORIZON,
) -> Forecast:
    """When each provider's messages are handed over, and all of them. What takes longer than ``horizon`` is never.

    ``zones``: how many messages there are by time zone, where the send window asks for it; every provider is taken to
    have the same mix.
    """
    mix = _mix(zones)
    servers = [_ServerFlow(server, starts_at) for server in capacity.servers if server.per_s > 0]
    capped = {p: _CappedFlow(of.rules, of.used, starts_at) for p, of in capacity.provider_caps.items()}
    left = {provider: {zone: count * part for zone, part in mix.items()}
            for provider, count in messages.items() if count > 0}  # fmt: skip
    done: dict[str, ProviderForecast] = {}
    held_s: dict[str, Counter[str]] = {provider: Counter() for provider in left}
    clock_s = 0.0
    horizon_s = horizon.total_seconds()
    while left and servers and clock_s < horizon_s:
        stretch = _stretch(left, servers, capped, capacity, starts_at + timedelta(seconds=clock_s))
        rates = stretch.rates
        open_left = {provider: sum(left[provider][zone] for zone in stretch.zones) for provider in left}
        flowing = {provider: open_left[provider] / rate for provider, rate in rates.items() if rate > 0}
        step_s = min(stretch.lasts_s, *flowing.values(), horizon_s - clock_s)
        at = starts_at + timedelta(seconds=clock_s)
        whole = sum(server.per_s for server in stretch.flowing)
        for server in stretch.flowing:
            server.flow(sum(rates.values()) * step_s * server.per_s / whole, at)
        for provider in rates.keys() & capped.keys():
            capped[provider].flow(rates[provider] * step_s, at)
        clock_s += step_s
        for provider in list(left):
            bound, rate = capacity.provider_per_s.get(provider), rates.get(provider, 0.0)
            held = bound is not None and rate > 0 and rate >= bound * (1 - 1e-9)
            why = f"limit of {provider}" if held else "send window" if not open_left[provider] else stretch.bound_by
            if provider in stretch.shut:
                why = stretch.shut[provider].name
            held_s[provider][why] += round(step_s * 1000)
            for zone in stretch.zones if rate else ():
                gone = left[provider][zone] / open_left[provider] * rate * step_s
                left[provider][zone] -= gone
                if flowing.get(provider) == step_s or left[provider][zone] <= 1e-9 * messages[provider]:
                    left[provider][zone] = 0.0
            if not any(left[provider].values()):
                why = held_s[provider].most_common(1)[0][0]
                done[provider] = ProviderForecast(provider, messages[provider], clock_s, why)
                del left[provider]
    for provider in left:
        why = held_s[provider].most_common(1)[0][0] if servers else "no server may send"
        done[provider] = ProviderForecast(provider, messages[provider], inf, why)
    ordered = sorted(done.values(), key=lambda p: (-p.done_after_s, p.provider))
    total_s = ordered[0].done_after_s if ordered else 0.0
    waiting = sum(rows for of_zone in left.values() for rows in of_zone.values())
    return Forecast(tuple(ordered), total_s, sum(messages.values()) / total_s if total_s else 0.0, waiting)


def _mix(zones: Mapping[str | None, int] | None) -> dict[str | None, float]:
    """Each zone's part of the whole."""
    whole = sum((zones or {}).values())
    return {zone: count / whole for zone, count in (zones or {}).items() if count} if whole else {None: 1.0}


def _stretch(
    left: Mapping[str, Mapping[str | None, float]],
    servers: list[_ServerFlow],
    capped: Mapping[str, _CappedFlow],
    capacity: Capacity,
    at: datetime,
) -> _Stretch:
    """What flows from ``at`` on, and how long it stays so."""
    ends_s = [inf]
    zones = {zone for of_provider in left.values() for zone, rows in of_provider.items() if rows}
    if capacity.window is not None:
        clocks = {zone: capacity.window.in_zone(zone) for zone in zones}
        changes = [clock.changes_after(at) for clock in clocks.values()]
        ends_s += [_until_s(at, changes_at) for changes_at in changes if changes_at is not None]
        zones = {zone for zone, clock in clocks.items() if clock.is_open(at)}
        if not zones:
            return _Stretch(min(ends_s), {}, "send window", [], zones)
    later = [server.joins_at for server in servers if server.joins_at is not None and server.joins_at > at]
    here = [server for server in servers if server.joins_at is None or server.joins_at <= at]
    ends_s += [_until_s(at, joins_at) for joins_at in later]
    shut = [cap for server in here if (cap := server.binding(at)) is not None]
    flowing = [server for server in here if server.binding(at) is None]
    ends_s += [_until_s(at, cap.ends_at) for cap in shut]
    why = max(shut, key=lambda cap: cap.ends_at).name if shut else "capacity"
    if not flowing:
        return _Stretch(min(ends_s), {}, why, [], zones)
    whole = total = sum(server.per_s for server in flowing)
    if capacity.pace_per_s is not None and capacity.pace_per_s < total:
        total, why = capacity.pace_per_s, "pace"
    shut_to = {p: cap for p, flow in capped.items() if p in left and (cap := flow.binding(at)) is not None}
    ends_s += [_until_s(at, cap.ends_at) for cap in shut_to.values()]
    open_left = {p: rows for p, of_zone in left.items() if (rows := sum(of_zone[zone] for zone in zones)) > 0}
    rates = _deal({p: n for p, n in open_left.items() if p not in shut_to}, total, capacity.provider_per_s)
    flow = sum(rates.values())
    for server in flowing:
        ends_s += server.lasts_s(at, flow * server.per_s / whole)
    for provider in rates.keys() & capped.keys():
        ends_s += capped[provider].lasts_s(at, rates[provider])
    return _Stretch(min(ends_s), rates, why, flowing, zones, shut_to)


def _until_s(at: datetime, then: datetime) -> float:
    return max(SHORTEST_S, (then - at).total_seconds())


def _deal(left: Mapping[str, float], total: float, bounds: Mapping[str, float]) -> dict[str, float]:
    """Share ``total`` among providers by what they have left, none above its bound."""
    rates: dict[str, float] = {}
    open_, remaining = dict(left), total
    while open_:
        whole = sum(open_.values())
        tight = [p for p, n in open_.items() if p in bounds and bounds[p] < remaining * n / whole]
        if not tight:
            return rates | {p: remaining * n / whole for p, n in open_.items()}
        for provider in tight:
            rates[provider] = bounds[provider]
            remaining -= bounds[provider]
            del open_[provider]
    return rates


def zones_left(connection: Connection, send: SendRecord) -> dict[str | None, int] | None:
    """Rows without an outcome by time zone; None where the send window doesn't ask for it."""
    if send.send_window is None or not send.send_window.recipients_timezone:
        return None
    done = sum((leases.c[outcome.value] for outcome in Outcome), start=literal(0))
    of_shard = select(func.coalesce(func.sum(done), 0)).where(leases.c.shard_id == shards.c.id).scalar_subquery()
    unsettled = (shards.c.send_id == send.id) & (shards.c.state != ShardState.SETTLED)
    rows = connection.execute(select(shards.c.zone, shards.c.rows - of_shard).where(unsettled))
    left: Counter[str | None] = Counter()
    for zone, count in rows:
        left[zone] += int(count)
    return dict(left)


def capacity_of(connection: Connection, send: SendRecord) -> Capacity:
    """What the sending pool's servers can do for this send, if no other send uses them."""
    at = now()
    servers = connection.execute(
        select(dispatch_servers.c.id, dispatch_servers.c.slots, dispatch_servers.c.per_hour).where(
            dispatch_servers.c.pool_id == send.pool_id, dispatch_servers.c.state.in_(MAY_TAKE)
        )
    ).all()
    able = tuple(
        ServerCapacity(
            min(ASSUMED_SLOT_PER_S * s.slots, s.per_hour / 3600 if s.per_hour is not None else inf),
            rules_of(connection, s.id),
            used_at(connection, s.id, at),
        )
        for s in servers
    )
    limits = connection.execute(select(provider_limits).where(provider_limits.c.pool_id == send.pool_id)).all()
    by_provider = {
        row.provider: min(
            row.per_hour / 3600 * len(servers) if row.per_hour is not None else inf,
            row.shared_per_hour / 3600 if row.shared_per_hour is not None else inf,
        )
        for row in limits
        if row.per_hour is not None or row.shared_per_hour is not None
    }
    caps = capped_providers(connection, send.pool_id, at)
    return Capacity(able, by_provider, send.pace_per_s, send.send_window, caps)


def capped_providers(connection: Connection, pool_id: int, at: datetime) -> dict[str, Capped]:
    """The caps of a sending pool by mailbox provider, and what is used of them."""
    used = provider_used(connection, pool_id, at)
    return {p: Capped(rules, used.get(p, {})) for p, rules in provider_rules(connection, pool_id).items()}
