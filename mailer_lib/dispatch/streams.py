"""How many rows a slot's leases are granted, stream by stream. Pure.

Shards of a provider that has a limit are of that provider alone (docs/decisions/0612): they are a *stream* with a rate
of its own, and all others together are one. Where rows of a tight provider stand between those of others, they fill
the grants, and the others starve; in streams nobody stands behind anybody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from mailer_lib.dispatch.lease import next_grant
from mailer_lib.dispatch.slot_rules import FIRST_RATE_PER_S, WINDOW_FACTOR, next_rate, wants_lease


@dataclass(frozen=True)
class Held:
    """One lease, as far as grants go. ``soon``: granted rows without an outcome that can go within ``grant_s``;
    ``waiting``: all of them, but those that wait for a retry."""

    free_through: int
    granted_through: int
    soon: int
    waiting: int


@dataclass(frozen=True)
class Stream:
    """Rows of one provider, or of all that have no limit (``provider`` None), at one moment."""

    provider: str | None
    limit_per_s: float | None
    measured_per_s: float
    rate: float = FIRST_RATE_PER_S

    @classmethod
    def of(
        cls,
        provider: str | None,
        all_per_s: float | None,
        provider_per_s: Mapping[str, float],
        measured_per_s: float,
        rate: float | None,
    ) -> "Stream":
        """``rate``: what the stream's last grants were made for."""
        limit = min(all_per_s if all_per_s is not None else inf, provider_per_s.get(provider or "", inf))
        return cls(provider, None if limit == inf else limit, measured_per_s, rate or FIRST_RATE_PER_S)

    def next_rate(self, leases: Sequence[Held], *, has_begun: bool, has_room: bool) -> float:
        """What the next grants are made for: doubled while nothing that was granted can go."""
        dry = has_begun and has_room and not any(lease.soon for lease in leases)
        return next_rate(self.rate, self.measured_per_s, self.limit_per_s, dry=dry)


def grants(leases: Sequence[Held], rate: float, grant_s: float, budget: int | None) -> list[int]:
    """The new ``granted_through`` of each lease, oldest first. ``budget``: rows that caps leave room for."""
    outstanding, whole = sum(lease.soon for lease in leases), sum(lease.waiting for lease in leases)
    most = WINDOW_FACTOR * max(1, round(rate * grant_s))
    found = []
    for lease in leases:
        through = next_grant(
            lease.free_through,
            lease.granted_through,
            lease.granted_through - lease.soon,
            per_s=rate,
            grant_s=grant_s,
            elsewhere=outstanding - lease.soon,
        )
        through = min(through, lease.granted_through + max(0, most - whole))
        if budget is not None:
            through = min(through, lease.granted_through + budget)
            budget -= through - lease.granted_through
        outstanding, whole = (n + through - lease.granted_through for n in (outstanding, whole))
        found.append(through)
    return found


def wants(grantable: Sequence[int], all_leases: int, rate: float, grant_s: float) -> bool:
    """Whether a stream needs another lease; ``grantable``: rows that each of its leases may still be granted."""
    return wants_lease(sum(grantable), sum(rows > 0 for rows in grantable), all_leases, rate, grant_s)
