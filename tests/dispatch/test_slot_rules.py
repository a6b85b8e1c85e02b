"""What a slot decides: tables of examples."""

from datetime import UTC, datetime

import pytest

from mailer_lib.dispatch.slot_rules import (
    SlotState,
    intent,
    next_rate,
    restart_after_s,
    wants_lease,
)
from mailer_lib.dispatch.zones import Zones
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import Control, SendState, ServerState

RUN = (SendState.RUNNING, Control.RUN, ServerState.ACTIVE)


@pytest.mark.parametrize(
    ("state", "control", "server", "expired", "may_take", "agent", "ending"),
    [
        (*RUN, False, True, Control.RUN, None),
        (SendState.RUNNING, Control.RUN, ServerState.WARMING, False, True, Control.RUN, None),
        (SendState.RUNNING, Control.PAUSE, ServerState.ACTIVE, False, False, Control.PAUSE, None),
        (SendState.RUNNING, Control.STOP, ServerState.ACTIVE, False, False, Control.STOP, SlotState.STOPPED),
        (SendState.RUNNING, Control.STOP, ServerState.ACTIVE, True, False, Control.STOP, SlotState.STOPPED),
        (SendState.FAILED, Control.RUN, ServerState.ACTIVE, False, False, Control.STOP, SlotState.STOPPED),
        (*RUN, True, False, Control.RUN, SlotState.EXPIRED),
        (SendState.RUNNING, Control.PAUSE, ServerState.ACTIVE, True, False, Control.RUN, SlotState.EXPIRED),
        (SendState.RUNNING, Control.RUN, ServerState.DRAINING, False, False, Control.RUN, SlotState.DRAINED),
        (SendState.RUNNING, Control.RUN, ServerState.STANDBY, False, False, Control.RUN, SlotState.IDLE),
        (SendState.RUNNING, Control.RUN, ServerState.VERIFYING, False, False, Control.RUN, SlotState.IDLE),
        (SendState.RUNNING, Control.STOP, ServerState.STANDBY, False, False, Control.STOP, SlotState.STOPPED),
        (SendState.RUNNING, Control.STOP, ServerState.FENCED, False, False, Control.PAUSE, SlotState.FENCED),
    ],
)
def test_what_the_operators_wishes_mean_for_a_slot(
    state: SendState,
    control: Control,
    server: ServerState,
    expired: bool,
    may_take: bool,
    agent: Control,
    ending: SlotState | None,
) -> None:
    wish = intent(state, control, server, expired=expired)
    assert (wish.may_take, wish.agent, wish.ending) == (may_take, agent, ending)
    assert bool(wish.reason) == (not may_take)


OFFICE = SendWindow.model_validate({"from": "09:00", "until": "18:00", "timezone": "Europe/Oslo"})


@pytest.mark.parametrize(
    ("hour_utc", "shut", "closes_at"),
    [
        (7, "waits until 2026-11-24 08:00 UTC: outside the send window", None),
        (8, None, "2026-11-24T16:59:59+00:00"),
        (17, "waits until 2026-11-25 08:00 UTC: outside the send window", None),
    ],
)
def test_outside_its_window_a_send_waits_and_inside_the_agent_knows_the_end(
    hour_utc: int, shut: str | None, closes_at: str | None
) -> None:
    at = datetime(2026, 11, 24, hour_utc, tzinfo=UTC)
    assert Zones.of(OFFICE, [None], at).why_shut() == shut
    end = Zones.of(OFFICE, [None], at).all_close_at
    assert (end.isoformat() if end else None) == closes_at
    wish = intent(*RUN, expired=False, window_shut=shut)
    assert (wish.may_take, wish.waits, wish.reason) == (shut is None, shut is not None, shut or "")


def test_a_pause_is_named_before_the_window_and_a_stop_or_an_expiry_takes_effect_outside_it() -> None:
    asked = (SendState.RUNNING, Control.PAUSE, ServerState.ACTIVE)
    assert intent(*asked, expired=False, window_shut="later").reason == "paused by an operator"
    assert intent(*RUN, expired=True, window_shut="later").ending is SlotState.EXPIRED
    stop = (SendState.RUNNING, Control.STOP, ServerState.ACTIVE)
    assert intent(*stop, expired=False, window_shut="later").ending is SlotState.STOPPED


def test_a_send_without_a_window_never_waits_for_one() -> None:
    at = datetime(2026, 11, 24, tzinfo=UTC)
    assert Zones.of(None, [None], at).why_shut() is None
    assert Zones.of(None, [None], at).all_close_at is None


@pytest.mark.parametrize(
    ("rate", "measured", "limit", "dry", "expected"),
    [
        (10.0, 0.0, None, True, 20.0),  # runs dry: twice as much
        (10.0, 8.0, None, False, 10.0),
        (100.0, 200.0, None, False, 240.0),
        (100.0, 20.0, None, False, 80.0),  # slower than thought: less, step by step
        (100.0, 200.0, 5.0, True, 5.0),  # never more than the limit lets through
    ],
)
def test_grants_follow_the_rate(rate: float, measured: float, limit: float | None, dry: bool, expected: float) -> None:
    assert next_rate(rate, measured, limit, dry=dry) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("grantable", "open_leases", "all_leases", "wanted"),
    [
        (0, 0, 0, True),
        (2000, 1, 1, False),  # enough at hand
        (500, 1, 1, True),  # before the old one runs dry
        (0, 2, 2, False),  # two at once
        (0, 0, 23, True),  # the others wait for retries only
        (0, 0, 24, False),
    ],
)
def test_the_next_lease_is_taken_before_the_old_one_runs_dry(
    grantable: int, open_leases: int, all_leases: int, wanted: bool
) -> None:
    assert wants_lease(grantable, open_leases, all_leases, rate=100.0, grant_s=10.0) is wanted


def test_a_dying_agent_is_started_more_and_more_slowly() -> None:
    assert [restart_after_s(n) for n in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
