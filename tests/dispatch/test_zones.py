"""Send windows on the recipients' own clocks: who is asleep waits, the others go on."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import leases, sends, shards
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.forecast import Capacity, ServerCapacity, forecast, zones_left
from mailer_lib.dispatch.sends import get_send
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.slot_report import worth_a_look
from mailer_lib.dispatch.zones import LONG_AGO, Zones
from mailer_lib.message.send_window import SendWindow
from mailer_lib.sink.process import SinkProcess, start
from tests.dispatch.real import Running, equip, ready_send, received
from tests.dispatch.world import World

OSLO, TOKYO, NEW_YORK = "Europe/Oslo", "Asia/Tokyo", "America/New_York"
OFFICE = SendWindow.model_validate(
    {"from": "09:00", "until": "18:00", "timezone": OSLO, "recipients_timezone": True}
)  # fmt: skip


def at(hour: int) -> datetime:
    return datetime(2026, 11, 24, hour, tzinfo=UTC)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


@pytest.fixture(autouse=True)
def no_agent_stays(settings: object) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mailer_lib.agent" in command and str(getattr(settings, "home", "")) in " ".join(command):
            process.kill()


# --- decided ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hour_utc", "open_zones"),
    [
        (0, {TOKYO}),  # 09:00 there
        (7, {TOKYO}),
        (8, {TOKYO, OSLO, None}),
        (9, {OSLO, None}),
        (14, {OSLO, NEW_YORK, None}),
        (18, {NEW_YORK}),
        (23, set()),
    ],
)
def test_each_zone_has_its_own_clock_and_who_has_none_the_windows(hour_utc: int, open_zones: set[str | None]) -> None:
    zones = Zones.of(OFFICE, [OSLO, TOKYO, NEW_YORK, None], at(hour_utc))
    assert zones.open == open_zones
    assert (zones.why_shut() is None) == bool(open_zones)


def test_a_send_waits_as_a_whole_only_while_every_zone_that_is_left_is_shut() -> None:
    assert Zones.of(OFFICE, [OSLO, TOKYO], at(2)).why_shut() is None
    assert Zones.of(OFFICE, [OSLO], at(2)).why_shut() == (
        "waits until 2026-11-24 08:00 UTC: outside the send window of the time zones that are left"
    )


def test_an_agent_is_told_when_to_stop_with_each_zone() -> None:
    zones = Zones.of(OFFICE, [OSLO, TOKYO], at(8))
    assert zones.closes_at(TOKYO) == at(9) - timedelta(seconds=1)
    assert zones.closes_at(OSLO) == at(17) - timedelta(seconds=1)
    assert zones.closes_at(NEW_YORK) == LONG_AGO
    assert zones.all_close_at is None


def test_a_window_with_one_clock_asks_no_recipient() -> None:
    window = SendWindow.model_validate({"from": "09:00", "until": "18:00", "timezone": OSLO})
    zones = Zones.of(window, [TOKYO], at(8))
    assert zones.open == {TOKYO}
    assert zones.all_close_at == at(17) - timedelta(seconds=1)


def test_the_forecast_waits_for_the_last_zone() -> None:
    capacity = Capacity((ServerCapacity(10.0),), {}, window=OFFICE)
    expected = forecast({"gmail": 7200}, capacity, at(8), {OSLO: 1, NEW_YORK: 1})
    assert expected.total_s == pytest.approx(6 * 3600 + 360, abs=2)  # New York opens at 14:00 UTC
    assert expected.by_provider[0].bound_by == "send window"
    together = forecast({"gmail": 7200}, capacity, at(14), {OSLO: 1, NEW_YORK: 1})
    assert together.total_s == pytest.approx(720, abs=2)


# --- in a slot --------------------------------------------------------------------------------------------------------


def zone_whose_noon_is(away: timedelta) -> str:
    """A zone on whose clock it is noon so long from now."""
    offset = round(((now() + away) - now().replace(hour=12, minute=0)).total_seconds() / 3600) % 24
    hours = offset if offset <= 12 else offset - 24
    return f"Etc/GMT{hours:+d}" if hours else "Etc/GMT"  # Etc/GMT+5 is five hours behind UTC


AWAKE, ASLEEP = timedelta(0), timedelta(hours=12)
NOONTIME = {"from": "10:00", "until": "14:00", "timezone": "UTC", "recipients_timezone": True}


def set_zones(world: World, send_id: int, zones: list[str]) -> None:
    with write(world.engine) as connection:
        for number, zone in enumerate(zones):
            mine = (shards.c.send_id == send_id) & (shards.c.number == number)
            connection.execute(update(shards).where(mine).values(zone=zone))


def test_rows_of_zones_whose_window_is_shut_wait_and_the_others_go(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [30, 20, 10], send_window=NOONTIME)
    awake, asleep = zone_whose_noon_is(AWAKE), zone_whose_noon_is(ASLEEP)
    set_zones(world, send_id, [asleep, awake, awake])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, received(sink)) == (SlotState.IDLE, 30)
    assert "outside the send window of the time zones that are left" in report.reason
    assert not worth_a_look(world.engine, send_id, world.servers[0])
    with read(world.engine) as connection:
        assert zones_left(connection, get_send(connection, send_id)) == {asleep: 30}
    set_zones(world, send_id, [awake])  # its morning has come
    assert worth_a_look(world.engine, send_id, world.servers[0])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, received(sink)) == (SlotState.DONE, 60)
    assert balance(world.engine, world.settings, send_id).balanced


def test_a_zone_that_closes_in_mid_shard_stops_its_rows_and_no_others(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [200, 200], send_window=NOONTIME, pace_per_s=40.0)
    awake, asleep = zone_whose_noon_is(AWAKE), zone_whose_noon_is(ASLEEP)
    set_zones(world, send_id, [awake, awake])
    running = Running(world, send_id, world.slot())
    running.until(lambda progress: progress.settled >= 20)
    set_zones(world, send_id, [asleep])
    report = running.report()
    assert report.state is SlotState.IDLE
    with read(world.engine) as connection:
        by_shard = connection.execute(
            select(shards.c.number, leases.c.injected, leases.c.granted_through)
            .join_from(leases, shards)
            .where(leases.c.send_id == send_id)
        ).all()
    of_first = sum(row.injected for row in by_shard if row.number == 0)
    assert 20 <= of_first < 200
    assert sum(row.injected for row in by_shard if row.number == 1) == 200
    set_zones(world, send_id, [awake])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    assert received(sink) == 400
    assert balance(world.engine, world.settings, send_id).balanced


def test_a_slot_with_granted_rows_rests_outside_the_window_and_comes_back(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    open_now = {"from": "00:00", "until": "00:00", "timezone": "UTC"}
    send_id = ready_send(world, [1000], send_window=open_now, pace_per_s=30.0)
    running = Running(world, send_id, world.slot())
    running.until(lambda progress: progress.settled >= 20)
    later = now() + timedelta(hours=2)
    shut = {"from": f"{later:%H:%M}", "until": f"{later + timedelta(hours=1):%H:%M}", "timezone": "UTC"}
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(send_window=shut))
    report = running.report()
    assert report.state is SlotState.IDLE
    assert "outside the send window" in report.reason
    with read(world.engine) as connection:
        lease = connection.execute(select(leases).where(leases.c.send_id == send_id)).one()
    assert lease.state == "active"
    assert lease.injected < lease.granted_through < 1000  # rows are granted and not sent
    assert not worth_a_look(world.engine, send_id, world.servers[0])
    with write(world.engine) as connection:
        connection.execute(
            update(sends).where(sends.c.id == send_id).values(send_window=open_now, pace_per_s=None)
        )  # fmt: skip
    assert worth_a_look(world.engine, send_id, world.servers[0])
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    assert received(sink) == 1000
    assert balance(world.engine, world.settings, send_id).balanced
