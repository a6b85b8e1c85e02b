"""A slot with a real agent and a real sink: everything granted is sent once, whoever dies in between."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from mailer_lib.contacts.consent import unsubscribe
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, rollups_hourly, sends, suppressions
from mailer_lib.dispatch import agent_keeper, control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.central_ledger import write_off
from mailer_lib.dispatch.channel import LocalChannel
from mailer_lib.dispatch.lease import extend_grant, hand_back, take_lease
from mailer_lib.dispatch.loss import lose_server
from mailer_lib.dispatch.slot import SlotProgress, SlotState, run_slot
from mailer_lib.dispatch.slot_report import worth_a_look
from mailer_lib.identity import IdentityKey
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Outcome, SuppressionReason
from tests.dispatch.real import Running, equip, job_folder, ready_send, received
from tests.dispatch.world import PROVIDERS, World


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


def test_a_slot_sends_every_row_once_and_the_books_balance(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [30, 25, 5])
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert (report.state, report.injected) == (SlotState.DONE, 60)
    books = balance(world.engine, world.settings, send_id)
    assert books.line() == (
        "frozen=60 injected=60 rejected=0 suppressed=0 failed=0 expired=0 cancelled=0 unknown=0 duplicates=0"
    )
    assert received(sink) == 60
    assert not LocalChannel(job_folder(world, world.slot())).is_alive()
    assert not (job_folder(world, world.slot()) / "secrets.json").exists()
    assert not list(job_folder(world, world.slot()).rglob("*.parquet"))
    again = run_slot(world.engine, world.settings, send_id, world.slot())
    assert again.state is SlotState.DONE
    assert received(sink) == 60
    with read(world.engine) as connection:
        rows = connection.execute(select(rollups_hourly)).all()
    assert sum(row.count for row in rows if row.metric == "injected") == 60
    assert {row.provider for row in rows} == set(PROVIDERS)
    assert {row.variant for row in rows} == {0, 1}


def test_slots_of_two_servers_share_a_send(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [20] * 8)
    slots = [Running(world, send_id, world.slot(n)) for n in range(2)]
    reports = [slot.report() for slot in slots]
    for number, report in enumerate(reports):
        if report.state is SlotState.IDLE:  # the other still had the last rows
            assert worth_a_look(world.engine, send_id)
            reports[number] = run_slot(world.engine, world.settings, send_id, world.slot(number))
    assert [report.state for report in reports] == [SlotState.DONE] * 2
    assert sum(report.injected for report in reports) == received(sink) == 160
    assert balance(world.engine, world.settings, send_id).balanced


def test_who_left_after_the_snapshot_gets_nothing(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [12])
    gone = world.settings.identity().address_hash("p3@other.example")
    with write(world.engine) as connection:
        unsubscribe(connection, address_hash=gone, list_id=world.list_id, method="one-click", source="test", at=now())
    run_slot(world.engine, world.settings, send_id, world.slot())
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.SUPPRESSED]) == (11, 1)
    assert books.by_provider["other"] == {Outcome.SUPPRESSED: 1, Outcome.INJECTED: 2}


def test_a_mailbox_that_does_not_exist_is_suppressed_and_a_refusal_for_policy_is_not(
    world: World, sink: SinkProcess
) -> None:
    sink.set_rules(
        'domains: {gmail.example: {unknown: {pattern: "^p0$"}}, '
        "yahoo.example: {refuse: {code: 550, enhanced: 5.7.1, text: Blocked for policy reasons}}}"
    )
    equip(world, sink)
    send_id = ready_send(world, [8])
    run_slot(world.engine, world.settings, send_id, world.slot())
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.REJECTED]) == (5, 3)
    with read(world.engine) as connection:
        rows = connection.execute(select(suppressions)).all()
    assert [(bytes(row.address_hash), row.reason, row.list_id) for row in rows] == [
        (world.settings.identity().address_hash("p0@gmail.example"), SuppressionReason.HARD_BOUNCE, 0)
    ]
    assert rows[0].source == "send:spring-sale#1"


def test_a_deferred_row_is_tried_again_and_counted(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    sink.set_rules(
        "domains: {outlook.example: {defer: {code: 451, enhanced: 4.7.1, text: Greylisted, first: 1, share: 1.0}}}"
    )
    equip(world, sink)
    send_id = ready_send(world, [8])
    run_slot(world.engine, world.settings, send_id, world.slot())
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books.deferrals) == (8, 2)


def test_pause_holds_and_resume_goes_on_where_it_was(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [200], pace_per_s=40.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    control.pause(world.engine, "spring-sale#1", "ann")
    slot.until(lambda said: said.state is SlotState.PAUSED and said.per_s == 0)
    held = received(sink)
    assert 0 < held < 200
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    control.resume(world.engine, "spring-sale#1", "ann")
    assert slot.report().state is SlotState.DONE
    assert received(sink) == 200
    assert balance(world.engine, world.settings, send_id).balanced


def test_a_slot_says_paused_only_once_nothing_is_on_its_way(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    sink.set_rules("domains: {gmail.example: {slow: {after_dot_ms: 2500}}}")  # longer than a slot's tick
    equip(world, sink)
    send_id = ready_send(world, [200], pace_per_s=40.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.in_flight > 0)
    control.pause(world.engine, "spring-sale#1", "ann")
    slot.until(lambda said: said.state is SlotState.PAUSED)
    held = received(sink)
    time.sleep(3)
    assert received(sink) == held
    control.stop(world.engine, "spring-sale#1", "ann")
    assert slot.report().state is SlotState.STOPPED


def test_stop_cancels_what_was_not_sent(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [100, 100], pace_per_s=40.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    control.stop(world.engine, "spring-sale#1", "ann")
    assert slot.report().state is SlotState.STOPPED
    write_off(world.engine, world.settings.storage, send_id, Outcome.CANCELLED, "stopped")
    books = balance(world.engine, world.settings, send_id)
    assert books.balanced
    assert books[Outcome.INJECTED] == received(sink) > 0
    assert books[Outcome.INJECTED] + books[Outcome.CANCELLED] == 200


def test_an_expired_send_hands_nothing_more_over(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [50], expires_at=now())
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert report.state is SlotState.EXPIRED
    assert received(sink) == 0


def test_a_killed_agent_is_started_again_and_nobody_gets_it_twice(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [400], pace_per_s=60.0)
    slot = Running(world, send_id, world.slot())
    channel = LocalChannel(job_folder(world, world.slot()))
    pids: set[int] = set()

    def at_work(said: SlotProgress, settled: int) -> bool:
        """So much is settled, and status.json is that of an agent which has not been killed yet."""
        status = channel.status()
        return said.settled >= settled and status is not None and status.pid not in pids

    for settled in (10, 50):
        slot.until(lambda said, wanted=settled: at_work(said, wanted))
        status = channel.status()
        assert status is not None
        pids.add(status.pid)
        psutil.Process(status.pid).kill()
    report = slot.report()
    assert report.state is SlotState.DONE
    assert len(pids) == 2
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.UNKNOWN], books.duplicates) == (400, 0, 0)
    assert received(sink) == 400


def test_a_slot_that_comes_back_sends_what_it_was_granted_after_others_went_on_with_the_shard(
    world: World, sink: SinkProcess
) -> None:
    """Its lease can't grow any more, under an epoch that is over; it must not stand still because of that."""
    equip(world, sink)
    send_id = ready_send(world, [60])
    mine, other = world.slot(0), world.slot(1)
    lease = take_lease(world.engine, send_id, mine.server_id, mine.slot)
    assert lease is not None
    extend_grant(world.engine, lease, 20)
    assert hand_back(world.engine, lease)
    assert run_slot(world.engine, world.settings, send_id, other).state is SlotState.STRANDED
    assert received(sink) == 40
    assert Running(world, send_id, mine).report().state is SlotState.DONE
    assert received(sink) == 60
    assert balance(world.engine, world.settings, send_id)[Outcome.INJECTED] == 60


