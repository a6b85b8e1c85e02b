"""The report's comparison with the forecast that was approved."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mailer_lib.database.engine import read
from mailer_lib.dispatch.books import Books
from mailer_lib.dispatch.sends import SendRecord, get_send
from mailer_lib.dispatch.summary import against_forecast
from tests.dispatch.world import World

STARTED = datetime(2026, 11, 24, 9, tzinfo=UTC)
FORECAST = {
    "total_s": None,
    "per_s": 1.0,
    "by_provider": [
        {"provider": "gmail", "messages": 9, "done_after_s": None, "bound_by": "warm-up quota of mta-1, day 1"},
        {"provider": "yahoo", "messages": 5, "done_after_s": 200.0, "bound_by": "limit of yahoo"},
        {"provider": "other", "messages": 3, "done_after_s": 61.4, "bound_by": "capacity"},
    ],
}


@pytest.fixture
def sent(sqlite_world: World) -> SendRecord:
    send_id = sqlite_world.send(started_at=STARTED, forecast=FORECAST)
    with read(sqlite_world.engine) as connection:
        return get_send(connection, send_id)


def test_each_providers_time_stands_beside_its_forecast_with_what_was_to_bind_it(sent: SendRecord) -> None:
    last = {"gmail": STARTED + timedelta(hours=26), "other": STARTED + timedelta(seconds=75)}
    assert against_forecast(sent, Books(sent.ref, phases=1, last_injected_at=last)) == [
        "| mailbox provider | forecast | took | bound by (forecast) |",
        "| --- | ---: | ---: | --- |",
        "| gmail | never | 1 day, 2:00:00 | warm-up quota of mta-1, day 1 |",
        "| yahoo | 0:03:20 | nothing handed over | limit of yahoo |",
        "| other | 0:01:01 | 0:01:15 | capacity |",
        "",
    ]


def test_a_send_of_several_phases_or_without_a_forecast_has_no_comparison(sent: SendRecord) -> None:
    assert against_forecast(sent, Books(sent.ref, phases=2)) == []
    assert against_forecast(replace(sent, forecast=None), Books(sent.ref, phases=1)) == []
