"""More servers, fewer, or as many? A pure decision over one sending pool, made anew at each look.

A server is added only for *our* capacity, and only when it makes a difference before the deadline. What a server adds
is the least of what its machine does, its address's warm-up quota, and what the receivers' limits leave: the limits of
mailbox providers stay as they are in every "what if", because what a receiver holds back is never spread over more
addresses. A server is taken away when it was idle for long, and is retired when its queue is empty.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import isinf

from mailer_lib.dispatch.caps import CapRules
from mailer_lib.dispatch.forecast import HORIZON, NO_CAPS, Capacity, Capped, Forecast, ServerCapacity, forecast
from mailer_lib.dispatch.lease import MAY_TAKE
from mailer_lib.dispatch.scaling_text import late_text, outlook_text, span_text
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import CapSpan, HostProvider, ScaleAction, ScaleFinding, ScaleState, ServerState

SPARE_SHARE = 0.05  # of the time left: a send that would need it is late
IN_SPARE_SHARE = 0.3  # the same when a server is to be taken away; the gap between the two is what stops flapping
WORTH_SHARE = 0.1  # of the messages that miss the deadline: a server that saves fewer of them doesn't help
DEFERRING_MIN = 50  # messages of one provider that its servers tried in vain, at least
DEFERRED_SHARE = 0.5  # of the replies that the agents got from it lately
REPLIES_MIN = 10  # fewer say nothing; a circuit breaker is content with 40, and lets hardly any through afterwards
DEFERRING_SHARE = 0.2  # of what was handed over for it
ENDLESS_PER_S = 1e6  # of a server that nothing holds back: does capacity matter at all?
SAME_SPELL = timedelta(hours=1)  # looks further apart say nothing about the time between them

_LATE = frozenset(
    {
        ScaleFinding.LATE_FIRST_SEEN,
        ScaleFinding.LATE,
        ScaleFinding.CANT_HELP,
        ScaleFinding.NO_MACHINE,
        ScaleFinding.AT_MAXIMUM,
        ScaleFinding.OVER_BUDGET,
        ScaleFinding.COOLING_DOWN,
    }
)
_OPEN = frozenset({ScaleState.PROPOSED, ScaleState.APPROVED, ScaleState.APPLYING})
_REFUSED = frozenset({ScaleState.REJECTED, ScaleState.LAPSED})
_SETTING_UP = frozenset({ServerState.PROVISIONING, ServerState.VERIFYING})


@dataclass(frozen=True)
class Policy:
    """What an operator allows."""

    max_servers: int = 10
    keep_servers: int = 1
    budget_per_day: float = 0.0
    confirm: timedelta = timedelta(minutes=4)
    cooldown: timedelta = timedelta(minutes=15)
    ask_again: timedelta = timedelta(hours=1)  # after a rejection
    idle: timedelta = timedelta(days=14)
    warm_lead: timedelta = timedelta(minutes=2)  # from the decision to the first message
    cold_lead: timedelta = timedelta(minutes=10)
    rent_lead: timedelta = timedelta(minutes=15)


@dataclass(frozen=True)
class SendNeed:
    """A running send: who hasn't been sent to, and until when it should be."""

    ref: str
    unsent: Mapping[str, int]  # by mailbox provider
    finish_by: datetime | None = None
    pace_per_s: float | None = None
    window: SendWindow | None = None


@dataclass(frozen=True)
class ServerView:
    name: str
    state: ServerState
    per_s: float
    rules: CapRules = NO_CAPS  # without a ramp unless it is warming
    used: Mapping[CapSpan, int] = field(default_factory=dict)
    warm: bool = False  # its address sent of late: from standby it may become active at once
    sick: bool = False
    idle_since: datetime | None = None  # nothing was granted to it since
    leases: int = 0  # that it still holds
    queued: int | None = None  # in its MTA; None: nobody could look
    machine_from: HostProvider = HostProvider.INVENTORY
    cost_per_day: float = 0.0
    ramp: tuple[int, ...] = ()  # that it would warm up by


@dataclass(frozen=True)
class Offer:
    """A machine that could be rented."""

    machine_from: HostProvider
    cost_per_day: float
    per_s: float


