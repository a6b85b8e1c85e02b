"""What happens to the MTA's queue, and when: one look at it at a time, on a helper thread, as the send's wish is."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import NamedTuple

from mailer_lib.agent.job import SmtpServer
from mailer_lib.agent.mta_queue import EXIM, UNNAMED, EximQueue, QueueError, queue_name, wanted
from mailer_lib.agent.recall import LISTING, Recaller, Round
from mailer_lib.terms import MtaKind

PATIENCE_S = 20.0  # for messages that are being delivered: they are through, or deferred and can be removed
AGAIN_S = 0.5
HOLD_AGAIN_S = 5.0  # when nothing new had to be held
LIST_EVERY_S = 10.0
SUPPRESSED = "suppressed after it was handed over"

log = logging.getLogger(__name__)


class QueueWish(StrEnum):
    DELIVER = "deliver"
    HOLD = "hold"
    RECALL = "recall"
    LEAVE = "leave"  # neither held nor let go


class _Work(NamedTuple):
    wish: QueueWish  # when it was begun
    quiet: bool  # likewise: what came into the queue during the look is nowhere in what it found
    kind: str
    call: Callable[[], Round]


@dataclass(frozen=True)
class _People:
    keys: frozenset[bytes]
    domains: frozenset[str]
    until: float  # monotonic


def recaller_for(smtp: SmtpServer, send_id: int, ledgers: Path) -> Recaller | None:
    """None: the MTA's queue can't be reached from here (no Exim, or no word of where its spool and log are)."""
    if smtp.mta is not MtaKind.EXIM or smtp.mta_log is None or smtp.mta_spool is None:
        return None
    own = queue_name(send_id) if smtp.mta_queues else None
    queues = (UNNAMED,) if own is None else (own, UNNAMED)
    command = tuple(smtp.mta_command.split()) if smtp.mta_command else (EXIM,)
    return Recaller(EximQueue(Path(smtp.mta_spool), queues, command), Path(smtp.mta_log), ledgers, own)


class QueueSteer:
    """``steer`` it now and then; it never blocks. Without a ``recaller`` it has nothing to do."""

    def __init__(
        self,
        recaller: Recaller | None,
        threads: Executor,
        listing: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recaller = recaller
        self._threads = threads
        self._listing = listing
        self._clock = clock
        self._running: tuple[_Work, Future[Round]] | None = None
        self._people: _People | None = None
        self._wish = QueueWish.DELIVER
        self._why = ""
        self._since = 0.0
        self._next_at = -inf
        self._list_at = -inf
        self._answered = False  # what a killed agent left open
        self._settled = False  # nothing is left to do about this wish
        self.recalled = 0
        self.queued = 0
        self.trouble = ""

    @property
    def busy(self) -> bool:
        """A look is under way: the agent must not end."""
        return self._running is not None and not self._running[1].done()

    @property
    def through(self) -> bool:
        """All that was wished is done, or given up after ``PATIENCE_S``."""
        if self._recaller is None:
            return True
        recalling = self._wish is QueueWish.RECALL and not self._settled
        return self._running is None and self._answered and self._people is None and not recalling

    def suppress(self, keys: frozenset[bytes], domains: frozenset[str]) -> None:
        """These people's messages are to be taken back, whatever else is wished."""
        if self._recaller is not None and (keys or domains):
            before = self._people
            both = (keys | before.keys, domains | before.domains) if before else (keys, domains)
            self._people = _People(*both, self._clock() + PATIENCE_S)

    def steer(self, wish: QueueWish, why: str = "", *, quiet: bool = True) -> None:
        """Begin the next look when one is due. ``quiet``: nothing more is on its way into the queue."""
        if self._recaller is None:
            return
        self._collect()
        now = self._clock()
        if wish is not self._wish:
            self._wish, self._why, self._since = wish, why, now
            self._settled, self._next_at = False, -inf
        if self._running is None:
            work = self._due(self._recaller, now, quiet)
            if work is not None:
                self._running = work, self._threads.submit(work.call)

    def _due(self, recaller: Recaller, now: float, quiet: bool) -> _Work | None:
        if not self._answered:
            return _Work(self._wish, quiet, "answer", lambda: Round(recaller.answer(), 0))
        if self._wish is QueueWish.RECALL and not self._settled and now >= self._next_at:
            why = self._why
            return _Work(self._wish, quiet, "recall", lambda: recaller.recall(lambda messages: messages, why))
        if self._people is not None and now >= self._next_at:
            people = self._people
            return _Work(
                self._wish,
                quiet,
                "suppress",
                lambda: recaller.recall(
                    lambda messages: wanted(messages, people.keys, people.domains),
                    SUPPRESSED,
                ),
            )
        if self._wish is QueueWish.HOLD and now >= self._next_at:
            return _Work(self._wish, quiet, "hold", recaller.hold)
        if self._wish is QueueWish.DELIVER and not self._settled:
            return _Work(self._wish, quiet, "release", recaller.release)
        if now >= self._list_at:
            self._list_at = now + LIST_EVERY_S
            return _Work(self._wish, quiet, "list", self._list)
        return None

    def _list(self) -> Round:
        assert self._recaller is not None
        return Round(self._recaller.list_to(self._listing), 0)

    def _collect(self) -> None:
        if self._running is None or not self._running[1].done():
            return
        work, future = self._running
        self._running = None
        now = self._clock()
        try:
            found = future.result()
        except QueueError as error:
            if str(error) != self.trouble:
                log.warning("%s", error)
            self.trouble = str(error)
            found = Round(0, 1)
        else:
            self.trouble = ""
        self._next_at = now + AGAIN_S
        current = work.wish is self._wish  # else the wish changed meanwhile, and this says nothing about the new one
        match work.kind:
            case "answer":
                self._answered = True
                self.recalled += found.done
                self._next_at = -inf
            case "recall":
                self._recalled(found)
                if current and work.quiet and (not found.left or now - self._since > PATIENCE_S):
                    self._settled = True
                    self._people = None
                    self._list_at = -inf  # the listing says at once that they are gone
                    if found.left:
                        log.warning("%d messages are being delivered and can't be recalled", found.left)
            case "suppress":
                self._recalled(found)
                if self._people is not None and (not found.left or now > self._people.until):
                    self._people = None
            case "hold":
                if found.done:
                    log.info("%d messages are held in the MTA's queue", found.done)
                if work.quiet and not found.done and not found.left:
                    self._next_at = now + HOLD_AGAIN_S
            case "release":
                if found.done:
                    log.info("%d messages are released in the MTA's queue", found.done)
                if current:
                    self._settled = not found.left
            case _:
                self.queued = found.done

    def _recalled(self, found: Round) -> None:
        if found.done:
            self.recalled += found.done
            log.info("%d messages were taken back out of the MTA's queue", found.done)


def listing_of(ledgers: Path) -> Path:
    return ledgers / LISTING
