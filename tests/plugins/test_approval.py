"""When a person is asked, and which answer counts."""

from datetime import UTC, datetime, timedelta

import pytest

ASKED = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
SEND = {"send_id": 1, "mode": "send", "claim": "airflow:x", "resuming": False, "state": "planned"}
SUMMARY = {"nothing_to_send": False, "digest": "d"}


@pytest.mark.parametrize(
    ("send", "summary", "wanted", "word"),
    [
        ({}, {}, True, None),
        ({"mode": "test"}, {}, True, None),
        ({"mode": "dry-run"}, {}, True, "dry run"),
        ({}, {"nothing_to_send": True}, True, "nobody is left"),
        ({}, {}, False, "switched off"),
        ({"resuming": True, "state": "approved"}, {}, True, "approved before"),
        ({"resuming": True, "state": "awaiting-approval"}, {}, True, None),
    ],
)
def test_when_a_person_is_asked(send, summary, wanted, word):
    from mailfleet_airflow.approval import reason_not_to_ask

    reason = reason_not_to_ask(SEND | send, SUMMARY | summary, wanted=wanted)
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