def test_a_slot_that_is_asked_to_stop_ends_its_agent_and_another_call_goes_on(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [80, 80], pace_per_s=60.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    slot.stop.set()
    assert slot.report().state is SlotState.LEFT
    assert not LocalChannel(job_folder(world, world.slot())).is_alive()
    assert received(sink) < 160
    with write(world.engine) as connection:
        connection.execute(update(sends).values(pace_per_s=None))
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    assert received(sink) == 160
    assert balance(world.engine, world.settings, send_id).balanced


def test_an_agent_outlives_its_slot_and_the_next_call_attaches_to_it(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [400], pace_per_s=20.0)
    slot = Running(world, send_id, world.slot(), stop_agent=False)
    slot.until(lambda said: said.settled > 0)
    slot.stop.set()
    assert slot.report().state is SlotState.LEFT
    channel = LocalChannel(job_folder(world, world.slot()))
    status = channel.status()
    assert channel.is_alive() and status is not None
    again = Running(world, send_id, world.slot())
    again.until(lambda said: said.state in (SlotState.SENDING, SlotState.WAITING))
    now_there = channel.status()
    assert now_there is not None and now_there.pid == status.pid
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    assert again.report().state is SlotState.DONE
    assert received(sink) == 400
    assert balance(world.engine, world.settings, send_id).balanced


def test_an_agent_that_dies_at_once_is_given_up_with_its_last_words(
    sqlite_world: World, sink: SinkProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    monkeypatch.setattr(agent_keeper, "MAX_FAILURES", 2)
    equip(world, sink)
    send_id = ready_send(world, [5])
    path = world.settings.storage / "snapshots/spring-sale/1/1/shard=0000/part-0.parquet"
    path.write_bytes(path.read_bytes() + b"damaged")
    report = run_slot(world.engine, world.settings, send_id, world.slot())
    assert report.state is SlotState.FAILED
    assert "ended 2 times in a row" in report.reason
    assert "isn't the shard that was granted" in report.reason
    assert "@" not in report.reason.replace("#1@local", "")


def test_losing_a_server_gives_its_rows_to_another_and_the_rest_is_unknown(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [300], pace_per_s=40.0)
    slot = Running(world, send_id, world.slot(0), stop_agent=False)
    slot.until(lambda said: said.settled >= 10)
    slot.stop.set()
    slot.report()
    (loss,) = lose_server(world.engine, world.settings, "local-1", "ann")
    sent_by_first = received(sink)
    with write(world.engine) as connection:
        connection.execute(update(sends).values(pace_per_s=None))
    assert run_slot(world.engine, world.settings, send_id, world.slot(0)).state is SlotState.FENCED
    assert run_slot(world.engine, world.settings, send_id, world.slot(1)).state is SlotState.DONE
    books = balance(world.engine, world.settings, send_id)
    assert books.balanced
    assert books[Outcome.UNKNOWN] == loss.unknown > 0
    assert books[Outcome.INJECTED] == received(sink) == 300 - loss.unknown
    assert sent_by_first >= 10


def test_a_slot_that_ended_with_rows_in_hand_does_not_keep_the_others_waiting_for_ever(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [200, 20], pace_per_s=20.0)
    first = Running(world, send_id, world.slot(0))
    first.until(lambda said: said.settled > 0)
    first.stop.set()
    assert first.report().state is SlotState.LEFT
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    second = run_slot(world.engine, world.settings, send_id, world.slot(1), patience=timedelta(0))
    assert second.state is SlotState.STRANDED
    assert "local-1.0, which ended; trigger the send again" in second.reason
    assert second.injected > 0  # it took what the first had not been granted
    assert run_slot(world.engine, world.settings, send_id, world.slot(0)).state is SlotState.DONE
    assert received(sink) == 220
    assert balance(world.engine, world.settings, send_id).balanced


def test_an_idle_slot_says_who_has_the_rest(sqlite_world: World, sink: SinkProcess) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [100], pace_per_s=20.0)
    first = Running(world, send_id, world.slot(0))
    first.until(lambda said: said.settled > 0)
    idle = run_slot(world.engine, world.settings, send_id, world.slot(1))
    assert idle.state is SlotState.IDLE
    assert "local-1.0" in idle.reason
    assert not worth_a_look(world.engine, send_id)
    control.stop(world.engine, "spring-sale#1", "ann")
    assert worth_a_look(world.engine, send_id)
    first.report()


def test_the_job_folder_holds_the_keys_of_this_send_only_and_no_address_in_logs(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [100], pace_per_s=20.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    slot.stop.set()
    slot.report()
    assert (job_folder(world, world.slot()) / "secrets.json").stat().st_mode & 0o777 == 0o600
    identity: IdentityKey = world.settings.identity()
    for path in job_folder(world, world.slot()).rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert identity.secret not in data and identity.secret.hex().encode() not in data
            assert world.settings.tokens().hex().encode() not in data
            if path.suffix == ".log" or path.suffix == ".ledger":
                assert b"p1@" not in data


def test_a_provider_that_refuses_everything_is_left_alone_and_said_to_be(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    sink.set_rules("domains: {gmail.example: {refuse: {code: 550, enhanced: 5.7.1, text: Blocked for policy reasons}}}")
    equip(world, sink)
    send_id = ready_send(world, [400])
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: "gmail is left alone" in said.reason and said.per_s == 0)
    control.stop(world.engine, "spring-sale#1", "ann")
    slot.report()
    books = balance(world.engine, world.settings, send_id)
    gmail = 100  # of every four
    assert books[Outcome.INJECTED] == 400 - gmail
    assert 40 <= books[Outcome.REJECTED] <= 60
    assert books[Outcome.CANCELLED] == gmail - books[Outcome.REJECTED]
    with read(world.engine) as connection:
        (held,) = connection.execute(select(audit_log).where(audit_log.c.action == "provider.held")).all()
    assert held.detail["provider"] == "gmail"
    assert "550 5.7.1 Blocked for policy reasons" in held.detail["reason"]
