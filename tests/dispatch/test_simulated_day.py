"""A simulated day: a million messages to twenty providers from ten servers, decided by the functions that slots use.

Time goes on in steps of a minute. In each, every slot is dealt its limits, takes leases, is granted rows and sends what
its limits let pass, as ``slot.py`` and the agent do; only files, database and MTA are missing.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from mailer_lib.agent.pace import BURST_S, Bucket
from mailer_lib.dispatch.caps import HAND_BACK_FROM, CapRules, caps_at, exhausted, room, span_start, within
from mailer_lib.dispatch.forecast import Capacity, ServerCapacity, forecast
from mailer_lib.dispatch.lease import next_grant
from mailer_lib.dispatch.plan import share_limits
from mailer_lib.dispatch.slot_rules import FIRST_RATE_PER_S, WINDOW_FACTOR, next_rate, wants_lease
from mailer_lib.dispatch.zones import Zones
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import CapSpan

START = datetime(2026, 11, 24, tzinfo=UTC)
STEP_S = 60
MINUTES = 24 * 60
MESSAGES = 1_000_000
SHARD_ROWS = 12_500
WEIGHTS = [400, 130, 90, 60, 50, 40, 35, 30, 25, 20, 20, 15, 15, 15, 10, 10, 10, 10, 10, 5]
PROVIDERS = [f"provider-{number:02}" for number in range(20)]


def _pattern() -> list[str]:
    """A thousand rows, interleaved by provider as snapshots interleave them."""
    due = [((n + 0.5) / weight, p) for p, weight in zip(PROVIDERS, WEIGHTS, strict=True) for n in range(weight)]
    return [provider for _, provider in sorted(due)]


PATTERN = _pattern()
ROWS = PATTERN * (2 + SHARD_ROWS // 1000)  # a shard's, from any place in it on


def rows_of(first: int, through: int) -> Counter[str]:
    whole = (through - first) // 1000
    found = Counter({p: whole * w for p, w in zip(PROVIDERS, WEIGHTS, strict=True)}) if whole else Counter()
    found.update(PATTERN[row % 1000] for row in range(first + whole * 1000, through))
    return found


@dataclass
class Server:
    rules: CapRules
    mta_per_s: float
    rate: float = FIRST_RATE_PER_S
    lease: tuple[int, int] | None = None  # (granted through, rows of the shard)
    waiting: Counter[str] = field(default_factory=Counter)  # granted, not sent
    whole: Bucket = field(default_factory=lambda: Bucket(None))
    buckets: dict[str, Bucket] = field(default_factory=dict)
    granted: Counter[datetime] = field(default_factory=Counter)  # by hour
    sent: list[Counter[str]] = field(default_factory=list)  # by minute
    idle: bool = False

    def used(self, at: datetime) -> dict[CapSpan, int]:
        day = span_start(CapSpan.DAY, at)
        return {
            CapSpan.HOUR: self.granted[span_start(CapSpan.HOUR, at)],
            CapSpan.DAY: sum(rows for hour, rows in self.granted.items() if hour >= day),
        }


@dataclass
class Day:
    servers: list[Server]
    per_provider: Mapping[str, int] = field(default_factory=dict)  # for each server, an hour
    shared: Mapping[str, int] = field(default_factory=dict)  # for all together, an hour
    window: SendWindow | None = None
    caps: Mapping[str, CapRules] = field(default_factory=dict)  # of providers, for all servers together
    capped: defaultdict[str, Counter[datetime]] = field(default_factory=lambda: defaultdict(Counter))
    shards: deque[tuple[int, int]] = field(
        default_factory=lambda: deque((0, SHARD_ROWS) for _ in range(MESSAGES // SHARD_ROWS))
    )

    def run(self) -> None:
        for minute in range(MINUTES):
            at = START + timedelta(minutes=minute)
            shut = Zones.of(self.window, [None], at).why_shut()
            live = sum(not server.idle for server in self.servers)
            for server in self.servers:
                server.sent.append(Counter())
                if shut is None:
                    self.step(server, at, minute * float(STEP_S), live)

    def rooms(self, at: datetime) -> dict[str, int]:
        """Rows that may still be granted, to all servers together, for each provider that has a cap."""
        found = {}
        for provider, rules in self.caps.items():
            used = {CapSpan.HOUR: self.capped[provider][at.replace(minute=0)],
                    CapSpan.DAY: sum(self.capped[provider].values())}  # fmt: skip
            left = room(caps_at(rules, used, at))
            if left is not None:
                found[provider] = left
        return found

    def step(self, server: Server, at: datetime, now_s: float, live: int) -> None:
        limits = share_limits(
            server_per_hour=server.rules.per_hour,
            provider_per_hour=self.per_provider,
            pace_per_s=None,
            live_on_server=1,
            live_of_send=live,
            shared_per_hour=self.shared,
            live_in_pool=live,
        )
        if server.whole.per_s != limits.per_s:
            server.whole = server.whole.changed(limits.per_s, now_s)
        for provider, per_s in limits.provider_per_s.items():
            bucket = server.buckets.get(provider, Bucket(None))
            if bucket.per_s != per_s:
                server.buckets[provider] = bucket.changed(per_s, now_s)
        self.grant(server, at, limits.per_s, limits.provider_per_s)
        self.send(server, now_s)

    def grant(self, server: Server, at: datetime, per_s: float | None, provider_per_s: Mapping[str, float]) -> None:
        caps, rooms = caps_at(server.rules, server.used(at), at), self.rooms(at)
        budget, cap = room(caps), exhausted(caps)
        if cap is not None and cap.ends_at - at >= HAND_BACK_FROM and server.lease is not None:
            self.shards.append(server.lease)
            server.lease = None
        soon = sum(min(n, math.ceil(provider_per_s.get(p, math.inf) * STEP_S)) if p in provider_per_s else n
                   for p, n in server.waiting.items())  # fmt: skip
        measured = server.sent[-2].total() / STEP_S if len(server.sent) > 1 else 0.0
        server.rate = next_rate(server.rate, measured, per_s, dry=soon == 0 and budget != 0)
        most = WINDOW_FACTOR * max(1, round(server.rate * STEP_S))
        while budget != 0:
            grantable = server.lease[1] - server.lease[0] if server.lease else 0
            if not grantable:
                if not self.shards or not wants_lease(grantable, 0, 0, server.rate, STEP_S):
                    break
                server.lease = self.shards.popleft()
            assert server.lease is not None
            granted, rows = server.lease
            through = next_grant(rows, granted, granted - soon, per_s=server.rate, grant_s=STEP_S)
            through = min(through, granted + max(0, most - server.waiting.total()))
            through = through if budget is None else min(through, granted + budget)
            if rooms:
                through = granted + within(ROWS[granted % 1000 :][: through - granted], 0, through - granted, rooms)
            if through == granted:
                break
            more = rows_of(granted, through)
            rooms = {provider: rows - more[provider] for provider, rows in rooms.items()}
            for provider in rooms:
                self.capped[provider][span_start(CapSpan.HOUR, at)] += more[provider]
            server.waiting += more
            server.granted[span_start(CapSpan.HOUR, at)] += through - granted
            if server.rules.ramp is not None and server.rules.warming_from is None:
                server.rules = replace(server.rules, warming_from=span_start(CapSpan.DAY, at))
            soon += through - granted
            budget = None if budget is None else budget - (through - granted)
            server.lease = (through, rows)
        server.idle = budget == 0 and not server.waiting

    def send(self, server: Server, now_s: float) -> None:
        until_s = now_s + STEP_S
        left = min(server.whole.passing(now_s, until_s), round(server.mta_per_s * STEP_S))
        total = server.waiting.total()
        for provider, rows in sorted(server.waiting.items(), key=lambda item: item[1]):
            share = math.ceil(left * rows / total) if total else 0
            bucket = server.buckets.get(provider)
            passing = bucket.passing(now_s, until_s) if bucket else math.inf
            sent = int(min(rows, share, left, passing))
            total -= rows
            left -= sent
            if bucket:
                bucket.take(now_s, sent)
            server.sent[-1][provider] += sent
        done = server.sent[-1]
        server.whole.take(now_s, done.total())
        server.waiting -= done

    def sent(self, provider: str | None = None) -> list[int]:
        """By minute, of all servers together."""
        return [
            sum(s.sent[minute][provider] if provider else s.sent[minute].total() for s in self.servers)
            for minute in range(MINUTES)
        ]


def most_in_an_hour(by_minute: list[int]) -> int:
    """Of any sixty minutes in a row."""
    return max(sum(by_minute[first : first + 60]) for first in range(MINUTES - 59))


def test_where_nothing_binds_the_capacity_is_used() -> None:
    day = Day([Server(CapRules(f"mta-{n}"), mta_per_s=1.5) for n in range(10)])
    day.run()
    by_minute = day.sent()
    assert sum(by_minute) == MESSAGES
    took_minutes = max(minute for minute, sent in enumerate(by_minute) if sent) + 1
    assert 0.95 * 10 * 1.5 * 60 * took_minutes <= MESSAGES


@pytest.fixture(scope="module")
def bounded() -> Day:
    """Three cold servers, caps on two, limits for each server and shared ones, and a night without mail."""
    rules = [
        *(CapRules(f"cold-{n}", ramp=(50 * 10**n, 10**5)) for n in range(3)),
        CapRules("capped-0", per_hour=3_000),
        CapRules("capped-1", per_hour=9_000, per_day=40_000),
        *(CapRules(f"warm-{n}") for n in range(5)),
    ]
    day = Day(
        [Server(rule, mta_per_s=6.0) for rule in rules],
        per_provider={PROVIDERS[1]: 700, PROVIDERS[2]: 400},
        shared={PROVIDERS[0]: 18_000, PROVIDERS[3]: 1_000, PROVIDERS[1]: 5_000},
        window=SendWindow.model_validate({"from": "07:00", "until": "21:00", "timezone": "Europe/Oslo"}),
    )
    day.run()
    return day


def test_no_cap_and_no_warm_up_quota_is_passed(bounded: Day) -> None:
    for server in bounded.servers:
        of_day = sum(server.granted.values())
        assert sum(sent.total() for sent in server.sent) <= of_day
        if server.rules.per_hour is not None:
            assert max(server.granted.values()) <= server.rules.per_hour
        if server.rules.per_day is not None:
            assert of_day == server.rules.per_day  # used whole
        if server.rules.ramp is not None:
            assert of_day == server.rules.ramp[0]


def test_no_limit_of_a_provider_is_passed_in_any_hour(bounded: Day) -> None:
    for provider, per_hour in bounded.per_provider.items():
        for server in bounded.servers:
            most = most_in_an_hour([sent[provider] for sent in server.sent])
            assert most <= per_hour * (1 + BURST_S / 3600) + 1
    for provider, per_hour in bounded.shared.items():
        most = most_in_an_hour(bounded.sent(provider))
        assert most <= per_hour + len(bounded.servers)  # each bucket lets one message through at once


def test_no_cap_of_a_provider_is_passed_and_until_then_the_capacity_is_used() -> None:
    caps = {PROVIDERS[0]: CapRules(PROVIDERS[0], per_day=300_000), PROVIDERS[1]: CapRules(PROVIDERS[1], 9_000, 120_000)}
    day = Day([Server(CapRules(f"mta-{n}"), mta_per_s=1.5) for n in range(10)], caps=caps)
    day.run()
    for provider, rules in caps.items():
        of_day = sum(day.capped[provider].values())
        assert sum(day.sent(provider)) <= of_day <= (rules.per_day or of_day)
        assert rules.per_hour is None or max(day.capped[provider].values()) <= rules.per_hour
    # each fourth row is of the first one, so its cap is used up before anything else is
    assert sum(day.capped[PROVIDERS[0]].values()) == 300_000
    by_minute = day.sent()
    assert sum(by_minute[: 12 * 60]) >= 0.95 * 10 * 1.5 * 12 * 3600


def test_where_one_shared_limit_binds_it_is_used() -> None:
    day = Day([Server(CapRules(f"mta-{n}"), mta_per_s=6.0) for n in range(10)], shared={PROVIDERS[0]: 18_000})
    day.run()
    by_minute = day.sent(PROVIDERS[0])
    assert most_in_an_hour(by_minute) <= 18_000 + 10
    assert sum(by_minute[: 20 * 60]) >= 0.95 * 18_000 * 20


def test_nothing_is_sent_outside_the_window(bounded: Day) -> None:
    by_minute = bounded.sent()
    assert sum(by_minute[: 6 * 60]) == sum(by_minute[20 * 60 :]) == 0
    assert by_minute[6 * 60 + 1] > 0


def test_the_forecast_of_that_day_comes_true() -> None:
    servers = [Server(CapRules(f"mta-{n}", per_day=60_000 if n < 5 else None), mta_per_s=2.0) for n in range(10)]
    day = Day(servers, shared={PROVIDERS[0]: 24_000})
    day.run()
    messages = {provider: MESSAGES * weight // 1000 for provider, weight in zip(PROVIDERS, WEIGHTS, strict=True)}
    capacity = Capacity(tuple(ServerCapacity(2.0, s.rules) for s in servers), {PROVIDERS[0]: 24_000 / 3600})
    expected = {p.provider: p for p in forecast(messages, capacity, START).by_provider}
    for provider in (PROVIDERS[0], PROVIDERS[4]):
        by_minute = day.sent(provider)
        assert sum(by_minute) == messages[provider]
        took_s = 60.0 * (max(minute for minute, sent in enumerate(by_minute) if sent) + 1)
        assert took_s == pytest.approx(expected[provider].done_after_s, rel=0.1)
    assert {p.bound_by for p in expected.values()} == {"daily cap of mta-0"}
