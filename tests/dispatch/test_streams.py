"""A tight provider holds back its own messages and nobody else's: an hour of one slot, simulated by its own decisions.

Every second the slot takes leases and grants rows; the agent sends what capacity and the provider's limit let pass.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest

from mailer_lib.agent.pace import Bucket
from mailer_lib.dispatch.slot_rules import MOST_PER_S, next_rate
from mailer_lib.dispatch.streams import Held, Stream, grants, wants

GRANT_S = 10.0
CAPACITY_PER_S = 200
SHARD_ROWS = 5_000
MIX = ["gmail"] * 67 + ["outlook"] * 9 + ["yahoo"] * 6 + ["other"] * 18


@dataclass
class Lease:
    """A shard in the slot's hands: who stands in its rows, and what is granted and waits."""

    rows: list[str]
    granted: int = 0
    waiting: Counter[str] = field(default_factory=Counter)

    def held(self, per_s: Mapping[str, float]) -> Held:
        soon = sum(min(n, round(per_s[p] * GRANT_S + 0.5)) if p in per_s else n for p, n in self.waiting.items())
        return Held(len(self.rows), self.granted, soon, self.waiting.total())


class Slot:
    """Shards by stream: None, and each provider that has shards of its own."""

    def __init__(self, shards: Mapping[str | None, int], per_s: Mapping[str, float]) -> None:
        self.per_s = dict(per_s)
        self.open = {p: deque([self._rows(p, shards)] * number) for p, number in shards.items()}
        self.leases: dict[str | None, list[Lease]] = {p: [] for p in shards}
        self.rates: dict[str | None, float] = {}
        self.settled: dict[str | None, deque[int]] = {p: deque(maxlen=3) for p in shards}
        self.buckets = {p: Bucket(limit) for p, limit in per_s.items()}
        self.sent: list[Counter[str]] = []
        self.most_granted = 0

    @staticmethod
    def _rows(provider: str | None, alone: Iterable[str | None]) -> list[str]:
        mix = [provider] if provider else [p for p in MIX if p not in alone]
        return [mix[row * 37 % len(mix)] for row in range(SHARD_ROWS)]

    def second(self, now_s: float) -> None:
        for provider, leases in self.leases.items():
            stream = Stream.of(provider, None, self.per_s, sum(self.settled[provider]) / 3, self.rates.get(provider))
            grantable = [len(lease.rows) - lease.granted for lease in leases]
            while self.open[provider] and wants(grantable, len(grantable), stream.rate, GRANT_S):
                leases.append(Lease(self.open[provider].popleft()))
                grantable.append(SHARD_ROWS)
            held = [lease.held(self.per_s) for lease in leases]
            rate = self.rates[provider] = stream.next_rate(held, has_begun=bool(self.sent), has_room=True)
            for lease, through in zip(leases, grants(held, rate, GRANT_S, None), strict=True):
                lease.waiting.update(lease.rows[lease.granted : through])
                lease.granted = through
        waiting = sum(lease.waiting.total() for leases in self.leases.values() for lease in leases)
        self.most_granted = max(self.most_granted, waiting)
        self._send(now_s)

    def _send(self, now_s: float) -> None:
        left, sent = CAPACITY_PER_S, Counter[str]()
        for provider, leases in sorted(
            self.leases.items(), key=lambda each: each[0] is None
        ):  # as Backlog.granted does
            before = left
            for lease in leases:
                for whom in list(lease.waiting):
                    bucket = self.buckets.get(whom)
                    passing = bucket.passing(now_s, now_s + 1) if bucket else left
                    number = int(min(lease.waiting[whom], passing, left))
                    if bucket:
                        bucket.take(now_s, number)
                    lease.waiting[whom] -= number
                    sent[whom] += number
                    left -= number
            self.settled[provider].append(before - left)
            leases[:] = [one for one in leases if one.granted < len(one.rows) or one.waiting.total()]
        self.sent.append(sent)

    def run(self, seconds: int) -> None:
        began = len(self.sent)
        for second in range(began, began + seconds):
            self.second(float(second))


def test_where_one_provider_binds_hard_the_others_use_the_capacity() -> None:
    slot = Slot({None: 200, "gmail": 200}, {"gmail": 5.0})
    slot.run(60)  # rates find their height
    began, slot.most_granted = len(slot.sent), 0
    slot.run(1_000)
    used = sum(slot.sent[began:], Counter())
    assert used.total() >= 0.95 * CAPACITY_PER_S * 1_000
    assert 0.95 * 5 * 1_000 <= used["gmail"] <= 5 * 1_000 + 6
    assert slot.most_granted <= 2 * CAPACITY_PER_S * GRANT_S  # about what ten seconds send, and no more in doubt


def test_several_tight_providers_hold_back_nobody_else() -> None:
    slot = Slot({None: 200, "gmail": 100, "outlook": 50, "yahoo": 50}, {"gmail": 8.0, "outlook": 0.5, "yahoo": 2.0})
    slot.run(60)
    began, slot.most_granted = len(slot.sent), 0
    slot.run(1_000)
    used = sum(slot.sent[began:], Counter())
    assert used.total() >= 0.95 * CAPACITY_PER_S * 1_000
    for provider, per_s in slot.per_s.items():
        assert 0.95 * per_s * 1_000 <= used[provider] <= per_s * 1_001 + 2


def test_a_limit_above_the_capacity_grants_no_more_than_is_sent() -> None:
    slot = Slot({None: 100, "gmail": 200}, {"gmail": 10_000.0})
    slot.run(60)
    assert sum(slot.sent[-20:], Counter()).total() >= 0.95 * CAPACITY_PER_S * 20
    assert slot.most_granted <= 4 * CAPACITY_PER_S * GRANT_S


@pytest.mark.parametrize(("rows", "budget", "found"), [(500, None, 100), (500, 30, 30), (40, None, 40), (500, 0, 0)])
def test_a_stream_is_granted_ten_seconds_within_what_caps_leave(rows: int, budget: int | None, found: int) -> None:
    assert grants([Held(rows, 0, 0, 0)], 10.0, GRANT_S, budget) == [found]


def test_the_older_lease_is_granted_first() -> None:
    leases = [Held(60, 0, 0, 0), Held(500, 0, 0, 0)]
    assert grants(leases, 10.0, GRANT_S, None) == [60, 40]
    assert grants(leases, 10.0, GRANT_S, 70) == [60, 10]


def test_a_rate_that_only_doubles_has_an_end() -> None:
    rate = 10.0
    for _ in range(2_000):
        rate = next_rate(rate, 0.0, None, dry=True)
    assert rate == MOST_PER_S
