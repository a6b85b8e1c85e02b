"""The sink's log, in the form of Exim's main log, so that settling is the same code for both.

The selectors are those of FACTS: ``+millisec +pid +incoming_port +smtp_connection``. Lines that matter, each after the
time and the pid (``2026-11-24 03:31:52.123 [71] ``)::

    1tEFGh-0000A1-2F <= b-…@bounce.example H=mx1 [127.0.0.1]:40312 I=[127.0.0.1]:2525 P=esmtp S=35012 id=…
    H=mx1 [127.0.0.1]:40312 I=[127.0.0.1]:2525 F=<b-…> rejected RCPT <@isp.example>: 550 5.1.1 …
    SMTP connection from (mx1) [127.0.0.1]:40312 I=[127.0.0.1]:2525 closed by QUIT

The ``SMTP connection`` line that ends a connection (``closed by QUIT`` or ``lost``) is written after everything that
the connection still had in hand: no ``<=`` of it can follow. Recipients' local parts are never written.
"""

import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

KEPT_ROTATIONS = 9
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_UNSAFE = re.compile(r"[^!-~]")


class MainLog:
    """Appends lines, each by one ``write(2)``, from any thread; rotates by size or when told to."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._file = self._open()
        self._size = os.fstat(self._file).st_size

    def write(self, text: str) -> None:
        """One line; ``text`` without time and pid."""
        stamp = datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]  # noqa: DTZ005 - Exim logs local time
        line = f"{stamp} [{self._pid}] {text}\n".encode("utf-8", "backslashreplace")
        with self._lock:
            if self._max_bytes is not None and self._size + len(line) > self._max_bytes and self._size:
                self._rotate()
            written = os.write(self._file, line)
            if written != len(line):  # disk full: never let a later line be glued to half of this one
                raise OSError(f"only {written} of {len(line)} bytes of a log line were written to {self._path}")
            self._size += written

    def rotate(self) -> None:
        """mainlog becomes mainlog.1, mainlog.1 becomes mainlog.2, …"""
        with self._lock:
            self._rotate()

    def close(self) -> None:
        with self._lock:
            os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o644)

    def _rotate(self) -> None:
        for number in range(KEPT_ROTATIONS - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        if self._path.exists():
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        os.close(self._file)
        self._file, self._size = self._open(), 0


def queue_ids(clock: Callable[[], float] = time.time) -> Callable[[], str]:
    """A maker of queue ids in Exim's form ``tttttt-cccccc-pp``: seconds, a counter from a random start, the pid."""
    counter = secrets.randbelow(62**5)
    suffix = _base62(os.getpid() % 62**2, 2)
    lock = threading.Lock()

    def make() -> str:
        nonlocal counter
        with lock:
            counter = (counter + 1) % 62**6
            return f"{_base62(int(clock()), 6)}-{_base62(counter, 6)}-{suffix}"

    return make


def token(text: str) -> str:
    """What a stranger said (HELO, Message-ID, sender), made safe for one field of a line."""
    return _UNSAFE.sub("?", text)[:300]


def _base62(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits
