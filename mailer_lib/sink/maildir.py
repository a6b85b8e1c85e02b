"""Storing taken messages: a Maildir, one file a message, whose name holds the queue id.

A message is written to ``tmp/``, made durable, and renamed into ``new/``: a reader never sees half of one. Before the
message stand the three lines that a delivery adds: Return-Path, Envelope-To and Received.
"""

import os
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from time import time

FOLDERS = ("tmp", "new", "cur")


def make_maildir(folder: Path) -> None:
    """The Maildir's folders; what a killed sink left in ``tmp/`` was never taken, and goes."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for leftover in (folder / "tmp").iterdir():
        leftover.unlink(missing_ok=True)


def store(folder: Path, queue_id: str, message: bytes, envelope: bytes, *, fsync: bool = True) -> Path:
    """Write a message durably. ``envelope``: header lines to put before it, each ended by CRLF."""
    name = f"{int(time())}.{queue_id}.sink"
    temporary, final = folder / "tmp" / name, folder / "new" / name
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        rest = memoryview(envelope + message)
        while rest:
            rest = rest[os.write(handle, rest) :]
        if fsync:
            os.fdatasync(handle)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    temporary.rename(final)
    return final


def envelope_lines(
    sender: str, recipients: Sequence[str], *, helo: str, peer: str, protocol: str, queue_id: str
) -> bytes:
    """Return-Path, Envelope-To and Received of one message, as a delivery writes them."""
    return (
        f"Return-Path: <{sender}>\r\n"
        f"Envelope-To: {', '.join(recipients)}\r\n"
        f"Received: from {helo} ([{peer}]) by sink with {protocol} id {queue_id}; {formatdate(localtime=True)}\r\n"
    ).encode("utf-8", "surrogateescape")
