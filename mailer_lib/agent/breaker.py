"""The circuit breaker: a mailbox provider that refuses or defers most of what it gets is left alone for a while.

    closed ──most of the last replies are refusals, or nearly all are deferrals──▶ open ──hold over──▶ half-open
      ▲                                                                             ▲                     │
      └───── a few accepted in a row ──────────────────────────────────────────────┼──── a refusal ──────┘

Pure: a clock is passed in, nothing is read or written. A breaker sees only replies at the hand-over. Behind an MTA that
queues everything (Exim with ``queue_only``) those are the MTA's own; what the provider says later comes with feedback.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from math import inf

from mailer_lib.agent.job import BreakerRules
from mailer_lib.agent.replies import ReplyClass, classify

EVERYBODY = "*"  # the breaker over all providers: the MTA itself refuses
_PATIENT = {ReplyClass.GREYLISTED, ReplyClass.MAILBOX_FULL}  # deferrals that are as they should be
_EVERYBODY_PROVIDERS = 3  # that have been heard of lately, before all of them are judged by one
_EVERYBODY_SHARE = 0.95  # one provider is 67 % of many lists: it alone must not hold the others


class Answer(Enum):
    ACCEPTED = auto()
    DEFERRED = auto()
    REFUSED = auto()


@dataclass(frozen=True)
class Held:
    """An open breaker. ``until``: clock time of the next attempt; ``reason`` is a sentence without addresses."""

    provider: str
    until: float
    reason: str


def answer_of(code: int, enhanced: str, text: str) -> Answer | None:
    """What a reply says about the provider; None: nothing (greylisting, one full mailbox)."""
    kind = classify(code, enhanced, text)
    if kind is ReplyClass.ACCEPTED:
        return Answer.ACCEPTED
    if 400 <= code < 500:
        return None if kind in _PATIENT else Answer.DEFERRED
    return Answer.REFUSED


class Breaker:
    """Of one provider."""

    def __init__(self, name: str, rules: BreakerRules, refused_share: float, first_s: float) -> None:
        self.name = name
        self._rules = rules
        self._refused_share = refused_share
        self._hold_s = self._first_s = first_s
        self._recent: deque[Answer] = deque(maxlen=rules.replies)
        self._open_until = -inf
        self._probing = False
        self._probed_at = -inf
        self._accepted = 0  # probes in a row
        self.reason = ""

    @property
    def tripped(self) -> bool:
        """Open or half-open."""
        return bool(self.reason)

    @property
    def open_until(self) -> float:
        return self._open_until

    def allowed_at(self, now: float) -> float:
        """When the next message may go: ``now``, the end of the hold, or the time of the next probe."""
        if not self.reason:
            return now
        return max(now, self._open_until, self._probed_at + self._rules.probe_every_s)

    def take(self, now: float) -> None:
        """A message goes at ``now``."""
        if self.reason:
            self._probing, self._probed_at = True, now

    def hear(self, answer: Answer, said: str, now: float) -> bool:
        """An answer came; ``said`` is the reply, redacted. Returns whether the breaker opened by it."""
        if self.reason and not self._probing:
            return False  # of a message that was on its way when it opened
        if self._probing:
            return self._judge_probe(answer, said, now)
        self._recent.append(answer)
        if len(self._recent) < self._rules.replies:
            return False
        refused = self._recent.count(Answer.REFUSED)
        deferred = self._recent.count(Answer.DEFERRED)
        if refused >= self._refused_share * self._rules.replies:
            return self._open(f"{refused} of the last {self._rules.replies} messages were refused", said, now)
        if deferred >= self._rules.deferred_share * self._rules.replies:
            return self._open(f"{deferred} of the last {self._rules.replies} attempts were deferred", said, now)
        return False

    def _judge_probe(self, answer: Answer, said: str, now: float) -> bool:
        if answer is Answer.ACCEPTED:
            self._accepted += 1
            if self._accepted >= self._rules.probes:
                self.reason, self._hold_s, self._probing = "", self._first_s, False
            return False
        self._hold_s = min(self._rules.hold_longest_s, self._hold_s * 2)
        return self._open("still refused when tried again", said, now)

    def _open(self, why: str, said: str, now: float) -> bool:
        self._open_until = now + self._hold_s
        self._probing, self._accepted = False, 0
        self._recent.clear()
        self.reason = f"{why}; the last reply: {said[:200]}"
        return True


class Breakers:
    """One breaker for each provider, and one over all of them."""

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._all = Breaker(EVERYBODY, rules, _EVERYBODY_SHARE, rules.hold_first_s)
        self._by_provider: dict[str, Breaker] = {}
        self._lately: deque[str] = deque(maxlen=rules.replies)

    def all_allowed_at(self, now: float) -> float:
        return self._all.allowed_at(now)

    def provider_allowed_at(self, provider: str, now: float) -> float:
        breaker = self._by_provider.get(provider)
        return now if breaker is None else breaker.allowed_at(now)

    def take(self, provider: str, now: float) -> None:
        self._all.take(now)
        breaker = self._by_provider.get(provider)
        if breaker is not None:
            breaker.take(now)

    def hear(self, provider: str, code: int, enhanced: str, text: str, now: float) -> list[Held]:
        """A reply to a message for ``provider``, ``text`` redacted. Returns the breakers that opened by it."""
        answer = Answer.ACCEPTED if 200 <= code < 300 else answer_of(code, enhanced, text)
        if answer is None or not self._rules.replies:
            return []
        breaker = self._by_provider.get(provider)
        if breaker is None:
            breaker = Breaker(provider, self._rules, self._rules.refused_share, self._rules.hold_first_s)
            self._by_provider[provider] = breaker
        said = f"{code} {text}"
        self._lately.append(provider)
        concerned = [breaker]
        if self._all.tripped or len(set(self._lately)) >= _EVERYBODY_PROVIDERS:
            concerned.append(self._all)
        opened = [b for b in concerned if b.hear(answer, said, now)]
        return [Held(b.name, b.open_until, b.reason) for b in opened]

    def held(self) -> list[Held]:
        """The breakers that are open or probing, by provider."""
        every = [self._all, *(self._by_provider[name] for name in sorted(self._by_provider))]
        return [Held(b.name, b.open_until, b.reason) for b in every if b.tripped]
