"""Life of a send as a table: which state may follow which, and what opening an old send again means. Pure."""

from dataclasses import dataclass

from mailer_lib.terms import SendMode, SendState

FINAL = frozenset({SendState.FINISHED, SendState.STOPPED, SendState.EXPIRED, SendState.REJECTED, SendState.FAILED})

_ENDS = frozenset({SendState.FINISHED, SendState.STOPPED, SendState.EXPIRED, SendState.FAILED})

TRANSITIONS: dict[SendState, frozenset[SendState]] = {
    SendState.PLANNED: _ENDS | {SendState.FREEZING},
    # FREEZING → APPROVED: a phase with granted rows is resumed under the approval it began with
    SendState.FREEZING: _ENDS | {SendState.AWAITING_APPROVAL, SendState.PLANNED},
    SendState.AWAITING_APPROVAL: _ENDS | {SendState.APPROVED, SendState.REJECTED, SendState.PLANNED},
    SendState.APPROVED: _ENDS | {SendState.RUNNING, SendState.AWAITING_APPROVAL, SendState.PLANNED},
    SendState.RUNNING: _ENDS | {SendState.JUDGING, SendState.APPROVED, SendState.AWAITING_APPROVAL},
    SendState.JUDGING: _ENDS | {SendState.RUNNING, SendState.APPROVED, SendState.AWAITING_APPROVAL},
    # opened again: a new phase is planned, or the unfinished one goes on
    SendState.FINISHED: frozenset({SendState.PLANNED}),
    SendState.REJECTED: frozenset({SendState.PLANNED}),
    SendState.STOPPED: frozenset({SendState.PLANNED, SendState.APPROVED, SendState.AWAITING_APPROVAL}),
    SendState.EXPIRED: frozenset({SendState.PLANNED, SendState.APPROVED, SendState.AWAITING_APPROVAL}),
    SendState.FAILED: frozenset({SendState.PLANNED, SendState.APPROVED, SendState.AWAITING_APPROVAL}),
}


class StateError(RuntimeError):
    """A step came at the wrong moment of a send's life."""


def check_transition(send: str, old: SendState, new: SendState) -> None:
    """Raises:
    StateError: ``new`` can't follow ``old``; staying in a state is always allowed.
    """
    if old != new and new not in TRANSITIONS[old]:
        raise StateError(f"{send} is {old}: it can't become {new}")


@dataclass(frozen=True)
class PhaseFacts:
    """The newest published phase of a send. ``phase`` 0: none yet."""

    phase: int = 0
    unsettled_shards: int = 0
    began: bool = False  # a server has or had rows of it


@dataclass(frozen=True)
class Reopening:
    state: SendState
    phase: int  # to be frozen, or to be continued
    resuming: bool = False  # message and snapshot stay
    superseded: bool = False  # the newest phase is cancelled: nobody began it


def reopen(phase: PhaseFacts, *, approval_valid: bool) -> Reopening:
    """What an execution finds that opens a send which an earlier execution left.

    A phase that a server began, and that isn't settled, goes on as it was frozen and approved. What nobody began is
    planned anew, with today's message and today's audience. A settled phase is topped up by the next one.
    """
    if phase.unsettled_shards and phase.began:
        state = SendState.APPROVED if approval_valid else SendState.AWAITING_APPROVAL
        return Reopening(state, phase.phase, resuming=True)
    return Reopening(SendState.PLANNED, phase.phase + 1, superseded=bool(phase.unsettled_shards))


def final_state(
    mode: SendMode, *, unsettled_rows: int, stopped: bool, expired_rows: int, reason: str | None
) -> SendState:
    """How a send ends. ``reason``: why it failed, None when nothing went wrong.

    Unsent rows are never called finished; stopping by an operator is no failure.
    """
    if reason is not None or unsettled_rows:
        return SendState.FAILED
    if stopped:
        return SendState.STOPPED
    if expired_rows and mode != SendMode.DRY_RUN:
        return SendState.EXPIRED
    return SendState.FINISHED
