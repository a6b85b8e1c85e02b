"""What a slot does next: pure decisions, and the words in which it reports. The loop around them is ``slot.py``."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mailer_lib.dispatch.lease import MAY_JOIN, MAY_TAKE
from mailer_lib.identity import message_keys
from mailer_lib.terms import Control, SendState, ServerState

MAX_OPEN_LEASES = 2  # leases with rows still to be granted
MAX_LEASES = 24  # the rest wait for retries only
FIRST_RATE_PER_S = 10.0  # a new agent's grant is small, and doubles as long as it runs dry
WINDOW_FACTOR = 5  # granted rows at most, in windows, when one provider's limit holds most of them back
MOST_PER_S = 20_000.0  # no agent is faster; a rate that only doubles would end as infinity
RESTART_FIRST_S = 0.5
RESTART_MAX_S = 30.0
RECALL_PATIENCE_S = 120.0  # an agent that empties the MTA's queue gives up itself on what is being delivered
MAX_FAILURES = 6  # agents that died in a row without settling anything


class SlotState(StrEnum):
    STARTING = "starting"
    SENDING = "sending"
    WAITING = "waiting"  # the agent says for what
    PAUSED = "paused"
    # ends of run_slot
    IDLE = "idle"  # nothing to take now, but others are at work: call again later
    DONE = "done"  # every row of the send has an outcome
    JUDGING = "judging"  # every row of the test slice has one; the rest waits for a decision
    STOPPED = "stopped"
    EXPIRED = "expired"
    DRAINED = "drained"  # the server takes no more; others do
    FENCED = "fenced"  # the server is given up; its leases are to be lost
    HANDED_OVER = "handed over"  # another process goes on with the slot; its agent runs
    LEFT = "left"  # asked to end (task killed), or another execution took over
    STRANDED = "stranded"  # what is left is held by slots that ended
    FAILED = "failed"


@dataclass(frozen=True)
class Intent:
    """What the operator's wishes mean for one slot. ``ending``: how it ends once its granted rows are settled."""

    may_take: bool
    agent: Control
    ending: SlotState | None = None
    reason: str = ""
    waits: bool = False  # for a time, not for a person
    recalls: bool = False  # what the MTA has taken and not delivered is taken back


def intent(
    state: SendState, control: Control, server: ServerState, *, expired: bool, window_shut: str | None = None
) -> Intent:
    """Stop wins over expiry, expiry over the server's state, that over pause, and that over the send window.

    ``window_shut``: a sentence, while the send window is closed.
    """
    if server in (ServerState.FENCED, ServerState.FAILED, ServerState.RETIRED):
        return Intent(False, Control.PAUSE, SlotState.FENCED, f"the server is {server}")
    if control == Control.STOP:
        return Intent(False, Control.STOP, SlotState.STOPPED, "stopped by an operator", recalls=True)
    if state != SendState.RUNNING:
        return Intent(False, Control.STOP, SlotState.STOPPED, f"the send is {state}")
    if expired:
        return Intent(False, Control.RUN, SlotState.EXPIRED, "the send has expired", recalls=True)
    if server in MAY_JOIN:  # rows that it still holds go back; then it waits for its turn
        return Intent(False, Control.RUN, SlotState.IDLE, f"the server is {server}; it joins when it becomes active")
    if server not in MAY_TAKE:
        return Intent(False, Control.RUN, SlotState.DRAINED, f"the server is {server}")
    if control == Control.PAUSE:
        return Intent(False, Control.PAUSE, None, "paused by an operator")
    if window_shut is not None:
        return Intent(False, Control.PAUSE, None, window_shut, waits=True)
    return Intent(True, Control.RUN)


def suppression_lines(hashes: Iterable[bytes], domains: Iterable[str], send_key: bytes) -> set[str]:
    """Lines of suppressions.log: whom the agent drops, and by message key what it takes back out of the MTA's queue
    (it can't make a message key from an address hash, and its shards don't hold whom earlier agents sent to)."""
    given = list(hashes)
    keys = message_keys(send_key, given)
    return {value.hex() for value in given} | {f"={key.hex()}" for key in keys} | {f"@{domain}" for domain in domains}


def next_rate(rate: float, measured: float, limit: float | None, *, dry: bool) -> float:
    """The rate that the next grants are made for: doubled while the agent runs dry, near what was measured otherwise.

    A grant is for about ``settings.grant_s`` of sending, so a rate that is too high would leave too many rows in doubt
    with a lost server, and one that is too low starves the agent.
    """
    wanted = rate * 2 if dry else max(rate * 0.8, measured * 1.2, FIRST_RATE_PER_S)
    return min(wanted, MOST_PER_S) if limit is None else max(min(wanted, limit), 0.1)


def wants_lease(grantable_rows: int, open_leases: int, all_leases: int, rate: float, grant_s: float) -> bool:
    """Whether to take another lease before the ones at hand run out of rows to grant."""
    if open_leases >= MAX_OPEN_LEASES or all_leases >= MAX_LEASES:
        return False
    return grantable_rows < rate * grant_s


def restart_after_s(failures: int) -> float:
    """Back-off before an agent is started for the ``failures``-th time after it died: 0.5 s, doubled, at most 30 s."""
    return 0.0 if failures <= 0 else min(RESTART_MAX_S, RESTART_FIRST_S * 2.0 ** (failures - 1))


@dataclass(frozen=True)
class SlotProgress:
    """A slot's word while it works, for people and for the database."""

    label: str
    state: SlotState
    reason: str = ""
    settled: int = 0  # rows with an outcome, of the leases seen by this call
    injected: int = 0
    per_s: float = 0.0
    in_flight: int = 0
    deferred: int = 0
    leases: int = 0

    def __str__(self) -> str:
        waits = f", {self.reason}" if self.reason else ""
        return (
            f"{self.label}: {self.state}{waits}; {self.injected} injected, {self.settled} settled, "
            f"{self.per_s:.0f}/s, {self.deferred} deferred, {self.leases} leases"
        )


@dataclass(frozen=True)
class SlotReport:
    """How a call of ``run_slot`` ended."""

    label: str
    state: SlotState
    reason: str = ""
    injected: int = 0  # by this slot in this send, all calls together
    settled: int = 0