@dataclass(frozen=True)
class ProviderQueue:
    """One mailbox provider's messages in the MTAs of the pool."""

    queued: int = 0
    deferred: int = 0  # of them, tried at least once
    handed_over: int = 0  # to the MTAs, by the sends that are running
    lately_taken: int = 0  # replies to the agents in this hour and the last
    lately_deferred: int = 0


@dataclass(frozen=True)
class Past:
    """An earlier look or change, newest first."""

    at: datetime
    changed_at: datetime
    action: ScaleAction
    finding: ScaleFinding
    state: ScaleState
    server: str | None = None
    id: int = 0


@dataclass(frozen=True)
class PoolView:
    name: str
    sends: tuple[SendNeed, ...] = ()
    servers: tuple[ServerView, ...] = ()
    provider_per_s: Mapping[str, float] = field(default_factory=dict)  # receivers' limits, all servers together
    provider_caps: Mapping[str, Capped] = field(default_factory=dict)  # likewise, on an hour and a day
    queues: Mapping[str, ProviderQueue] = field(default_factory=dict)
    ramp: tuple[int, ...] = ()  # of a new server
    offers: tuple[Offer, ...] = ()
    rented_per_day: float = 0.0  # of all pools
    history: tuple[Past, ...] = ()

    @property
    def in_service(self) -> tuple[ServerView, ...]:
        return tuple(server for server in self.servers if server.state in MAY_TAKE)


@dataclass(frozen=True)
class Decision:
    pool: str
    action: ScaleAction
    finding: ScaleFinding
    reason: str
    server: str | None = None
    machine_from: HostProvider | None = None
    numbers: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class _Outlook:
    """One send as it stands."""

    send: SendNeed
    finish_by: datetime
    left_s: float
    total_s: float
    missed: int  # messages that aren't handed over by then

    @property
    def goal_s(self) -> float:
        """In time, with something to spare."""
        return (1 - SPARE_SHARE) * self.left_s

    @property
    def late_s(self) -> float:
        return self.total_s - self.goal_s

    @property
    def is_late(self) -> bool:
        return self.total_s > self.goal_s


@dataclass(frozen=True)
class _Candidate:
    server: str | None
    what: str  # for the sentence
    capacity: ServerCapacity
    action: ScaleAction
    machine_from: HostProvider | None = None
    cost_per_day: float = 0.0


def decide(view: PoolView, policy: Policy, at: datetime) -> Decision:
    """The one thing to do about a sending pool now, or nothing, and why."""
    busy = _in_hand(view)
    if busy is not None:
        return _none(view, ScaleFinding.IN_HAND, busy)
    outlooks = [_outlook(view, send, at) for send in view.sends if send.finish_by is not None and send.unsent]
    worst = max(outlooks, key=lambda one: one.late_s, default=None)
    if worst is not None and worst.is_late:
        return _scale_out(view, policy, worst, at)
    return _scale_in(view, policy, outlooks, at)


# --- more -------------------------------------------------------------------------------------------------------------


def _scale_out(view: PoolView, policy: Policy, worst: _Outlook, at: datetime) -> Decision:
    late = late_text(worst.send.ref, at, worst.total_s, worst.finish_by)
    numbers: dict[str, object] = {
        "send": worst.send.ref,
        "unsent": sum(worst.send.unsent.values()),
        "left_s": round(worst.left_s),
        "without_s": _seconds(worst.total_s),
        "missed": worst.missed,
        "in_service": len(view.in_service),
    }
    deferring = sorted(name for name, queue in view.queues.items() if _is_deferring(queue))
    if deferring:  # what they hold back is nothing that a server could help with; is the rest late?
        words = ", ".join(_deferring_text(name, view.queues[name]) for name in deferring)
        view = replace(view, sends=tuple(_without(send, deferring) for send in view.sends))
        worst = _outlook(view, _without(worst.send, deferring), at)
        if not worst.is_late:
            cant = "another server can't help, and what a receiver holds back isn't spread over more addresses"
            return _none(view, ScaleFinding.RECEIVERS_BIND, f"{late}, but {words}: {cant}", numbers)
    bound = _bound_but_by_capacity(view, worst, at)
    if bound is not None:
        return _none(view, bound[0], f"{late}, but {bound[1]}", numbers)
    waits = _waits(view, policy, late, at)
    if waits is not None:
        return _none(view, waits[0], waits[1], numbers)
    if len(view.in_service) >= policy.max_servers:
        allowed = f"{len(view.in_service)} servers are in service, and {policy.max_servers} is the most allowed"
        return _none(view, ScaleFinding.AT_MAXIMUM, f"{late}; {allowed}", numbers)
    return _choose(view, policy, worst, late, numbers, at)


