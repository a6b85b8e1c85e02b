"""The queue of the Exim beside the agent: what lies in it, and taking it out, holding it, letting it go.

Each send may have a queue of its own, which Exim's ACL chooses by the name that the agent gives in EHLO
(``queue_name``). Listing reads the spool's ``-H`` files; changes are Exim's own commands, which refuse a message that
is being delivered at that moment (its data file is locked). A message with a journal (``-J``) has been delivered and is
about to vanish: it counts as gone.
"""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

EXIM = "/usr/sbin/exim4"
UNNAMED = ""  # the queue that every Exim has
_AT_ONCE = 200  # messages named in one command
_HEAD_BYTES = 16 * 1024  # of an -H file: envelope and the headers up to Message-ID
_TIMEOUT_S = 120.0
_KEY = re.compile(rb"^\d{3}I Message-ID: <([0-9a-f]{32})(?![0-9a-f])", re.IGNORECASE | re.MULTILINE)
_RECIPIENT = re.compile(rb"^\d+\n[^\s@]+@(\S+)", re.MULTILINE)
_RECEIVED = re.compile(rb"^(\d+) \d+$", re.MULTILINE)
_FROZEN = re.compile(rb"^-frozen ", re.MULTILINE)


class QueueError(RuntimeError):
    """The MTA's queue can't be read or changed; the sentence says why."""


def queue_name(send_id: int) -> str:
    """Of the queue that the messages of a send are put in."""
    return f"s{send_id}"


@dataclass(frozen=True)
class Queued:
    """A message of ours that the MTA has taken and not delivered."""

    queue_id: str
    queue: str
    message_key: bytes
    domain: str
    received_at: float  # Unix seconds
    frozen: bool

    def age_s(self, at: float | None = None) -> float:
        return (time.time() if at is None else at) - self.received_at


@dataclass(frozen=True)
class EximQueue:
    """``queues`` that may hold messages of one send. ``command`` is Exim's, with its options."""

    spool: Path
    queues: tuple[str, ...] = (UNNAMED,)
    command: tuple[str, ...] = (EXIM,)

    def messages(self) -> list[Queued]:
        """Messages with a message key in their Message-ID, oldest first.

        Raises:
            QueueError: the spool can't be read.
        """
        found = [message for queue in self.queues for message in self._list(queue)]
        return sorted(found, key=lambda message: (message.received_at, message.queue_id))

    def remove(self, messages: Iterable[Queued]) -> None:
        """Ask for these to be taken out undelivered. Only the log says what became of each."""
        self._change("-Mrm", messages)

    def hold(self, messages: Iterable[Queued]) -> None:
        """Freeze: no queue runner delivers these until they are released."""
        self._change("-Mf", messages)

    def release(self, messages: Iterable[Queued]) -> None:
        self._change("-Mt", messages)

    def _list(self, queue: str) -> list[Queued]:
        folder = self.spool / queue / "input"
        if not folder.exists():
            if queue == UNNAMED and not os.access(self.spool, os.R_OK | os.X_OK):
                raise QueueError(f"the MTA's spool {self.spool} can't be read by this user")
            return []  # nothing was ever put in it
        problems: list[OSError] = []
        found = []
        for top, _, names in os.walk(folder, onerror=problems.append):
            there = set(names)
            for name in names:
                if name.endswith("-H") and name.removesuffix("-H") + "-J" not in there:
                    try:
                        with (Path(top) / name).open("rb") as file:
                            head = file.read(_HEAD_BYTES)
                    except FileNotFoundError:
                        continue  # delivered meanwhile
                    except OSError as error:
                        problems.append(error)
                        continue
                    message = read_head(head, name.removesuffix("-H"), queue)
                    if message is not None:
                        found.append(message)
        grave = [error for error in problems if not isinstance(error, FileNotFoundError)]
        if grave:
            raise QueueError(f"the MTA's spool {folder} can't be read: {grave[0].strerror}")
        return found

    def _change(self, option: str, messages: Iterable[Queued]) -> None:
        by_queue: dict[str, list[str]] = {}
        for message in messages:
            by_queue.setdefault(message.queue, []).append(message.queue_id)
        for queue, ids in by_queue.items():
            named = [] if queue == UNNAMED else [f"-qG{queue}"]
            for first in range(0, len(ids), _AT_ONCE):
                self._run([*self.command, *named, option, *ids[first : first + _AT_ONCE]])

    def _run(self, command: Sequence[str]) -> None:
        """Its exit status is 1 when one of many messages was gone or locked: no failure."""
        try:
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QueueError(f"{command[0]} can't be run: {getattr(error, 'strerror', None) or error}") from None
        if done.returncode > 1 or b"ermission denied" in done.stderr:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no word"]
            raise QueueError(
                f"{command[0]} refuses to change its queue: {said[0]}; is the agent's user in Exim's group?"
            )


def read_head(head: bytes, queue_id: str, queue: str) -> Queued | None:
    """A message from the beginning of its ``-H`` file; None: it isn't one of ours."""
    key, recipient, received = _KEY.search(head), _RECIPIENT.search(head), _RECEIVED.search(head)
    if key is None or recipient is None or received is None:
        return None
    return Queued(
        queue_id=queue_id,
        queue=queue,
        message_key=bytes.fromhex(key[1].decode()),
        domain=recipient[1].decode("utf-8", "replace").lower(),
        received_at=float(received[1]),
        frozen=_FROZEN.search(head, 0, recipient.start()) is not None,
    )


def wanted(messages: Iterable[Queued], keys: Collection[bytes], domains: Collection[str]) -> list[Queued]:
    """Those for certain people, or for whole domains."""
    return [message for message in messages if message.message_key in keys or message.domain in domains]
