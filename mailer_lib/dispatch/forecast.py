"""When will it be done? A fluid model of a send: every provider's queue flows as fast as the limits let it. Pure.

All rates are messages a second. The capacity of the servers is shared among providers in proportion to what they still
have; what a provider's limit leaves unused goes to the others; when one is done the shares are dealt anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from mailer_lib.database.schema import dispatch_servers, provider_limits
from mailer_lib.dispatch.lease import MAY_TAKE
from mailer_lib.dispatch.sends import SendRecord

ASSUMED_SLOT_PER_S = 300.0  # of a slot without limits, behind a plain MTA; the report shows the measured rate


@dataclass(frozen=True)
class ProviderForecast:
    provider: str
    messages: int
    done_after_s: float  # inf: never
    bound_by: str  # what decides: "limit of gmail", "capacity", "pace"


@dataclass(frozen=True)
class Forecast:
    by_provider: tuple[ProviderForecast, ...]  # last to finish first
    total_s: float
    per_s: float  # average

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
class Capacity:
    """What a send can use. ``provider_per_s``: over all its servers."""

    per_s: float
    provider_per_s: Mapping[str, float]
    pace_per_s: float | None = None


def forecast(messages: Mapping[str, int], capacity: Capacity) -> Forecast:
    """When each provider's messages are handed over, and all of them."""
    paced = capacity.pace_per_s is not None and capacity.pace_per_s < capacity.per_s
    total_rate = capacity.pace_per_s if paced and capacity.pace_per_s is not None else capacity.per_s
    whole = "pace" if paced else "capacity"
    left = {provider: float(count) for provider, count in messages.items() if count > 0}
    done: dict[str, ProviderForecast] = {}
    clock = 0.0
    while left:
        rates = _deal(left, total_rate, capacity.provider_per_s)
        flowing = {provider: left[provider] / rate for provider, rate in rates.items() if rate > 0}
        if not flowing:
            for provider in left:
                done[provider] = ProviderForecast(provider, messages[provider], float("inf"), "no server may send")
            break
        step = min(flowing.values())
        clock += step
        for provider in list(left):
            left[provider] -= rates[provider] * step
            if left[provider] <= 1e-9 * messages[provider] or flowing.get(provider) == step:
                bound = capacity.provider_per_s.get(provider)
                held = bound is not None and rates[provider] >= bound * (1 - 1e-9)
                why = f"limit of {provider}" if held else whole
                done[provider] = ProviderForecast(provider, messages[provider], clock, why)
                del left[provider]
    ordered = sorted(done.values(), key=lambda p: (-p.done_after_s, p.provider))
    total_s = ordered[0].done_after_s if ordered else 0.0
    count = sum(messages.values())
    return Forecast(tuple(ordered), total_s, count / total_s if total_s else 0.0)


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


def capacity_of(connection: Connection, send: SendRecord) -> Capacity:
    """What the sending pool's servers can do for this send, if no other send uses them."""
    servers = connection.execute(
        select(dispatch_servers.c.slots, dispatch_servers.c.per_hour).where(
            dispatch_servers.c.pool_id == send.pool_id, dispatch_servers.c.state.in_(MAY_TAKE)
        )
    ).all()
    per_s = sum(
        min(ASSUMED_SLOT_PER_S * s.slots, s.per_hour / 3600 if s.per_hour is not None else float("inf"))
        for s in servers
    )
    limits = connection.execute(
        select(provider_limits.c.provider, provider_limits.c.per_hour).where(provider_limits.c.pool_id == send.pool_id)
    )
    by_provider = {row.provider: row.per_hour / 3600 * len(servers) for row in limits}
    return Capacity(per_s, by_provider, send.pace_per_s)