def _without(send: SendNeed, providers: list[str]) -> SendNeed:
    return replace(send, unsent={name: rows for name, rows in send.unsent.items() if name not in providers})


def _is_deferring(queue: ProviderQueue) -> bool:
    """By what waits in the MTAs' queues, or by what the agents are told."""
    waits = queue.deferred >= max(DEFERRING_MIN, DEFERRING_SHARE * queue.handed_over)
    replies = queue.lately_taken + queue.lately_deferred
    return waits or queue.lately_deferred >= max(REPLIES_MIN, DEFERRED_SHARE * replies)


def _deferring_text(name: str, queue: ProviderQueue) -> str:
    if queue.deferred >= queue.lately_deferred:
        return f"{name} defers {queue.deferred:,} of {queue.handed_over:,}"
    return (
        f"{name} deferred {queue.lately_deferred:,} of {queue.lately_taken + queue.lately_deferred:,} attempts lately"
    )


def _bound_but_by_capacity(view: PoolView, worst: _Outlook, at: datetime) -> tuple[ScaleFinding, str] | None:
    """What holds the send back, when even a server without any limit would make no difference."""
    if not worst.left_s:
        return ScaleFinding.CANT_HELP, "that is past"
    if _helps(worst, _outlook(view, worst.send, at, ServerCapacity(ENDLESS_PER_S))):
        return None
    last = _forecast(view, worst.send, at, None).by_provider[0]
    if last.bound_by == "pace":
        return ScaleFinding.OWN_RULES_BIND, "the send's own pace holds it back: `mailfleet send pace` changes it"
    if last.bound_by == "send window":
        return ScaleFinding.OWN_RULES_BIND, "the send window holds it back, and it is shut for every server"
    return (
        ScaleFinding.RECEIVERS_BIND,
        f"the {last.bound_by} binds: another server can't help before the deadline",
    )


def _waits(view: PoolView, policy: Policy, late: str, at: datetime) -> tuple[ScaleFinding, str] | None:
    since = _late_since(view, at)
    if policy.confirm and (since is None or at - since < policy.confirm):
        again = f"it is looked at again before anything is done ({span_text(policy.confirm.total_seconds())})"
        return ScaleFinding.LATE_FIRST_SEEN, f"{late}; {again}"
    cooling = _cooling_until(view, policy, at)
    if cooling is not None:
        return ScaleFinding.COOLING_DOWN, f"{late}; the last change has until {cooling:%H:%M} UTC to show its effect"
    return None


def _late_since(view: PoolView, at: datetime) -> datetime | None:
    """Since when every look found the pool late."""
    since, upto = None, at
    for past in view.history:
        if past.finding not in _LATE or upto - past.changed_at > SAME_SPELL:
            break
        since, upto = past.at, past.at
    return since


def _cooling_until(view: PoolView, policy: Policy, at: datetime) -> datetime | None:
    changes = [past for past in view.history if past.action is not ScaleAction.NONE and past.state not in _OPEN]
    ends = [
        past.changed_at + (policy.ask_again if past.state in _REFUSED else policy.cooldown)
        for past in changes
        if past.state is not ScaleState.NOTED
    ]
    until = max(ends, default=at)
    return until if until > at else None


