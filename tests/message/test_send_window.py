"""Send windows: days and hours on the wall clock of a time zone, whatever that clock does."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mailer_lib.message.send_window import SendWindow

WEEK = ("mon", "tue", "wed", "thu", "fri")


def window(opens: str = "09:00", closes: str = "18:00", **more: Any) -> SendWindow:
    return SendWindow.model_validate({"from": opens, "until": closes, **more})


def oslo(text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Oslo"), fold=fold).astimezone(UTC)


@pytest.mark.parametrize(
    ("local", "is_open", "changes"),
    [
        ("2026-11-24T08:59:59", False, "2026-11-24T09:00"),  # a Tuesday
        ("2026-11-24T09:00", True, "2026-11-24T18:00"),
        ("2026-11-24T17:59:59", True, "2026-11-24T18:00"),
        ("2026-11-24T18:00", False, "2026-11-25T09:00"),
        ("2026-11-27T18:00", False, "2026-11-30T09:00"),  # over the weekend
        ("2026-11-28T12:00", False, "2026-11-30T09:00"),
        ("2026-03-28T12:00", False, "2026-03-30T09:00"),  # over the night in which the clock is put forward
        ("2026-10-24T12:00", False, "2026-10-26T09:00"),
    ],
)
def test_office_hours_in_oslo(local: str, is_open: bool, changes: str) -> None:
    office = window(days=WEEK, timezone="Europe/Oslo")
    assert office.is_open(oslo(local)) is is_open
    assert office.changes_after(oslo(local)) == oslo(changes)


def test_a_window_that_closes_before_it_opens_goes_on_past_midnight() -> None:
    night = window("22:00", "06:00", days=("sat",), timezone="Europe/Oslo")
    assert [night.is_open(oslo(f"2026-11-{day}T{hour}:00")) for day, hour in [
        (28, "05"), (28, 22), (29, "05"), (29, "06"), (29, 22),
    ]] == [False, True, True, False, False]  # fmt: skip
    assert night.changes_after(oslo("2026-11-28T23:00")) == oslo("2026-11-29T06:00")
    assert night.changes_after(oslo("2026-11-29T06:00")) == oslo("2026-12-05T22:00")


def test_from_midnight_until_midnight_is_the_whole_day() -> None:
    assert window("00:00", "00:00").changes_after(oslo("2026-11-24T12:00")) is None
    assert window("00:00", "00:00", days=("wed",)).changes_after(datetime(2026, 11, 24, 12, tzinfo=UTC)) == datetime(
        2026, 11, 25, tzinfo=UTC
    )


def test_a_time_that_the_clock_skips_opens_when_the_clock_jumps() -> None:
    early = window("02:30", "04:00", timezone="Europe/Oslo")  # 02:00 to 03:00 is missing on 29 March
    before = oslo("2026-03-29T01:30")
    assert not early.is_open(before)
    assert early.changes_after(before) == oslo("2026-03-29T03:00") == datetime(2026, 3, 29, 1, tzinfo=UTC)


def test_a_window_in_the_skipped_hour_stays_shut_that_day() -> None:
    early = window("02:10", "02:50", timezone="Europe/Oslo")
    assert early.changes_after(oslo("2026-03-29T00:00")) == oslo("2026-03-30T02:10")


def test_an_hour_that_the_clock_shows_twice_counts_twice() -> None:
    early = window("02:10", "02:50", timezone="Europe/Oslo")  # 02:00 to 03:00 comes twice on 25 October
    at, heard = oslo("2026-10-25T00:00"), []
    for _ in range(4):
        changed = early.changes_after(at)
        assert changed is not None
        heard.append(changed)
        at = changed
    assert heard == [oslo(f"2026-10-25T02:{m}", fold) for fold in (0, 1) for m in (10, 50)]


ZONES = [
    "UTC",
    "Europe/Oslo",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "Africa/Cairo",
]
times = st.times().map(lambda value: f"{value:%H:%M}")


@given(
    opens=times,
    closes=times,
    days=st.sets(st.sampled_from(["mon", "tue", "wed", "thu", "fri", "sat", "sun"]), min_size=1),
    zone=st.sampled_from(ZONES),
    at=st.datetimes(datetime(2011, 12, 20), datetime(2027, 12, 31))
    | st.datetimes(datetime(2026, 3, 28), datetime(2026, 4, 6))
    | st.datetimes(datetime(2026, 10, 24), datetime(2026, 11, 3)),
    within=st.floats(0, 1),
)
def test_between_two_changes_nothing_changes_and_a_change_is_one(
    opens: str, closes: str, days: set[str], zone: str, at: datetime, within: float
) -> None:
    asked = window(opens, closes, days=sorted(days), timezone=zone)
    moment = at.replace(tzinfo=UTC)
    changes = asked.changes_after(moment)
    if changes is None:
        assert all(asked.is_open(moment + timedelta(hours=n)) for n in range(24 * 8))
        return
    assert changes > moment
    assert asked.is_open(changes) is not asked.is_open(moment)
    for between in (moment + (changes - moment) * within * 0.999, changes - timedelta(seconds=1)):
        assert asked.is_open(max(moment, between)) is asked.is_open(moment)


@pytest.mark.parametrize(
    ("given_", "field", "sentence"),
    [
        ({"from": "9", "until": "18:00"}, "from", "write a time such as"),
        ({"from": "09:00", "until": "24:00"}, "until", 'midnight is "00:00"'),
        ({"from": "09:00", "until": 1080}, "until", "in quotes"),
        ({"from": "09:00", "until": "18:00", "days": []}, "days", "one weekday at least"),
        ({"from": "09:00", "until": "18:00", "days": ["monday"]}, "days.0", "mon"),
        ({"from": "09:00", "until": "18:00", "timezone": "Oslo"}, "timezone", "no time zone 'Oslo'"),
    ],
)
def test_a_window_that_cant_be_is_refused_with_its_field(given_: dict[str, Any], field: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SendWindow.model_validate(given_)
    (problem,) = refused.value.errors()
    assert ".".join(map(str, problem["loc"])) == field
    assert sentence in problem["msg"]


def test_a_window_is_kept_as_it_was_written() -> None:
    asked = window("22:00", "06:30", days=("sun", "mon"), timezone="Europe/Oslo")
    assert asked.dump() == {"days": ["mon", "sun"], "from": "22:00", "until": "06:30", "timezone": "Europe/Oslo"}
    assert SendWindow.model_validate(asked.dump()) == asked


def test_a_window_on_the_recipients_clocks_is_a_window_in_each_zone() -> None:
    asked = window(timezone="Europe/Oslo", recipients_timezone=True)
    assert SendWindow.model_validate(asked.dump()) == asked
    assert (asked.zones, asked.in_zone(None)) == ("Europe/Oslo", asked)
    assert asked.in_zone("Asia/Tokyo").is_open(datetime(2026, 11, 24, 0, tzinfo=UTC))
    assert not asked.in_zone("Europe/Oslo").is_open(datetime(2026, 11, 24, 0, tzinfo=UTC))
    plain = window(timezone="Europe/Oslo")
    assert (plain.zones, plain.in_zone("Asia/Tokyo")) == (None, plain)
