"""What is still to be sent, and what became of what was: chooses the next message, writes each row's story.

The choice is made anew for each message, in this order: rows that a broken connection gave back, rows held back by
their provider's limit, deferred rows whose time has come, then new rows in the order of the leases. A row whose
provider may get nothing yet steps aside, so that one provider's limit doesn't hold up the others.
"""

import heapq
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Protocol

from mailer_lib.agent.breaker import Breakers
from mailer_lib.agent.lease import Lease, RowState
from mailer_lib.agent.ledger import Connected, Deferral, Final, InDoubt, Intent
from mailer_lib.agent.pace import Pace
from mailer_lib.agent.replies import redact
from mailer_lib.agent.settle import CantTell, Injected, Verdict
from mailer_lib.agent.smtp.protocol import Envelope, Stage
from mailer_lib.agent.smtp.replies import Reply
from mailer_lib.agent.suppressions import LateSuppressions
from mailer_lib.message.builder import BuiltMessage, RenderError
from mailer_lib.shard.recipient import Recipient
from mailer_lib.terms import Outcome

HELD_BACK_MAX = 10_000  # rows that stepped aside; then no new rows are looked at
_DROPS_A_CALL = 200  # suppressed or failed rows in one call of ``next``, so that the loop stays alive
_QUEUE_ID = re.compile(r"\bid=(\S+)|queued as (\S+)|^(?:\d\.\d\.\d )?(\S+) Message accepted", re.IGNORECASE)

log = logging.getLogger(__name__)


class Builder(Protocol):
    """``message.builder.MessageBuilder``: what it builds has CRLF lines, none of which begins with a dot."""

    def build(self, recipient: Recipient) -> BuiltMessage: ...


@dataclass(slots=True, eq=False)
class Outgoing:
    """A built message on its way to the MTA."""

    lease: Lease
    row: int
    recipient: Recipient
    attempt: int
    envelope: Envelope
    data: bytes  # emptied once it was given to the kernel

    @property
    def key(self) -> bytes:
        return self.recipient.message_key


@dataclass(frozen=True)
class Backoff:
    """Waits between the attempts of one row: the first, doubled up to the longest. Seconds."""

    first_s: float
    longest_s: float

    def wait_s(self, attempts: int) -> float:
        """The wait after ``attempts`` attempts (from 1)."""
        return float(min(self.longest_s, self.first_s * 2 ** min(attempts - 1, 40)))