def _choose(  # noqa: PLR0917  # parts of one sentence
    view: PoolView, policy: Policy, worst: _Outlook, late: str, numbers: dict[str, object], at: datetime
) -> Decision:
    """The first candidate that makes the deadline, else the one that saves most, if it makes a difference."""
    best: tuple[_Outlook, _Candidate] | None = None
    tried: list[str] = []
    too_dear: _Candidate | None = None
    for candidate in _candidates(view, policy, at):
        after = _outlook(view, worst.send, at, candidate.capacity)
        if not _helps(worst, after):
            saved = max(0, worst.missed - after.missed)
            tried.append(f"{candidate.what} saves {saved:,} of the {worst.missed:,} messages that miss it")
        elif candidate.cost_per_day and view.rented_per_day + candidate.cost_per_day > policy.budget_per_day:
            too_dear = too_dear or candidate
        elif best is None or (best[0].is_late and after.missed < best[0].missed):
            best = after, candidate
    if best is not None:
        after, candidate = best
        return Decision(
            view.name,
            candidate.action,
            ScaleFinding.LATE,
            f"{late}; with {candidate.what} {outlook_text(at, after.total_s, worst.missed - after.missed)}",
            candidate.server,
            candidate.machine_from,
            {**numbers, "with_s": _seconds(after.total_s), "missed_with": after.missed},
        )
    if too_dear is not None:
        dear = (
            f"{too_dear.what} would help, but {view.rented_per_day + too_dear.cost_per_day:.2f} a day for rented "
            f"machines is over the budget of {policy.budget_per_day:.2f}"
        )
        return _none(view, ScaleFinding.OVER_BUDGET, f"{late}; {dear}", numbers)
    if tried:
        return _none(view, ScaleFinding.CANT_HELP, f"{late}; nothing that there is helps: {'; '.join(tried)}", numbers)
    return _none(view, ScaleFinding.NO_MACHINE, f"{late}; there is no standby server, and none may be rented", numbers)


def _candidates(view: PoolView, policy: Policy, at: datetime) -> Iterator[_Candidate]:
    """Warm standby servers, then cold ones, then machines for rent, the cheapest first."""
    standby = sorted(
        (s for s in view.servers if s.state is ServerState.STANDBY and not s.sick), key=lambda s: (not s.warm, s.name)
    )
    for server in standby:
        if server.warm:
            capacity = ServerCapacity(server.per_s, server.rules, server.used, at + policy.warm_lead)
            yield _Candidate(server.name, f"{server.name}, whose address is warm,", capacity, ScaleAction.ACTIVATE)
            continue
        rules = replace(server.rules, ramp=server.ramp or view.ramp, warming_from=None)
        capacity = ServerCapacity(server.per_s, rules, server.used, at + policy.cold_lead)
        what = f"{server.name}, which may send {rules.ramp[0] if rules.ramp else 0:,} on its first day,"
        yield _Candidate(server.name, what, capacity, ScaleAction.PROVISION)
    for offer in sorted(view.offers, key=lambda one: one.cost_per_day):
        rules = CapRules("a new server", ramp=view.ramp)
        capacity = ServerCapacity(offer.per_s, rules, {}, at + policy.rent_lead)
        what = (
            f"a machine of {offer.machine_from}, which may send {view.ramp[0] if view.ramp else 0:,} on its first day,"
        )
        yield _Candidate(None, what, capacity, ScaleAction.PROVISION, offer.machine_from, offer.cost_per_day)


def _helps(before: _Outlook, after: _Outlook) -> bool:
    """Whether a change is worth it: the deadline is made, or enough of what misses it is saved."""
    return not after.is_late or before.missed - after.missed >= max(1, WORTH_SHARE * before.missed)


# --- fewer ------------------------------------------------------------------------------------------------------------


def _scale_in(view: PoolView, policy: Policy, outlooks: list[_Outlook], at: datetime) -> Decision:
    gone = _drained(view)
    if gone is not None:
        return gone
    fine, words = _nothing_to_do(view, outlooks, at)
    cooling = _cooling_until(view, policy, at)
    if cooling is not None or len(view.in_service) <= policy.keep_servers:
        return _none(view, fine, words)
    idle = [
        server
        for server in view.in_service
        if server.idle_since is not None and at - server.idle_since >= policy.idle and not server.leases
    ]
    # the dearest first, then whichever was idle for longest
    for server in sorted(idle, key=lambda one: (-one.cost_per_day, one.idle_since or at, one.name)):
        without = replace(view, servers=tuple(one for one in view.servers if one is not server))
        if all(_has_room(without, one.send, at) for one in outlooks):
            assert server.idle_since is not None
            days = (at - server.idle_since).days
            return Decision(
                view.name,
                ScaleAction.DRAIN,
                ScaleFinding.IDLE,
                f"{server.name} has had nothing to send for {days} days; {len(view.in_service) - 1} servers stay",
                server.name,
                server.machine_from,
                {"idle_days": days, "in_service": len(view.in_service)},
            )
    return _none(view, fine, words)


