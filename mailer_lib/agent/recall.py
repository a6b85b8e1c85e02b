"""Taking messages back: which lie in the MTA's queue, whose they are, and what the MTA's log says came of it.

Blocking, for a helper thread (``queue_steer.py`` decides what is done when). A message is taken back only when this
job's own ledgers say that it was injected, and is called recalled only when the MTA's log says that it was removed and
nothing of a delivery: Exim refuses to remove what it is delivering, and that stays injected.
"""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from mailer_lib.agent.job import ProtocolFile
from mailer_lib.agent.mta_log import search_removed
from mailer_lib.agent.mta_queue import EximQueue, Queued
from mailer_lib.agent.recalls import Recall, RecallLog, Step, unanswered
from mailer_lib.terms import Outcome

LISTING = "queue.json"
_BEGINS = b"O\t"
_INJECTED = Outcome.INJECTED.value.encode()


@dataclass(frozen=True)
class Owner:
    """Where the ledgers have a queued message."""

    ledger: str
    row: int
    injected_ms: int


@dataclass(frozen=True)
class Round:
    """What one look at the queue did."""

    done: int  # recalled, held or released
    left: int  # wanted, but being delivered just now


class ListedMessage(ProtocolFile):
    """Nothing about the person: a queue id, a keyed hash, a domain."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    queue_id: str
    message_key: str  # hex
    domain: str
    received_at: float
    frozen: bool


class QueueListing(ProtocolFile):
    """queue.json: messages of this job that the MTA had not delivered at that time."""

    at: float  # Unix seconds, before the listing began
    messages: tuple[ListedMessage, ...] = ()


class Recaller:
    """``own_queue``: the named queue that holds this send's messages alone; None: the MTA has no such."""

    def __init__(self, queue: EximQueue, log: Path, ledgers: Path, own_queue: str | None) -> None:
        self._queue = queue
        self._log = log
        self._ledgers = ledgers
        self._own_queue = own_queue
        self._recalls = RecallLog(ledgers)

    def answer(self) -> int:
        """Answer what a killed agent left open. Returns how many it had recalled.

        Raises:
            LedgerError: recalls.log is damaged, or can't be written.
        """
        return self._answer(unanswered(self._recalls.read()), since_s=0.0)

    def recall(self, choose: Callable[[list[Queued]], Collection[Queued]], why: str) -> Round:
        """Take what ``choose`` picks out of the queue.

        Raises:
            QueueError: the queue can't be read or changed.
            LedgerError: recalls.log can't be written.
        """
        chosen = choose(self._queue.messages())
        owners = self._owners({message.queue_id for message in chosen})
        ours = [message for message in chosen if message.queue_id in owners]
        if not ours:
            return Round(0, 0)
        asked = [_recall(Step.ASKED, owners[message.queue_id], message.queue_id, why) for message in ours]
        self._recalls.add(asked)
        self._queue.remove(ours)
        done = self._answer(asked, min(owner.injected_ms for owner in owners.values()) / 1000)
        left = {message.queue_id for message in self._queue.messages()} & owners.keys()
        return Round(done, len(left))

    def hold(self) -> Round:
        """Freeze what isn't frozen."""
        free = self._of_this_send(message for message in self._queue.messages() if not message.frozen)
        self._queue.hold(free)
        held = {message.queue_id for message in self._queue.messages() if message.frozen}
        done = sum(message.queue_id in held for message in free)
        return Round(done, len(free) - done)

    def release(self) -> Round:
        """Let go what is frozen."""
        frozen = self._of_this_send(message for message in self._queue.messages() if message.frozen)
        self._queue.release(frozen)
        return Round(len(frozen), 0)

    def list_to(self, path: Path) -> int:
        """Note what lies in the queue in a file that the centre keeps. Returns how many."""
        at = time.time()
        ours = self._of_this_send(self._queue.messages())
        listed = tuple(
            ListedMessage(
                queue_id=message.queue_id,
                message_key=message.message_key.hex(),
                domain=message.domain,
                received_at=message.received_at,
                frozen=message.frozen,
            )
            for message in ours
        )
        QueueListing(at=at, messages=listed).store(path, durable=False)
        return len(listed)

    def _of_this_send(self, messages: Iterable[Queued]) -> list[Queued]:
        given = list(messages)
        others = {message.queue_id for message in given if message.queue != self._own_queue}
        owners = self._owners(others)
        return [message for message in given if message.queue == self._own_queue or message.queue_id in owners]

    def _owners(self, queue_ids: Collection[str]) -> dict[str, Owner]:
        """Rows that the ledgers call injected under these queue ids.

        Reads lines instead of decoding them: the ledgers of a million messages have three million.
        """
        if not queue_ids:
            return {}
        wanted = {queue_id.encode(): queue_id for queue_id in queue_ids}
        found: dict[str, Owner] = {}
        for path in self._ledgers.glob("*.ledger"):
            data = path.read_bytes()
            for line in data[: data.rfind(b"\n") + 1].split(b"\n"):
                if not line.startswith(_BEGINS):
                    continue
                field = line.split(b"\t")
                if len(field) == 12 and field[2] == _INJECTED and field[5] in wanted:
                    found[wanted[field[5]]] = Owner(path.name, int(field[1]), int(field[9]))
        return found

    def _answer(self, asked: Collection[Recall], since_s: float) -> int:
        if not asked:
            return 0
        try:
            removed = search_removed(self._log, {recall.queue_id for recall in asked}, since_s)
            why = "the MTA didn't remove it: it is being delivered, or was"
        except (OSError, EOFError) as error:
            removed, why = set(), f"the MTA's log can't be read: {getattr(error, 'strerror', None) or error}"
        at_ms = round(time.time() * 1000)
        self._recalls.add(
            recall._replace(step=Step.RECALLED, t_ms=at_ms)
            if recall.queue_id in removed
            else recall._replace(step=Step.NOT_RECALLED, t_ms=at_ms, why=why)
            for recall in asked
        )
        return len(removed)


def _recall(step: Step, owner: Owner, queue_id: str, why: str) -> Recall:
    return Recall(step, owner.ledger, owner.row, queue_id, round(time.time() * 1000), why)
