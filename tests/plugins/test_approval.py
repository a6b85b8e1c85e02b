"""When a person is asked, and which answer counts."""

from datetime import UTC, datetime, timedelta

import pytest

ASKED = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("mode", "state", "nothing_to_send", "word"),
    [
        ("send", "awaiting-approval", False, None),
        ("test", "awaiting-approval", False, None),
        ("dry-run", "awaiting-approval", False, "dry run"),
        ("send", "awaiting-approval", True, "nobody is left"),
        ("send", "approved", False, "approved before"),  # a resumed send, or a retry whose answer was noted
        ("send", "running", False, "approved before"),
    ],
)
def test_when_there_is_nothing_to_decide(mode, state, nothing_to_send, word):
    from mailfleet_airflow.approval import reason_not_to_ask

    from mailer_lib.terms import SendMode, SendState

    reason = reason_not_to_ask(SendMode(mode), SendState(state), nothing_to_send=nothing_to_send)
    assert (reason is None) if word is None else (word in reason)


@pytest.mark.parametrize(("hours", "late"), [(0, False), (24, False), (24.01, True)])
def test_an_answer_counts_for_24_hours(hours, late):
    from mailfleet_airflow.approval import answered_too_late

    assert answered_too_late(ASKED, ASKED + timedelta(hours=hours)) is late
    assert answered_too_late(ASKED, (ASKED + timedelta(hours=hours)).isoformat()) is late


@pytest.mark.parametrize(("options", "yes"), [(["Approve"], True), (["Reject"], False), (["Approve", "Reject"], False)])
def test_only_approve_alone_is_a_yes(options, yes):
    from mailfleet_airflow.approval import approved

    assert approved({"chosen_options": options}) is yes
