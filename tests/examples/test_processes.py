"""Background processes end whole, whatever they do to get away."""

import sys
import time

import psutil
import pytest

from examples.demo.processes import Processes

# A parent that starts a child in a session of its own and one that renames itself, then waits, or dies.
_FAMILY = """
import os, subprocess, sys, time
from pathlib import Path
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
one = subprocess.Popen(sleeper, start_new_session=True)
two = subprocess.Popen([sys.executable, "-c", deaf], env={}, process_group=0)
Path(sys.argv[1]).write_text(f"{one.pid} {two.pid}")
time.sleep(0 if sys.argv[2] == "die" else 600)
"""


@pytest.mark.parametrize("parent", ["stays", "die"])
@pytest.mark.parametrize("by", ["the same object", "another process"])
def test_stop_ends_the_children_too(tmp_path, parent, by):
    processes = Processes(tmp_path / "run")
    pids_file = tmp_path / "pids"
    leader = processes.start("family", [sys.executable, "-c", _FAMILY, str(pids_file), parent], {}, cwd=tmp_path)
    while not (pids_file.exists() and pids_file.read_text()):
        time.sleep(0.05)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    if parent == "die":
        while processes.first_dead() is None:
            time.sleep(0.05)
    assert set(pids) <= {p.pid for p in processes.alive()}
    stopper = processes if by == "the same object" else Processes(tmp_path / "run")
    stopper.stop(term_wait_s=0.5)
    assert processes.alive() == []
    for pid in (*pids, leader.pid):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_is_not_ours_is_left_alone(tmp_path):
    import subprocess

    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        processes = Processes(tmp_path / "run")
        processes.start("one", [sys.executable, "-c", "import time; time.sleep(600)"], {}, cwd=tmp_path)
        processes.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_stopping_what_was_never_started_is_nothing(tmp_path):
    Processes(tmp_path / "none").stop()
    assert not (tmp_path / "none").exists()


def test_which_one_died_is_told(tmp_path):
    processes = Processes(tmp_path / "run")
    processes.start("good", [sys.executable, "-c", "import time; time.sleep(600)"], {}, cwd=tmp_path)
    processes.start("bad", [sys.executable, "-c", "raise SystemExit(3)"], {}, cwd=tmp_path)
    while processes.first_dead() is None:
        time.sleep(0.05)
    assert processes.first_dead() == "bad"
    processes.stop()
