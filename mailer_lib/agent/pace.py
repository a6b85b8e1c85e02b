"""How fast: token buckets as pure functions of a clock that is passed in. Knows nothing of SMTP or of an MTA.

A bucket is kept as its *theoretical arrival time* (the generic cell rate algorithm, ITU-T I.371): one number, no timer.
In every window of ``w`` seconds at most ``per_s * (w + burst_s) + 1`` messages pass; ``burst_s`` is what lets a late
timer catch up, and never more than a second.
"""

from collections.abc import Mapping
from math import floor, inf

BURST_S = 0.1
MAX_BURST_S = 1.0


class Bucket:
    """One limit. ``per_s`` None: no limit; 0: nothing passes."""

    __slots__ = ("_arrival", "_interval", "_tolerance", "per_s")

    def __init__(self, per_s: float | None, burst_s: float = BURST_S) -> None:
        if not 0 <= burst_s <= MAX_BURST_S:
            raise ValueError(f"a burst of {burst_s} s: at most {MAX_BURST_S} s")
        if per_s is not None and not per_s >= 0:
            raise ValueError(f"a limit of {per_s} a second: must be 0 or more")
        self.per_s = per_s
        self._interval = 0.0 if per_s is None else inf if per_s == 0 else 1 / per_s
        self._tolerance = burst_s
        self._arrival = -inf  # when the next message is due if all came evenly

    def next_allowed_at(self, now: float) -> float:
        """The moment, ``now`` or later, from which one message may pass; inf: never."""
        if self._interval == inf:
            return inf
        return max(now, self._arrival - self._tolerance)

    def passing(self, now: float, until: float) -> float:
        """How many messages pass from ``now`` to ``until`` if each goes as soon as it may; inf: all that there are."""
        if self._interval == inf or self.next_allowed_at(now) > until:
            return 0
        if not self._interval:
            return inf
        return floor((until + self._tolerance - max(now, self._arrival)) / self._interval) + 1

    def take(self, now: float, messages: int = 1) -> None:
        """One message passes at ``now``, which ``next_allowed_at`` allowed; or several of those ``passing`` then."""
        if self._interval and messages:
            self._arrival = max(now, self._arrival) + messages * self._interval

    def changed(self, per_s: float | None, now: float) -> "Bucket":
        """A bucket under a new limit that owes what this one owed, at most one interval of the new limit."""
        bucket = Bucket(per_s, self._tolerance)
        if self._interval and bucket._interval not in (0.0, inf) and self._arrival > now:
            bucket._arrival = min(self._arrival, now + self._tolerance + bucket._interval)
        return bucket


class Pace:
    """All limits of one job: the server's own and one for each mailbox provider."""

    def __init__(self, per_s: float | None = None, provider_per_s: Mapping[str, float] | None = None) -> None:
        self._all = Bucket(per_s)
        self._provider = {name: Bucket(limit) for name, limit in (provider_per_s or {}).items()}

    def change(self, per_s: float | None, provider_per_s: Mapping[str, float], now: float) -> None:
        """Other limits from ``now`` on; nobody gains a fresh burst by it."""
        self._all = self._all.changed(per_s, now)
        fresh = Bucket(None)
        self._provider = {
            name: self._provider.get(name, fresh).changed(limit, now) for name, limit in provider_per_s.items()
        }

    def all_allowed_at(self, now: float) -> float:
        """When the next message may go as far as the server's own limit is concerned."""
        return self._all.next_allowed_at(now)

    def provider_allowed_at(self, provider: str, now: float) -> float:
        """When the next message may go to this provider as far as its limit is concerned."""
        bucket = self._provider.get(provider)
        return now if bucket is None else bucket.next_allowed_at(now)

    def next_allowed_at(self, provider: str, now: float) -> float:
        """The moment, ``now`` or later, at which a message to ``provider`` may go; inf: not under these limits."""
        return max(self.all_allowed_at(now), self.provider_allowed_at(provider, now))

    def take(self, provider: str, now: float) -> None:
        """A message to ``provider`` goes at ``now``."""
        self._all.take(now)
        bucket = self._provider.get(provider)
        if bucket is not None:
            bucket.take(now)