class Backlog:
    """All leases of one job. ``monotonic`` times steer, Unix times are what the ledger holds."""

    def __init__(
        self,
        builder: Builder,
        suppressions: LateSuppressions,
        pace: Pace,
        backoff: Backoff,
        breakers: Breakers,
        *,
        log_position: Callable[[], tuple[int, int]],
        boot_id: str,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.pace = pace
        self.sending = False  # nothing new begins while this is off
        self.wake_at = inf  # monotonic time at which ``next`` may have something, when it just had nothing
        self.leases: dict[str, Lease] = {}
        self._builder = builder
        self._suppressions = suppressions
        self._backoff = backoff
        self.breakers = breakers
        self._log_position = log_position
        self._boot_id = boot_id
        self._monotonic = monotonic
        self._wall = wall
        self._new: deque[Lease] = deque()  # leases that may have new rows
        self._returned: deque[tuple[Lease, int]] = deque()
        self._held_back: dict[str, deque[tuple[Lease, int]]] = {}  # by provider
        self._held_back_rows = 0
        self._shut: dict[str, list[tuple[Lease, int]]] = {}  # by lease, while the window of its people is shut
        self._deferred: list[tuple[float, int, Lease, int]] = []  # heap by monotonic time
        self._order = count()
        self._dirty: dict[str, Lease] = {}
        self._suppressed: set[bytes] = set()  # message keys: injected although the person had left meanwhile
        self.injected = 0  # by this agent; rates are made of it

    # Leases

    def add(self, lease: Lease) -> None:
        """A lease that was just opened; its doubts are the caller's to settle."""
        self.leases[lease.name] = lease
        shift = self._monotonic() - self._wall()
        for row, next_at_ms in lease.waiting.items():
            due = min(next_at_ms / 1000 + shift, self._monotonic() + self._backoff.longest_s)
            heapq.heappush(self._deferred, (due, next(self._order), lease, row))
        lease.waiting.clear()
        self.granted(lease)

    def granted(self, lease: Lease) -> None:
        """The lease has (more) rows, or its window is open again.

        It goes first: rows of a provider with a limit step aside at once, and are sent as their limit lets them, while
        the lease before goes on. Behind it they would wait until that had no more rows.
        """
        if not lease.is_shut(self._wall()):
            self._returned.extend(self._shut.pop(lease.name, ()))
        if lease not in self._new:
            self._new.appendleft(lease)

    def close_settled(self, keep: Iterable[str]) -> None:
        """Close ledgers of leases that the slot no longer names, once nothing of them is under way."""
        named = set(keep)
        for name in [name for name in self.leases if name not in named]:
            lease = self.leases[name]
            lease.dropped = True
            if not lease.busy:
                self.flush()
                del self.leases[name]
                self._shut.pop(name, None)
                lease.ledger.close()

    def close(self) -> None:
        """Close all ledgers."""
        self.flush()
        for lease in self.leases.values():
            lease.ledger.close()

    # What is left

    @property
    def left(self) -> int:
        """Granted rows without an outcome, those on their way and in doubt included."""
        return sum(lease.left for lease in self.leases.values() if not lease.dropped or lease.busy)

    @property
    def deferred(self) -> int:
        return len(self._deferred)

    @property
    def shut(self) -> int:
        """Granted rows that wait for the send window of their people."""
        return sum(len(rows) for rows in self._shut.values())

    @property
    def dry(self) -> bool:
        """Every granted row was begun or is deferred: more grants are wanted."""
        return not self._returned and not self._held_back_rows and not any(lease.has_new for lease in self._new)

    @property
    def ready(self) -> bool:
        """There is something that a connection could take now, pace apart."""
        return self.sending and (not self.dry or bool(self._deferred and self._deferred[0][0] <= self._monotonic()))

    # The choice

    def next(self) -> Outgoing | None:
        """The message to send now, built; or None, and ``wake_at`` says when to ask again."""
        self.wake_at = inf
        if not self.sending:
            return None
        now = self._monotonic()
        allowed_at = max(self.pace.all_allowed_at(now), self.breakers.all_allowed_at(now))
        if allowed_at > now:
            self.wake_at = allowed_at
            return None
        for _ in range(_DROPS_A_CALL):
            chosen = self._choose(now)
            if chosen is None:
                return None
            outgoing = self._prepare(*chosen)
            if outgoing is not None:
                self.pace.take(outgoing.recipient.provider, now)
                self.breakers.take(outgoing.recipient.provider, now)
                return outgoing
        self.wake_at = now
        return None

    def _choose(self, now: float) -> tuple[Lease, int, Recipient] | None:
        while self._returned:
            lease, row = self._returned.popleft()
            chosen = self._allowed(lease, row, now)
            if chosen is not None:
                return chosen
        for provider, rows in self._held_back.items():
            while rows:
                allowed_at = self._provider_allowed_at(provider, now)
                if allowed_at > now:
                    self.wake_at = min(self.wake_at, allowed_at)
                    break
                lease, row = rows.popleft()
                self._held_back_rows -= 1
                if not lease.dropped and not self._steps_aside(lease, row):
                    return lease, row, lease.recipient(row)
        while self._deferred and self._deferred[0][0] <= now:
            _, _, lease, row = heapq.heappop(self._deferred)
            chosen = self._allowed(lease, row, now)
            if chosen is not None:
                return chosen
        while self._new and self._held_back_rows < HELD_BACK_MAX:
            lease = self._new[0]
            new = lease.next_new()
            if new is None:
                self._new.popleft()
                continue
            chosen = self._allowed(lease, new, now)
            if chosen is not None:
                return chosen
        if self._deferred:
            self.wake_at = min(self.wake_at, self._deferred[0][0])
        return None

    def _allowed(self, lease: Lease, row: int, now: float) -> tuple[Lease, int, Recipient] | None:
        """The row, unless its lease is gone or its provider may get nothing yet: then it steps aside."""
        if lease.dropped or self._steps_aside(lease, row):
            return None
        recipient = lease.recipient(row)
        allowed_at = self._provider_allowed_at(recipient.provider, now)
        if allowed_at <= now:
            return lease, row, recipient
        lease.states[row] = RowState.WAITING
        self._held_back.setdefault(recipient.provider, deque()).append((lease, row))
        self._held_back_rows += 1
        self.wake_at = min(self.wake_at, allowed_at)
        return None

    def _steps_aside(self, lease: Lease, row: int) -> bool:
        """Whether the row waits until the send window of its people is open again."""
        if not lease.is_shut(self._wall()):
            return False
        lease.states[row] = RowState.WAITING
        self._shut.setdefault(lease.name, []).append((lease, row))
        return True

    def _provider_allowed_at(self, provider: str, now: float) -> float:
        return max(self.pace.provider_allowed_at(provider, now), self.breakers.provider_allowed_at(provider, now))

    def _prepare(self, lease: Lease, row: int, recipient: Recipient) -> Outgoing | None:
        if self._suppressions.holds(recipient):
            self._final(lease, row, recipient, Outcome.SUPPRESSED)
            return None
        try:
            built = self._builder.build(recipient)
        except Exception as error:  # one row must never stop the others, whatever is wrong with it
            why = str(error) if isinstance(error, RenderError) else type(error).__name__
            log.warning("message %s can't be built: %s", recipient.message_key.hex(), why)
            self._final(lease, row, recipient, Outcome.FAILED, text=why)
            return None
        lease.states[row] = RowState.BUSY
        data = built.data
        envelope = Envelope(built.envelope_from, built.envelope_to, len(data), not data.isascii(), dotless=True)
        return Outgoing(lease, row, recipient, lease.attempts.get(row, 0) + 1, envelope, data)

    # What became of it

    def intend(self, outgoing: Outgoing, conn: str, local_port: int) -> None:
        """The content is about to go out on ``conn``; call ``flush`` before it does."""
        lease = outgoing.lease
        now_ms = self._now_ms()
        if conn not in lease.connections:
            connected = Connected(conn, local_port, now_ms, *self._log_position())
            lease.connections[conn] = connected
            lease.ledger.add(connected)
        lease.ledger.add(Intent(outgoing.row, outgoing.recipient.message_key, outgoing.attempt, conn, now_ms))
        self._dirty[lease.name] = lease

    def finished(self, outgoing: Outgoing, stage: Stage, reply: Reply, conn: str) -> None:
        """The MTA answered."""
        lease, row, recipient = outgoing.lease, outgoing.row, outgoing.recipient
        text = "" if reply.positive else redact(reply.text)
        for held in self.breakers.hear(recipient.provider, reply.code, reply.enhanced, text, self._monotonic()):
            log.warning("provider %s is left alone for now: %s", held.provider, held.reason)
        if stage is Stage.DOT and reply.positive:
            self.injected += 1
            self._final(lease, row, recipient, Outcome.INJECTED, reply, conn=conn, queue=queue_id(reply.text))
        elif reply.transient:
            self._defer(outgoing, reply)
        else:
            self._final(lease, row, recipient, Outcome.REJECTED, reply, conn=conn)

    def returned(self, outgoing: Outgoing) -> None:
        """Nothing of its content went out: it is sent again as soon as there is a connection."""
        outgoing.lease.states[outgoing.row] = RowState.WAITING
        self._returned.append((outgoing.lease, outgoing.row))

    def doubt(self, outgoing: Outgoing, conn: str) -> InDoubt:
        """What ``settle`` needs to know of a message whose last dot wasn't answered on ``conn``."""
        connected = outgoing.lease.connections[conn]
        return InDoubt(
            outgoing.row,
            outgoing.key,
            outgoing.attempt,
            conn,
            connected.local_port,
            connected.log_inode,
            connected.log_offset,
            self._boot_id,
            connected.t_ms,
        )

    def settled(self, lease: Lease, doubt: InDoubt, verdict: Verdict) -> None:
        """The doubt about a row is over."""
        recipient = lease.recipient(doubt.row)
        match verdict:
            case Injected(found):
                self._final(lease, doubt.row, recipient, Outcome.INJECTED, conn=doubt.conn, queue=found, text="settled")
            case CantTell(why):
                log.warning("message %s stays unknown: %s", doubt.message_key.hex(), why)
                self._final(lease, doubt.row, recipient, Outcome.UNKNOWN, conn=doubt.conn, text=why)
            case _:
                now_ms = self._now_ms()
                record = Deferral(doubt.row, 0, "", recipient.provider, now_ms, now_ms, "settled: not handed over")
                lease.ledger.add(record)
                self._dirty[lease.name] = lease
                lease.attempts[doubt.row] = doubt.attempt
                lease.states[doubt.row] = RowState.WAITING
                self._returned.append((lease, doubt.row))

    def end_all(self, outcome: Outcome, text: str) -> None:
        """Every granted row that isn't on its way or in doubt gets this outcome: the send was stopped or expired."""
        self._returned.clear()
        self._held_back.clear()
        self._shut.clear()
        self._held_back_rows = 0
        self._deferred.clear()
        for lease in self.leases.values():
            if lease.dropped or not lease.left:
                continue
            for row in range(lease.first_row, lease.granted_through):
                if lease.states[row] in (RowState.NEW, RowState.WAITING):
                    self._final(lease, row, lease.recipient(row), outcome, text=text)
            lease.cursor = lease.granted_through
        self._new.clear()
        self.flush()

    def take_suppressed(self) -> frozenset[bytes]:
        """Messages that the MTA took while their people left: they are to be taken back out of its queue."""
        keys = frozenset(self._suppressed)
        self._suppressed.clear()
        return keys

    def flush(self) -> None:
        """Give gathered records to the kernel: one ``write(2)`` for each ledger concerned."""
        if self._dirty:
            for lease in self._dirty.values():
                lease.ledger.flush()
            self._dirty.clear()

    def _defer(self, outgoing: Outgoing, reply: Reply) -> None:
        lease, row = outgoing.lease, outgoing.row
        wait_s = self._backoff.wait_s(outgoing.attempt)
        now_ms = self._now_ms()
        lease.attempts[row] = outgoing.attempt
        lease.states[row] = RowState.WAITING
        lease.ledger.add(
            Deferral(
                row,
                reply.code,
                reply.enhanced,
                outgoing.recipient.provider,
                now_ms + int(wait_s * 1000),
                now_ms,
                redact(reply.text),
            )
        )
        self._dirty[lease.name] = lease
        heapq.heappush(self._deferred, (self._monotonic() + wait_s, next(self._order), lease, row))

    def _final(
        self,
        lease: Lease,
        row: int,
        recipient: Recipient,
        outcome: Outcome,
        reply: Reply | None = None,
        *,
        conn: str = "",
        queue: str = "",
        text: str = "",
    ) -> None:
        lease.settle(row, outcome)
        if outcome is Outcome.INJECTED and self._suppressions.holds(recipient):
            self._suppressed.add(recipient.message_key)
        code, enhanced = 0, ""
        if reply is not None:
            code, enhanced, text = reply.code, reply.enhanced, redact(reply.text)
        lease.ledger.add(
            Final(
                row,
                outcome,
                code,
                enhanced,
                queue,
                conn,
                recipient.variant,
                recipient.provider,
                self._now_ms(),
                text,
            )
        )
        self._dirty[lease.name] = lease

    def _now_ms(self) -> int:
        return int(self._wall() * 1000)


def queue_id(text: str) -> str:
    """The MTA's queue id in its reply to the last dot (Exim, our sink, Postfix, Sendmail), or ""."""
    match = _QUEUE_ID.search(text)
    return next((group for group in match.groups() if group), "") if match else ""
