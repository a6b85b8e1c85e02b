"""What an operator says, and who leaves, is in force within two seconds and two messages on a connection.

A real agent hands over to a real sink by several connections. The clock starts when the word is in the job folder and
ends with the last message that the sink's log has as accepted against it.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from mailer_lib.agent.job import Status
from mailer_lib.contacts.consent import suppress
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.dispatch import control
from mailer_lib.dispatch.channel import LocalChannel
from mailer_lib.dispatch.slot import SlotRunner, View
from mailer_lib.identity import message_key
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Control, SuppressionReason
from tests.dispatch.real import Running, equip, job_folder, ready_send
from tests.dispatch.world import PROVIDERS, World

SEND = "spring-sale#1"
CONNECTIONS = 4
PACE_PER_S = 150.0
ROWS = 4000  # 27 s at that pace
WITHIN_S = 2.0
ON_A_CONNECTION = 2
ACCEPTED = re.compile(r"^(\S+ \S+) \[\d+\] \S+ <= .* id=<?([0-9a-f]{32})", re.MULTILINE)


@pytest.fixture(autouse=True)
def no_agent_stays(settings: object) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mailer_lib.agent" in command and str(getattr(settings, "home", "")) in " ".join(command):
            process.kill()


@dataclass
class Sending:
    """A send under way, and what the sink accepted of it."""

    world: World
    sink: SinkProcess
    slot: Running

    @property
    def folder(self) -> Path:
        return job_folder(self.world, self.world.slot())

    def accepted(self) -> list[tuple[float, str]]:
        """(Unix seconds, message key in hex), in order."""
        return [
            (datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S.%f").timestamp(), found[2])  # local time
            for found in ACCEPTED.finditer(self.sink.mainlog.read_text())
        ]

    def after(self, at: float) -> list[str]:
        """Keys of what was accepted after that moment, up to now."""
        return [key for accepted_at, key in self.accepted() if accepted_at > at]

    def until(self, met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not met():
            assert time.monotonic() < deadline, f"in a minute it didn't come true: {what}"
            time.sleep(0.01)

    def told(self, file: str, word: Callable[[], object]) -> float:
        """When what was said reached the job folder, in which ``file`` is changed by it."""
        path = self.folder / file
        before = path.stat().st_mtime
        word()
        self.until(lambda: path.stat().st_mtime > before, f"{file} changes")
        return path.stat().st_mtime

    def known(self, met: Callable[[Status], bool]) -> float:
        """When the agent's status.json said so for the first time."""
        found: list[float] = []

        def look() -> bool:
            status = LocalChannel(self.folder).status()
            if status is not None and met(status):
                found.append(status.at)
            return bool(found)

        self.until(look, "the agent knows of it")
        return found[0]


@pytest.fixture(params=[0, 700], ids=["a quick MTA", "an MTA that takes 700 ms"])
def sending(request: pytest.FixtureRequest, sqlite_world: World, tmp_path: Path) -> Iterator[Sending]:
    world = sqlite_world
    rules = f'domains: {{"*": {{slow: {{after_dot_ms: {request.param}}}}}}}'
    with start(tmp_path / "sinks", fsync=False, rules=rules) as sink:
        equip(world, sink)
        with write(world.engine) as connection:
            connection.execute(update(dispatch_servers).values(connections=CONNECTIONS))
        send_id = ready_send(world, [ROWS], pace_per_s=PACE_PER_S)
        running = Sending(world, sink, Running(world, send_id, world.slot()))
        running.until(lambda: len(running.accepted()) >= 3 * CONNECTIONS, "messages are accepted")
        yield running
        running.slot.stop.set()
        running.slot.thread.join(60)


def test_a_pause_is_in_force_in_time_and_so_is_its_end(sending: Sending) -> None:
    engine = sending.world.engine
    at = sending.told("control.json", lambda: control.pause(engine, SEND, "ann"))
    known_at = sending.known(lambda status: status.state == "paused")
    time.sleep(max(0.0, at + WITHIN_S + 2 - time.time()))
    assert sending.after(at + WITHIN_S) == []
    assert len(sending.after(known_at)) <= ON_A_CONNECTION * CONNECTIONS
    at = sending.told("control.json", lambda: control.resume(engine, SEND, "ann"))
    sending.until(lambda: bool(sending.after(at)), "it goes on")
    assert min(t for t, _ in sending.accepted() if t > at) <= at + WITHIN_S


def test_a_stop_is_in_force_in_time(sending: Sending) -> None:
    at = sending.told("control.json", lambda: control.stop(sending.world.engine, SEND, "ann"))
    sending.slot.report()
    time.sleep(max(0.0, at + WITHIN_S + 1 - time.time()))
    assert sending.after(at + WITHIN_S) == []
    assert len(sending.accepted()) < ROWS


def test_another_pace_is_in_force_in_time(sending: Sending) -> None:
    at = sending.told("control.json", lambda: control.set_pace(sending.world.engine, SEND, 2.0, "ann"))
    time.sleep(max(0.0, at + WITHIN_S + 4 - time.time()))
    assert 1 <= len(sending.after(at + WITHIN_S)) <= 2 * 4 + 1 + ON_A_CONNECTION


def test_who_leaves_gets_nothing_more_in_time(sending: Sending) -> None:
    identity = sending.world.settings.identity()
    hashes = [identity.address_hash(f"p{n}@{PROVIDERS[n % len(PROVIDERS)]}.example") for n in range(1, ROWS, 8)]

    def leave() -> None:
        with write(sending.world.engine) as connection:
            for each in hashes:
                suppress(
                    connection, address_hash=each, reason=SuppressionReason.COMPLAINED, source="test", at=now()
                )  # fmt: skip

    at = sending.told("suppressions.log", leave)
    known_at = sending.known(lambda status: status.suppressions_read >= len(hashes))
    time.sleep(max(0.0, at + WITHIN_S + 1 - time.time()))
    send_key = identity.send_key("spring-sale", "1")
    left = {message_key(send_key, each).hex() for each in hashes}
    assert left.isdisjoint(sending.after(at + WITHIN_S))
    assert len(left.intersection(sending.after(known_at))) <= ON_A_CONNECTION * CONNECTIONS
    assert sending.after(at + WITHIN_S)  # the others go on


@pytest.mark.parametrize("sending", [0], indirect=True)
def test_a_word_reaches_the_agent_before_ledgers_are_read(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one took 3 s on a busy disk."""
    paused: list[bool] = []
    told: list[Control] = []
    look, fetch = SlotRunner._look, LocalChannel.fetch_ledger

    def noted(self: SlotRunner) -> View:
        view = look(self)
        paused.append(view.wish.agent is Control.PAUSE)
        return view

    def slow(self: LocalChannel, *args: Any) -> bytes:
        if paused and paused[-1] and not told:
            written = self.read_control()
            assert written is not None
            told.append(written.control)
        return fetch(self, *args)

    monkeypatch.setattr(SlotRunner, "_look", noted)
    monkeypatch.setattr(LocalChannel, "fetch_ledger", slow)
    control.pause(sending.world.engine, SEND, "ann")
    sending.until(lambda: bool(told), "a ledger is read")
    assert told == [Control.PAUSE]
