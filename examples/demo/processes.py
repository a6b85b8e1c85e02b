"""Start background processes that can be stopped whole, also by another process, later.

Ours is a process that belongs to the session of one that we started, or that carries this registry's *marker* in its
environment. Both are needed: agents move to sessions of their own, and Airflow's workers overwrite their environment
when they set their title. So nothing is left behind even when a parent died first; the time of creation is compared,
so that nobody else is hit when a pid was given out again.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

MARKER = "FJORD_AND_FERN_PROCESSES"  # agents don't inherit MAILFLEET_… and AIRFLOW_…
TERM_WAIT_S = 15.0
KILL_WAIT_S = 5.0


@dataclass(frozen=True)
class Started:
    name: str
    pid: int
    created: float  # Unix seconds, as psutil tells it
    log: Path


class Processes:
    """The background processes of one folder: a registry file ``processes.json`` and a log for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "processes.json"
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path) -> Started:
        """Start ``argv`` in a session of its own; its output goes to ``<folder>/<name>.log``."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker, started = self._load()
        log = self.folder / f"{name}.log"
        # The marker is on disk before the process exists.
        self._store(marker, started)
        with log.open("ab") as output:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **env, MARKER: marker},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        one = Started(name, child.pid, psutil.Process(child.pid).create_time(), log)
        self._store(marker, [*started, one])
        return one

    def adopt_children(self) -> None:
        """What this process starts from now on, by whatever means, is ours too."""
        os.environ[MARKER] = self._load()[0]

    def first_dead(self) -> str | None:
        """Name of the first started process that has ended, if any."""
        for one in self._load()[1]:
            child = self._children.get(one.pid)
            if child is not None:
                child.poll()
            if not _lives_pid(one.pid):
                return one.name
        return None

    def alive(self) -> list[psutil.Process]:
        """Every living process of ours."""
        marker, started = self._load()
        sessions = {one.pid: one.created for one in started}
        return [p for p in psutil.process_iter() if p.pid != os.getpid() and _is_ours(p, marker, sessions)]

    def kill(self, name: str) -> None:
        """SIGKILL for one of ours and for all of its session, as when a supervisor's unit dies. It may be started
        again."""
        marker, started = self._load()
        killed = {one.pid: one.created for one in started if one.name == name}
        _signal([p for p in psutil.process_iter() if _is_ours(p, "", killed)], signal.SIGKILL)
        for pid in killed:
            if child := self._children.pop(pid, None):  # else another process started it
                child.wait(timeout=KILL_WAIT_S)
        self._store(marker, [one for one in started if one.name != name])

    def stop(self, term_wait_s: float = TERM_WAIT_S) -> None:
        """End them all: SIGTERM to each (agents and servers then end in order), SIGKILL to who stays."""
        if not self._file.exists():
            return
        leaders = {one.pid for one in self._load()[1]}
        # Leaders first: a scheduler that is told to stop starts nothing new while its children are ended.
        _signal([p for p in self.alive() if p.pid in leaders], signal.SIGTERM)
        if not self._gone(min(2.0, term_wait_s)):
            _signal(self.alive(), signal.SIGTERM)
        if not self._gone(term_wait_s):
            deadline = time.monotonic() + KILL_WAIT_S
            while self.alive() and time.monotonic() < deadline:
                _signal(self.alive(), signal.SIGKILL)
                self._gone(0.5)
        for child in self._children.values():
            if child.poll() is None:
                child.wait(timeout=KILL_WAIT_S)
        self._children.clear()
        if not self.alive():  # else the registry is kept, for another try and for whoever asks who is left
            self._file.unlink(missing_ok=True)

    def _gone(self, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while True:
            for child in self._children.values():
                child.poll()  # reap, or a zombie keeps looking alive
            if not self.alive():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)

    def _load(self) -> tuple[str, list[Started]]:
        if not self._file.exists():
            return secrets.token_hex(16), []
        data = json.loads(self._file.read_text())
        return data["marker"], [Started(p["name"], p["pid"], p["created"], Path(p["log"])) for p in data["processes"]]

    def _store(self, marker: str, started: list[Started]) -> None:
        data = {
            "marker": marker,
            "processes": [{**asdict(one), "log": str(one.log)} for one in started],
        }
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(data, indent=1) + "\n")
        beside.replace(self._file)


def _is_ours(process: psutil.Process, marker: str, sessions: Mapping[int, float]) -> bool:
    try:
        if not _lives(process):
            return False
        session = os.getsid(process.pid)
        if session in sessions and process.create_time() >= sessions[session]:
            return process.pid != session or process.create_time() == sessions[session]
        return process.environ().get(MARKER) == marker
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False


def _lives_pid(pid: int) -> bool:
    try:
        return _lives(psutil.Process(pid))
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def python() -> str:
    """The interpreter of this environment."""
    return sys.executable
