"""The life of a send: a table of what may follow what."""

import pytest

from mailer_lib.dispatch.states import FINAL, TRANSITIONS, PhaseFacts, StateError, check_transition, final_state, reopen
from mailer_lib.terms import SendMode, SendState


def test_every_state_is_in_the_table_and_can_be_left() -> None:
    assert set(TRANSITIONS) == set(SendState)
    assert all(TRANSITIONS[state] for state in SendState)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_is_over_only_begins_anew(state: SendState) -> None:
    assert TRANSITIONS[state] <= {SendState.PLANNED, SendState.APPROVED, SendState.AWAITING_APPROVAL}


@pytest.mark.parametrize("state", sorted(set(SendState) - {SendState.RUNNING, SendState.JUDGING}))
def test_only_a_running_send_comes_to_judging(state: SendState) -> None:
    with pytest.raises(StateError, match=f"a#1 is {state}: it can't become judging"):
        check_transition("a#1", state, SendState.JUDGING)


@pytest.mark.parametrize("state", sorted(set(SendState) - {SendState.APPROVED}))
def test_only_an_approved_send_starts_running(state: SendState) -> None:
    if state in (SendState.RUNNING, SendState.JUDGING):  # one that judges has run before
        check_transition("a#1", state, SendState.RUNNING)
        return
    with pytest.raises(StateError, match=f"a#1 is {state}: it can't become running"):
        check_transition("a#1", state, SendState.RUNNING)


def test_only_a_send_that_waits_for_approval_can_be_rejected() -> None:
    assert [s for s in SendState if SendState.REJECTED in TRANSITIONS[s]] == [SendState.AWAITING_APPROVAL]


@pytest.mark.parametrize(
    ("facts", "valid", "state", "phase", "resuming", "superseded"),
    [
        (PhaseFacts(), False, SendState.PLANNED, 1, False, False),  # nothing was published yet
        (PhaseFacts(1, 0, began=True), True, SendState.PLANNED, 2, False, False),  # finished: topped up
        (PhaseFacts(1, 3, began=True), True, SendState.APPROVED, 1, True, False),  # goes on
        (PhaseFacts(1, 3, began=True), False, SendState.AWAITING_APPROVAL, 1, True, False),  # approval is void
        (PhaseFacts(1, 3, began=False), True, SendState.PLANNED, 2, False, True),  # nobody began it: planned anew
        (PhaseFacts(2, 0, began=False), False, SendState.PLANNED, 3, False, False),  # an empty top-up
    ],
)
def test_opening_a_send_again(
    facts: PhaseFacts, valid: bool, state: SendState, phase: int, resuming: bool, superseded: bool
) -> None:
    again = reopen(facts, approval_valid=valid)
    assert (again.state, again.phase, again.resuming, again.superseded) == (state, phase, resuming, superseded)


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({}, SendState.FINISHED),
        ({"unsettled_rows": 1}, SendState.FAILED),  # never "finished" while mail is unsent
        ({"unsettled_rows": 1, "stopped": True}, SendState.FAILED),
        ({"stopped": True}, SendState.STOPPED),
        ({"expired_rows": 2}, SendState.EXPIRED),
        ({"reason": "the books don't balance"}, SendState.FAILED),
    ],
)
def test_how_a_send_ends(values: dict[str, object], state: SendState) -> None:
    facts = {"unsettled_rows": 0, "stopped": False, "expired_rows": 0, "reason": None, **values}
    assert final_state(SendMode.SEND, **facts) == state  # type: ignore[arg-type]