def _drained(view: PoolView) -> Decision | None:
    """A server that an earlier decision drains, once it holds nothing any more. What a person drains is theirs."""
    ours = {
        past.server for past in view.history if past.action is ScaleAction.DRAIN and past.state is ScaleState.APPLIED
    }
    for server in view.servers:
        if server.state is ServerState.DRAINING and server.name in ours and not server.leases and server.queued == 0:
            then = "goes back on standby" if server.machine_from is HostProvider.INVENTORY else "is given back"
            return Decision(
                view.name,
                ScaleAction.RETIRE,
                ScaleFinding.DRAINED,
                f"{server.name} is drained: it holds no row of any send, and its MTA's queue is empty. It {then}",
                server.name,
                server.machine_from,
            )
    return None


def _has_room(view: PoolView, send: SendNeed, at: datetime) -> bool:
    one = _outlook(view, send, at)
    return one.total_s <= (1 - IN_SPARE_SHARE) * one.left_s


def _nothing_to_do(view: PoolView, outlooks: list[_Outlook], at: datetime) -> tuple[ScaleFinding, str]:
    if outlooks:
        worst = max(outlooks, key=lambda one: one.late_s)
        done = outlook_text(at, worst.total_s).removeprefix("it ")
        return ScaleFinding.IN_TIME, f"{worst.send.ref} {done}, in time for {worst.finish_by:%Y-%m-%d %H:%M} UTC"
    if view.sends:
        return ScaleFinding.NO_DEADLINE, f"{', '.join(s.ref for s in view.sends)} has no deadline to miss"
    return ScaleFinding.NOTHING_RUNS, f"no send of {view.name} is running"


# --- what if ----------------------------------------------------------------------------------------------------------


def _in_hand(view: PoolView) -> str | None:
    for past in view.history:
        if past.state in _OPEN:
            return f"decision {past.id} ({past.action}) is {past.state}"
    setting_up = [server for server in view.servers if server.state in _SETTING_UP]
    return f"{setting_up[0].name} is {setting_up[0].state}" if setting_up else None


def _outlook(view: PoolView, send: SendNeed, at: datetime, more: ServerCapacity | None = None) -> _Outlook:
    assert send.finish_by is not None
    total_s = _forecast(view, send, at, more).total_s
    missed = _forecast(view, send, at, more, horizon=max(timedelta(0), send.finish_by - at)).left
    return _Outlook(send, send.finish_by, max(0.0, (send.finish_by - at).total_seconds()), total_s, round(missed))


def _forecast(
    view: PoolView, send: SendNeed, at: datetime, more: ServerCapacity | None, *, horizon: timedelta = HORIZON
) -> Forecast:
    servers = tuple(ServerCapacity(s.per_s, s.rules, s.used) for s in view.in_service)
    capacity = Capacity(
        servers if more is None else (*servers, more),
        view.provider_per_s,
        send.pace_per_s,
        send.window,
        view.provider_caps,
    )
    return forecast(_work(view, send), capacity, at, horizon=horizon)


def _work(view: PoolView, send: SendNeed) -> dict[str, int]:
    """Messages that are handed over until ``send`` is through. Sends share the servers equally, so until then each
    other send has got as much as this one, or all that it has."""
    mine = sum(send.unsent.values())
    work = dict(send.unsent)
    for name, queue in view.queues.items():  # what the MTAs took and didn't try yet is before it
        if queue.queued > queue.deferred:
            work[name] = work.get(name, 0) + queue.queued - queue.deferred
    for other in view.sends:
        whole = sum(other.unsent.values())
        if other.ref == send.ref or not whole:
            continue
        share = min(1.0, mine / whole)
        for name, rows in other.unsent.items():
            work[name] = work.get(name, 0) + round(rows * share)
    return work


def _seconds(total_s: float) -> int | None:
    """None: never."""
    return None if isinf(total_s) else round(total_s)


def _none(view: PoolView, finding: ScaleFinding, reason: str, numbers: Mapping[str, object] | None = None) -> Decision:
    return Decision(view.name, ScaleAction.NONE, finding, reason, numbers=numbers or {})


__all__ = [
    "Decision",
    "Offer",
    "Past",
    "Policy",
    "PoolView",
    "ProviderQueue",
    "SendNeed",
    "ServerView",
    "decide",
]
