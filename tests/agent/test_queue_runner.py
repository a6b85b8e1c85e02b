"""Which queues are run when, and a real Exim whose queues are run."""

import os
import time
from pathlib import Path

import pytest

from mailer_lib.agent.queue_runner import FEW, QueueRunner, Waiting, to_start


@pytest.mark.parametrize(
    ("waiting", "running", "runners", "starts"),
    [
        ([], {}, 4, []),
        ([Waiting("s1", 1)], {}, 4, ["s1"]),  # one message needs no second runner
        ([Waiting("s1", 4 * FEW)], {}, 4, ["s1", "s1", "s1", "s1"]),
        ([Waiting("s1", 4 * FEW)], {"s1": 3}, 4, ["s1"]),
        ([Waiting("s1", 4 * FEW)], {"s1": 4}, 4, []),
        ([Waiting("s1", 9 * FEW), Waiting("s2", 9 * FEW)], {}, 4, ["s1", "s2", "s1", "s2"]),
        ([Waiting("s2", 1)], {"s1": 4}, 4, ["s2"]),  # a small send doesn't wait for a large one
        ([Waiting("s2", 9 * FEW)], {"s1": 4}, 4, ["s2"]),
    ],
)
def test_who_gets_a_runner(waiting: list[Waiting], running: dict[str, int], runners: int, starts: list[str]) -> None:
    assert to_start(waiting, running, runners) == starts


class Spool:
    """A spool as Exim lays it out, and an Exim that notes how it was called and takes what it was called for."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.calls = folder / "spool", folder / "calls"
        (self.spool / "input").mkdir(parents=True)
        command = folder / "exim"
        command.write_text(f'#!/bin/sh\necho "$1" >> {self.calls}\n')
        command.chmod(0o755)
        self.runner = QueueRunner(self.spool, runners=2, retry_scan_s=60, command=[str(command)])

    def put(self, queue: str, name: str) -> None:
        folder = self.spool / queue / "input" / name[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-H").touch()

    def look(self, now_s: float) -> list[str]:
        """The calls that this look makes."""
        self.calls.write_text("")
        self.runner.look(now_s)
        deadline = time.monotonic() + 20
        while self.runner.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.calls.read_text().split()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def test_new_messages_are_tried_at_once_and_once(spool: Spool) -> None:
    assert spool.look(0) == []
    spool.put("s12", "a1")
    assert spool.look(1) == ["-qiGs12"]
    assert spool.look(2) == []
    spool.put("s12", "a2")
    assert spool.look(3) == ["-qiGs12"]


def test_the_default_queue_has_no_name(spool: Spool) -> None:
    spool.put("", "a1")
    assert spool.look(0) == ["-qi"]


def test_what_was_deferred_is_looked_at_again_after_a_while(spool: Spool) -> None:
    spool.put("s12", "a1")
    assert spool.look(0) == ["-qiGs12"]
    assert spool.look(59) == []
    assert spool.look(61) == ["-qGs12"]
    assert spool.look(62) == []
    assert spool.look(122) == ["-qGs12"]


def test_an_empty_queue_costs_no_process(spool: Spool) -> None:
    spool.put("s12", "a1")
    assert spool.look(0) == ["-qiGs12"]
    os.unlink(spool.spool / "s12/input/a/a1-H")
    assert spool.look(1) == []
    assert spool.look(200) == []
