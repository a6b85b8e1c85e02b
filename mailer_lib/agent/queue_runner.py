"""Runs Exim's queues on a dispatch server: ``python -m mailer_lib.agent.queue_runner`` as a service.

Exim 4.96 by itself runs its default queue only, at fixed times. Each send has a queue of its own here, and what comes
is to be tried at once. So the queues are looked at every second:

- One that has messages that were never tried gets runners that try those alone (``exim -qi``): passing over what was
  deferred costs a look at its file, not a process.
- Every ``retry_scan_s`` a full run (``exim -q``) tries what was deferred; the retry times decide.
- Each queue with work gets one runner at once, so that a small send doesn't wait for a large one. The rest of the
  ``runners`` are shared out to where most is waiting.

A paused send's messages are frozen in the queue (``recall.py``), so its runners pass them over.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SPOOL = Path("/var/spool/exim4")
EXIM = "/usr/sbin/exim4"
DEFAULT_QUEUE = ""
FEW = 20  # messages that one runner is enough for
_LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """A queue that has work for runners."""

    queue: str
    messages: int  # at least; counting ends where it makes no difference any more


def to_start(waiting: Sequence[Waiting], running: Mapping[str, int], runners: int) -> list[str]:
    """The queues that get a runner now, once for each. A queue without one gets one even beyond ``runners``."""
    counts = dict(running)
    starts: list[str] = []

    def start(queue: str) -> None:
        counts[queue] = counts.get(queue, 0) + 1
        starts.append(queue)

    for item in waiting:
        if not counts.get(item.queue):
            start(item.queue)
    while sum(counts.values()) < runners:
        wanting = [item for item in waiting if counts[item.queue] * FEW < item.messages]
        if not wanting:
            break
        start(min(wanting, key=lambda item: counts[item.queue]).queue)
    return starts


@dataclass
class _Queue:
    seen: int = -1  # newest change of its folders, in ns, that a run has been started for
    scanned_s: float = 0.0
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)


class QueueRunner:
    """``look`` every second; what it started ends by itself, or with the service."""

    def __init__(self, spool: Path, *, runners: int, retry_scan_s: float, command: Sequence[str]) -> None:
        self._spool, self._command = spool, list(command)
        self._runners, self._retry_scan_s = runners, retry_scan_s
        self._queues: dict[str, _Queue] = {}

    def look(self, now_s: float) -> None:
        """Start what is to be started at ``now_s`` (monotonic)."""
        waiting: list[Waiting] = []
        full: set[str] = set()
        for name in self._names():
            queue = self._queues.setdefault(name, _Queue(scanned_s=now_s))
            queue.processes = [process for process in queue.processes if process.poll() is None]
            changed = _newest_change(self._folder(name))
            due = now_s - queue.scanned_s >= self._retry_scan_s and not queue.processes
            if changed == queue.seen and not due:
                continue
            messages = _count(self._folder(name), self._runners * FEW)
            if not messages:
                queue.seen = changed
                continue
            if due:
                full.add(name)
                queue.scanned_s = now_s
            waiting.append(Waiting(name, messages))
        running = {name: len(queue.processes) for name, queue in self._queues.items()}
        for name in to_start(waiting, running, self._runners):
            queue = self._queues[name]
            queue.seen = _newest_change(self._folder(name))
            queue.processes.append(self._start(name, first_only=name not in full))
        for name in [name for name, queue in self._queues.items() if not queue.processes]:
            if not self._folder(name).exists():
                del self._queues[name]

    def running(self) -> int:
        """Runners that haven't ended."""
        return sum(process.poll() is None for queue in self._queues.values() for process in queue.processes)

    def _start(self, name: str, *, first_only: bool) -> "subprocess.Popen[bytes]":
        option = f"-q{'i' if first_only else ''}{'G' + name if name else ''}"
        return subprocess.Popen([*self._command, option], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _names(self) -> list[str]:
        """The default queue and every named one that Exim has made a folder for."""
        named = [path.parent.name for path in self._spool.glob("*/input") if path.parent != self._spool]
        return [DEFAULT_QUEUE, *sorted(named)]

    def _folder(self, name: str) -> Path:
        return self._spool / name / "input" if name else self._spool / "input"


def _newest_change(folder: Path) -> int:
    """When a message last came or went: the newest time stamp of the folder and of those it is split into."""
    newest = 0
    try:
        newest = folder.stat().st_mtime_ns
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(entry.name) == 1:
                    newest = max(newest, entry.stat().st_mtime_ns)
    except OSError:  # Exim makes and removes them
        pass
    return newest


def _count(folder: Path, enough: int) -> int:
    """Messages in the queue; counting ends at ``enough``."""
    found = 0
    places = [folder]
    try:
        while places and found < enough:
            with os.scandir(places.pop()) as entries:
                for entry in entries:
                    if len(entry.name) == 1:
                        places.append(Path(entry.path))
                    elif entry.name.endswith("-H"):
                        found += 1
                        if found >= enough:
                            break
    except OSError:
        pass
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spool", type=Path, default=SPOOL)
    parser.add_argument("--exim", nargs="+", default=[EXIM], help="Exim, with further options")
    parser.add_argument("--runners", type=int, default=4)
    parser.add_argument("--retry-scan-s", type=float, default=60.0)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not (given.spool.is_dir() and os.access(given.spool, os.R_OK | os.X_OK)):
        sys.exit(f"{given.spool} can't be read: the user needs to be in Exim's group (`mailfleet server provision`)")
    runner = QueueRunner(given.spool, runners=given.runners, retry_scan_s=given.retry_scan_s, command=given.exim)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ended.append(number))
    log.info("running the queues below %s with %d runners", given.spool, given.runners)
    while not ended:
        runner.look(time.monotonic())
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    main()
