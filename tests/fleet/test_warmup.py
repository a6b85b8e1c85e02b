"""Warm-up: the ramp of a new address, whose it is, and what day it is."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.fleet import pools, servers, warmup
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.warmup import DEFAULT_RAMP, check_ramp, day_of, quota
from mailer_lib.terms import ServerState
from tests.conftest import Ran

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def server(engine: Engine) -> str:
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        spec = servers.make_spec(name="mta-1", pool="main", helo_name="mta1.fjordfern.example", state="warming")
        servers.add(connection, spec, actor="test")
    return "mta-1"


def test_the_default_ramp_is_one_that_an_operator_could_set() -> None:
    assert check_ramp(DEFAULT_RAMP) == DEFAULT_RAMP


@pytest.mark.parametrize(
    ("ramp", "sentence"),
    [
        ((), "1 to 366 days, not 0"),
        ((50, 0), "day 2 of the ramp: a quota is at least 1"),
        ((50, 100, 80), "day 3 of the ramp has 80, less than the 100 of the day before"),
        ((1,) * 367, "1 to 366 days, not 367"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused_with_its_day(ramp: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(FleetError, match=sentence):
        check_ramp(ramp)


@pytest.mark.parametrize(
    ("warming_from", "at", "day"),
    [
        (None, NOON, 1),  # nothing was sent yet
        (NOON, NOON, 1),
        (
            NOON.replace(hour=23, minute=59),
            NOON.replace(hour=0) + timedelta(days=1),
            2,
        ),  # days are calendar days in UTC
        (NOON, NOON + timedelta(days=13), 14),
        (NOON, NOON - timedelta(days=3), 1),  # a clock that was set back
    ],
)
def test_days_are_counted_from_the_first_that_something_was_sent(
    warming_from: datetime | None, at: datetime, day: int
) -> None:
    assert day_of(warming_from, at) == day


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60), st.integers(1, 100))
def test_after_its_last_day_a_ramp_bounds_nothing(quotas: list[int], day: int) -> None:
    ramp = check_ramp(sorted(quotas))
    assert quota(ramp, day) == (ramp[day - 1] if day <= len(ramp) else None)


def test_a_server_follows_its_own_ramp_before_its_pools_before_the_default(engine: Engine, server: str) -> None:
    with write(engine) as connection:
        assert warmup.ramp_of_server(connection, server) == (DEFAULT_RAMP, "the default")
        warmup.set_pool_ramp(connection, "main", (10, 20), actor="ann")
        assert warmup.ramp_of_server(connection, server) == ((10, 20), "of the sending pool main")
        warmup.set_server_ramp(connection, server, (7,), actor="ann")
        assert warmup.ramp_of_server(connection, server) == ((7,), "of mta-1")
        warmup.set_server_ramp(connection, server, None, actor="ann")
        warmup.set_pool_ramp(connection, "main", None, actor="ann")
        assert warmup.ramp_of_server(connection, server) == (DEFAULT_RAMP, "the default")


def test_who_begins_to_warm_up_again_begins_with_the_first_day(engine: Engine, server: str) -> None:
    with write(engine) as connection:
        connection.execute(update(dispatch_servers).values(warming_from=NOON))
        servers.set_state(connection, server, ServerState.ACTIVE, actor="ann")
        assert servers.get(connection, server).warming_from == NOON
        servers.set_state(connection, server, ServerState.WARMING, actor="ann")
    with read(engine) as connection:
        assert servers.get(connection, server).warming_from is None


def test_ramps_are_set_and_shown_on_the_command_line(server: str, mailfleet: Callable[..., Ran]) -> None:
    shown = mailfleet("server", "warmup", "mta-1").stdout
    assert "ramp (the default): 50, 100, 500, 1,000" in shown
    assert "day 1 of 14: 0 of 50 are granted today" in shown
    assert "ramp of main (its own): 10, 20" in mailfleet("pool", "warmup", "main", "10", "20").stdout
    assert "ramp (of mta-1): 30, 40, 50" in mailfleet("server", "warmup", "mta-1", "30", "40", "50").stdout
    assert "of the sending pool main): 10, 20" in mailfleet("server", "warmup", "mta-1", "default").stdout
    refused = mailfleet("server", "warmup", "mta-1", "30", "many")
    assert refused.code == 1
    assert "day 2 of the ramp: 'many' isn't a number" in refused.stderr
    mailfleet("server", "state", "mta-1", "active")
    assert "mta-1 is active: no quota holds" in mailfleet("server", "warmup", "mta-1").stdout
