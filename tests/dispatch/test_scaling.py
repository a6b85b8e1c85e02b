"""One server more, one fewer, or none? A table of cases, and what must hold for any pool.

The pool of the examples has one server that hands over 20 messages a second, and a send that has two hours left: it
makes 144,000 messages.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.dispatch.caps import CapRules
from mailer_lib.dispatch.scaling import (
    Decision,
    Offer,
    Past,
    Policy,
    PoolView,
    ProviderQueue,
    SendNeed,
    ServerView,
    decide,
)
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import CapSpan, HostProvider, ScaleAction, ScaleFinding, ScaleState, ServerState

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
DEADLINE = AT + timedelta(hours=2)
NOW = Policy(confirm=timedelta(0), idle=timedelta(days=14))
RAMP = (50, 1_000, 20_000)
FITS, TOO_MANY, FAR_TOO_MANY = 120_000, 200_000, 900_000


def server(name: str, state: ServerState = ServerState.ACTIVE, **values: object) -> ServerView:
    return ServerView(name, state, 20.0, CapRules(name), ramp=RAMP, **values)  # type: ignore[arg-type]


def need(unsent: int, finish_by: datetime | None = DEADLINE, **values: object) -> SendNeed:
    return SendNeed("spring-sale#1", {"gmail": unsent}, finish_by, **values)  # type: ignore[arg-type]


def pool(unsent: int = TOO_MANY, *servers: ServerView, **values: object) -> PoolView:
    members = (server("mta-1"), *servers)
    sends = values.pop("sends", (need(unsent),) if unsent else ())
    return PoolView("main", sends, members, ramp=RAMP, **values)  # type: ignore[arg-type]


WARM = server("mta-2", ServerState.STANDBY, warm=True)
COLD = server("mta-3", ServerState.STANDBY)
RENT = Offer(HostProvider.HETZNER, 4.0, 20.0)


def past(
    minutes: float, action: ScaleAction, finding: ScaleFinding, state: ScaleState, name: str | None = None
) -> Past:
    at = AT - timedelta(minutes=minutes)
    return Past(at, at, action, finding, state, name, 7)


LOOKED = past(5, ScaleAction.NONE, ScaleFinding.LATE_FIRST_SEEN, ScaleState.NOTED)
CHANGED = past(5, ScaleAction.ACTIVATE, ScaleFinding.LATE, ScaleState.APPLIED, "mta-9")
REJECTED = past(30, ScaleAction.ACTIVATE, ScaleFinding.LATE, ScaleState.REJECTED, "mta-2")
PROPOSED = past(5, ScaleAction.ACTIVATE, ScaleFinding.LATE, ScaleState.PROPOSED, "mta-2")
DEFERS = {"gmail": ProviderQueue(queued=900, deferred=800, handed_over=1_000)}
TOLD = {"gmail": ProviderQueue(handed_over=200, lately_taken=200, lately_deferred=300)}
DEFERS_LITTLE = {"gmail": ProviderQueue(queued=900, deferred=30, handed_over=1_000)}
NIGHT = SendWindow.model_validate({"from": "20:00", "until": "22:00", "timezone": "UTC"})
LONG_AGO = AT - timedelta(days=20)

CASES = [
    # what the pool looks like, what is allowed → action, finding, server, a word of the reason
    ("nothing runs", pool(0), NOW, "none", "nothing-runs", None, "no send of main"),
    ("in time", pool(FITS, WARM), NOW, "none", "in-time", None, "2026-11-24 13:40 UTC"),
    ("no deadline", pool(sends=(need(TOO_MANY, None),)), NOW, "none", "no-deadline", None, "no deadline"),
    ("a warm standby makes it", pool(TOO_MANY, WARM, COLD), NOW, "activate", "late", "mta-2", "47 min after"),
    ("warm goes before cold", pool(TOO_MANY, COLD, WARM, offers=(RENT,)), NOW, "activate", "late", "mta-2", "warm"),
    ("a warm one that only helps", pool(FAR_TOO_MANY, WARM), NOW, "activate", "late", "mta-2", "with mta-2"),
    ("a cold one adds its 50 only", pool(TOO_MANY, COLD), NOW, "none", "cant-help", None, "50 on its first day"),
    (
        "a cold one is enough for a little",
        pool(TOO_MANY, replace(COLD, ramp=(80_000,))),
        NOW, "provision", "late", "mta-3", "80,000 on its first day",
    ),
    ("a sick standby isn't asked",
     pool(TOO_MANY, replace(WARM, sick=True)),
     NOW, "none", "no-machine", None, "no standby"),
    ("nothing to be had", pool(TOO_MANY), NOW, "none", "no-machine", None, "none may be rented"),
    ("looked at again first", pool(TOO_MANY, WARM), Policy(), "none", "late-first-seen", None, "looked at again"),
    ("late at two looks", pool(TOO_MANY, WARM, history=(LOOKED,)), Policy(), "activate", "late", "mta-2", "warm"),
    ("the last change shows first",
     pool(TOO_MANY, WARM, history=(CHANGED,)),
     NOW, "none", "cooling-down", None, "12:10"),
    ("a rejection holds for an hour",
     pool(TOO_MANY, WARM, history=(REJECTED,)),
     NOW, "none", "cooling-down", None, "12:30"),
    ("one question at a time",
     pool(TOO_MANY, WARM, history=(PROPOSED,)),
     NOW, "none", "in-hand", None, "decision 7"),
    ("one set-up at a time",
     pool(TOO_MANY, WARM, server("mta-4", ServerState.VERIFYING)),
     NOW, "none", "in-hand", None, "mta-4"),
    ("the maximum", pool(TOO_MANY, WARM), replace(NOW, max_servers=1), "none", "at-maximum", None, "1 is the most"),
    (
        "receivers defer",
        pool(TOO_MANY, WARM, queues=DEFERS), NOW, "none", "receivers-bind", None, "gmail defers 800 of 1,000",
    ),
    ("a few deferrals are normal",
     pool(TOO_MANY, WARM, queues=DEFERS_LITTLE),
     NOW, "activate", "late", "mta-2", "warm"),
    (
        "the agents are told to come later",
        pool(TOO_MANY, WARM, queues=TOLD),
        NOW, "none", "receivers-bind", None, "300 of 500 attempts",
    ),
    (
        "a receiver's limit binds",
        pool(TOO_MANY, WARM, provider_per_s={"gmail": 20.0}), NOW, "none", "receivers-bind", None, "limit of gmail",
    ),
    ("the pace binds",
     pool(sends=(need(TOO_MANY, pace_per_s=5.0),)),
     NOW, "none", "own-rules-bind", None, "send pace"),
    ("the window binds",
     pool(sends=(need(TOO_MANY, window=NIGHT),)),
     NOW, "none", "own-rules-bind", None, "window"),
    ("a rented one adds its 50 only", pool(TOO_MANY, offers=(RENT,)), NOW, "none", "cant-help", None, "hetzner"),
    (
        "one that would help but is too dear",
        replace(pool(TOO_MANY, offers=(RENT,)), ramp=(80_000,)), NOW, "none", "over-budget", None, "4.00 a day",
    ),
    (
        "within the budget it is rented",
        replace(pool(TOO_MANY, offers=(RENT,)), ramp=(80_000,)), replace(NOW, budget_per_day=4.0),
        "provision", "late", None, "80,000",
    ),
    (
        "others' rented machines count",
        replace(pool(TOO_MANY, offers=(RENT,), rented_per_day=4.0), ramp=(80_000,)), replace(NOW, budget_per_day=4.0),
        "none", "over-budget", None, "8.00 a day",
    ),
    ("idle for long", pool(0, server("mta-2", idle_since=LONG_AGO)), NOW, "drain", "idle", "mta-2", "20 days"),
    ("idle, but the last one",
     replace(pool(0), servers=(server("mta-1", idle_since=LONG_AGO),)),
     NOW, "none", "nothing-runs", None, ""),
    ("idle, but it holds rows",
     pool(0, server("mta-2", idle_since=LONG_AGO, leases=1)),
     NOW, "none", "nothing-runs", None, ""),
    ("not idle for long enough",
     pool(0, server("mta-2", idle_since=AT - timedelta(days=13))),
     NOW, "none", "nothing-runs", None, ""),
    (
        "the rented one goes first",
        pool(0, server("mta-2", idle_since=LONG_AGO), server("rented", idle_since=LONG_AGO, cost_per_day=4.0,
             machine_from=HostProvider.HETZNER)),
        NOW, "drain", "idle", "rented", "20 days",
    ),
    ("idle, but a send needs it",
     pool(130_000, server("mta-2", idle_since=LONG_AGO)),
     NOW, "none", "in-time", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("view", "policy", "action", "finding", "name", "word"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_is_decided_and_why(
    view: PoolView, policy: Policy, action: str, finding: str, name: str | None, word: str
) -> None:
    made = decide(view, policy, AT)
    assert (made.action, made.finding, made.server) == (action, finding, name), made.reason
    assert word in made.reason


DRAIN = past(600, ScaleAction.DRAIN, ScaleFinding.IDLE, ScaleState.APPLIED, "mta-2")


@pytest.mark.parametrize(
    ("queued", "leases", "history", "action"),
    [
        (0, 0, (DRAIN,), "retire"),
        (1, 0, (DRAIN,), "none"),  # no queued message is lost
        (None, 0, (DRAIN,), "none"),  # nobody could look
        (0, 1, (DRAIN,), "none"),
        (0, 0, (), "none"),  # a person drains it, for reasons of their own
    ],
)
def test_a_server_is_retired_only_when_it_holds_nothing(
    queued: int | None, leases: int, history: tuple[Past, ...], action: str
) -> None:
    view = pool(0, server("mta-2", ServerState.DRAINING, queued=queued, leases=leases), history=history)
    assert decide(view, NOW, AT).action == action


def test_looks_far_apart_do_not_make_a_send_late_for_long() -> None:
    old = past(120, ScaleAction.NONE, ScaleFinding.LATE_FIRST_SEEN, ScaleState.NOTED)
    assert decide(pool(TOO_MANY, WARM, history=(old,)), Policy(), AT).finding is ScaleFinding.LATE_FIRST_SEEN
    between = past(2, ScaleAction.NONE, ScaleFinding.IN_TIME, ScaleState.NOTED)
    recovered = decide(pool(TOO_MANY, WARM, history=(between, LOOKED)), Policy(), AT)
    assert recovered.finding is ScaleFinding.LATE_FIRST_SEEN


def test_sends_of_one_pool_share_its_servers() -> None:
    other = SendNeed("autumn#1", {"outlook": 60_000}, None)
    both = pool(sends=(need(100_000), other))
    assert decide(pool(100_000, WARM), NOW, AT).finding is ScaleFinding.IN_TIME
    assert decide(replace(both, servers=(server("mta-1"), WARM)), NOW, AT).action is ScaleAction.ACTIVATE


# --- for any pool -----------------------------------------------------------------------------------------------------

states = st.sampled_from(list(ServerState))
members = st.lists(
    st.builds(
        ServerView,
        name=st.uuids().map(str),
        state=states,
        per_s=st.sampled_from([1.0, 20.0, 300.0]),
        warm=st.booleans(),
        sick=st.booleans(),
        leases=st.integers(0, 1),
        queued=st.sampled_from([None, 0, 5]),
        idle_since=st.sampled_from([None, LONG_AGO]),
        ramp=st.just((5_000, 50_000)),
    ),
    max_size=6,
)
unsent = st.dictionaries(st.sampled_from(["gmail", "outlook", "other"]), st.integers(0, 10**6), max_size=3)
needs = st.builds(SendNeed, ref=st.just("a#1"), unsent=unsent, finish_by=st.sampled_from([None, DEADLINE]))
views = st.builds(
    PoolView,
    name=st.just("main"),
    sends=needs.map(lambda one: (one,)),
    servers=members.map(tuple),
    provider_per_s=st.dictionaries(st.sampled_from(["gmail", "outlook"]), st.sampled_from([1.0, 50.0])),
    ramp=st.just((5_000, 50_000)),
    offers=st.sampled_from([(), (RENT,)]),
    rented_per_day=st.sampled_from([0.0, 4.0, 8.0]),
)
policies = st.builds(
    Policy,
    max_servers=st.integers(1, 6),
    keep_servers=st.integers(1, 3),
    budget_per_day=st.sampled_from([0.0, 4.0, 10.0]),
    confirm=st.just(timedelta(0)),
)
ADDS = (ScaleAction.ACTIVATE, ScaleAction.PROVISION)


@given(views, policies)
def test_never_more_than_allowed_and_never_fewer_than_are_kept(view: PoolView, policy: Policy) -> None:
    made = decide(view, policy, AT)
    serving = len(view.in_service)
    if made.action in ADDS:
        assert serving < policy.max_servers
        if made.machine_from is not None:
            assert view.rented_per_day + RENT.cost_per_day <= policy.budget_per_day
        else:
            assert {s.name: s.state for s in view.servers}[made.server or ""] is ServerState.STANDBY
    if made.action is ScaleAction.DRAIN:
        assert serving > policy.keep_servers
        assert {s.name: s.leases for s in view.servers}[made.server or ""] == 0
    assert made.reason


@given(views, policies)
def test_nothing_is_added_where_the_receivers_bind(view: PoolView, policy: Policy) -> None:
    """Every provider is held to less than what one server does."""
    names = {name for send in view.sends for name in send.unsent}
    held = replace(view, provider_per_s=dict.fromkeys(names, 0.5), servers=(server("mta-1"), *view.servers))
    assert decide(held, policy, AT).action not in ADDS


@given(st.integers(20_000, 2_000_000), st.integers(0, 4))
def test_a_pool_does_not_flap(people: int, standby: int) -> None:
    """A day of looks, every decision applied at once: a server that was added isn't taken away, and two changes have a
    cool-down between them."""
    policy = Policy()
    extra = [server(f"mta-{number + 2}", ServerState.STANDBY, warm=True) for number in range(standby)]
    servers = {one.name: one for one in (server("mta-1"), *extra)}
    history: list[Past] = []
    left, changes = float(people), []
    deadline = AT + timedelta(hours=6)
    for look in range(24 * 12):
        at = AT + timedelta(minutes=5 * look)
        sends = (need(int(left), deadline),) if left > 0 and at < deadline else ()
        view = PoolView("main", sends, tuple(servers.values()), ramp=RAMP, history=tuple(history))
        made = decide(view, policy, at)
        state = ScaleState.NOTED if made.action is ScaleAction.NONE else ScaleState.APPLIED
        history.insert(0, Past(at, at, made.action, made.finding, state, made.server))
        if made.action is not ScaleAction.NONE:
            changes.append((at, made))
            assert made.server is not None
            servers[made.server] = replace(servers[made.server], state=ServerState.ACTIVE)
        left -= 300 * 20.0 * sum(one.state is ServerState.ACTIVE for one in servers.values()) * bool(sends)
    assert all(made.action is ScaleAction.ACTIVATE for _, made in changes)
    assert len({made.server for _, made in changes}) == len(changes) <= standby
    assert all(b[0] - a[0] >= policy.cooldown for a, b in pairwise(changes))


def test_a_forecast_that_uses_the_days_quota_counts_what_was_granted_today() -> None:
    warming = replace(server("mta-1", ServerState.WARMING), rules=CapRules("mta-1", ramp=(50,)), used={CapSpan.DAY: 50})
    view = replace(pool(1_000, WARM), servers=(warming, WARM))
    made: Decision = decide(view, NOW, AT)
    assert made.action is ScaleAction.ACTIVATE
