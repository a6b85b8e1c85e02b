"""What is due, and what is too late: a table of moments, then the same through the database."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailer_lib.dispatch.schedule import Due, Timed, due, newest_slot, slot_edition

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def weekly(**more) -> Timed:
    return Timed("weekly", LONG_AGO, **{"cron": "0 9 * * MON", "timezone": "Europe/Oslo", **more})


NOON_SALE = Timed("sale", LONG_AGO, starts_at=at("2026-11-24T12:00"))


@pytest.mark.parametrize(
    ("timed", "now", "edition"),
    [
        (NOON_SALE, "2026-11-24T11:59:59", None),
        (NOON_SALE, "2026-11-24T12:00:00", "1"),
        (NOON_SALE, "2026-11-26T12:00:00", "1"),
        # Monday 9:00 in Oslo is 8:00 UTC in winter and 7:00 UTC in summer
        (weekly(), "2026-11-23T07:59:59", "2026-11-16T0900"),
        (weekly(), "2026-11-23T08:00:00", "2026-11-23T0900"),
        (weekly(), "2026-07-06T07:00:00", "2026-07-06T0900"),
        # after an outage of three weeks: only the latest slot
        (weekly(), "2026-12-15T10:00:00", "2026-12-14T0900"),
        # not before starts_at
        (weekly(starts_at=at("2026-11-24T00:00")), "2026-11-24T10:00:00", None),
        (weekly(starts_at=at("2026-11-24T00:00")), "2026-11-30T10:00:00", "2026-11-30T0900"),
    ],
)
def test_what_is_due(timed, now, edition):
    found = due([timed], set(), at(now))
    assert [d.edition for d in found] == ([edition] if edition else [])


def test_a_rhythm_given_to_an_old_campaign_does_not_send_at_once():
    stored = at("2026-11-23T08:30")  # Monday, half an hour after the slot
    assert due([Timed("w", stored, cron="0 9 * * MON", timezone="Europe/Oslo")], set(), at("2026-11-23T08:31")) == []


def test_an_edit_just_after_the_slot_does_not_lose_it():
    stored = at("2026-11-23T08:02")
    found = due([Timed("w", stored, cron="0 9 * * MON", timezone="Europe/Oslo")], set(), at("2026-11-23T08:04"))
    assert [d.edition for d in found] == ["2026-11-23T0900"]


def test_an_edition_that_exists_is_not_started_again():
    assert due([NOON_SALE], {("sale", "1")}, at("2026-11-24T12:00")) == []
    assert due([NOON_SALE], {("other", "1")}, at("2026-11-24T12:00")) != []


def test_what_would_have_expired_is_too_late():
    flash = Timed("flash", LONG_AGO, starts_at=at("2026-11-24T12:00"), expires_after=timedelta(hours=2))
    assert due([flash], set(), at("2026-11-24T13:59:59"))[0].too_late is False
    assert due([flash], set(), at("2026-11-24T14:00:00"))[0].too_late is True


def test_the_oldest_comes_first():
    later = Timed("a", LONG_AGO, starts_at=at("2026-11-24T11:30"))
    earlier = Timed("b", LONG_AGO, starts_at=at("2026-11-24T11:00"))
    assert [d.campaign for d in due([later, earlier], set(), at("2026-11-24T12:00"))] == ["b", "a"]


def test_the_hour_that_comes_twice_has_two_editions():
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # 2:30 summer time in Oslo
    second = first + timedelta(hours=1)  # 2:30 winter time
    assert slot_edition(first, "Europe/Oslo") == "2026-10-25T0230+0200"
    assert slot_edition(second, "Europe/Oslo") == "2026-10-25T0230+0100"


@given(
    st.sampled_from(["*/5 * * * *", "0 9 * * MON", "30 2 * * *", "0 0 1 * *"]),
    st.sampled_from(["UTC", "Europe/Oslo", "America/New_York", "Asia/Kolkata"]),
    st.datetimes(datetime(2026, 2, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
)
@example("*/5 * * * *", "UTC", datetime(2026, 2, 1, 0, 14, 59, 1, tzinfo=UTC))
def test_a_slot_is_never_in_the_future_and_stays_the_same_until_the_next(cron, timezone, now):
    timed = Timed("c", LONG_AGO, cron=cron, timezone=timezone)
    slot = newest_slot(timed, now)
    assert slot is not None
    assert slot <= now
    assert newest_slot(timed, slot) == slot
    assert due([timed], {("c", slot_edition(slot, timezone))}, now) == []


def test_due_is_plain_data():
    assert due([NOON_SALE], set(), at("2026-11-24T12:00")) == [Due("sale", "1", at("2026-11-24T12:00"), False)]
