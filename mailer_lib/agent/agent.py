"""One agent: takes a job folder, settles what an earlier agent left in doubt, sends what is granted, and ends.

    lock ─▶ settle doubts ─▶ send ─▶ (complete, or stopped, and every granted row has an outcome) ─▶ done
              ▲                │
              └─ a connection broke with messages in doubt

It sends nothing that isn't granted, and runs dry when the slot is gone. Everything it knows is in the ledgers.
"""

import asyncio
import gc
import logging
import os
import signal
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path

from mailer_lib.agent.backlog import Backlog, Backoff
from mailer_lib.agent.breaker import EVERYBODY, Breakers
from mailer_lib.agent.folder import ControlWatch, JobError, JobFolder
from mailer_lib.agent.job import ControlFile, HeldProvider, Status
from mailer_lib.agent.lease import Lease, ShardRows
from mailer_lib.agent.ledger import InDoubt, LedgerError, LedgerWriter, Opened, last_incarnation
from mailer_lib.agent.pace import Pace
from mailer_lib.agent.queue_steer import QueueSteer, QueueWish, listing_of, recaller_for
from mailer_lib.agent.relay import Doubts, Relay
from mailer_lib.agent.settle import MtaRecords, Verdict, boot_id, log_position, settle
from mailer_lib.agent.suppressions import LateSuppressions
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.shard.files import ShardError
from mailer_lib.terms import Control, Outcome

TICK_S = 0.1
STATUS_S = 0.5
SYNC_S = 0.2
RATE_WINDOW_S = 5.0

log = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """How an agent ended; also its process's exit status."""

    DONE = 0  # complete (or stopped), and every granted row has its outcome
    BAD_JOB = 2  # the folder can't be used
    LOCKED = 3  # another agent holds it
    IDLE = 4  # the slot is silent and nothing may be sent
    FAILED = 5  # a ledger or a shard is damaged, or the disk is full
    TERMINATED = 6  # told to leave by SIGTERM; what was in flight is finished


class Agent:
    """``run`` it once, holding the folder's lock."""

    def __init__(self, folder: JobFolder) -> None:
        """
        Raises:
            JobError, TemplateError, ValueError: the job can't be done as it is given.
        """
        self._folder = folder
        self._job = folder.job()
        secrets = folder.secrets()
        self._password = secrets.smtp_password
        bundle = folder.bundle()
        if self._job.dkim_selector is not None:  # of this server; which key signs isn't what was approved
            bundle = bundle.model_copy(update={"dkim_selector": self._job.dkim_selector})
        builder = MessageBuilder(bundle, dkim_key_pem=secrets.dkim_key_pem, token_key=bytes.fromhex(secrets.token_key))
        smtp = self._job.smtp
        self._records = MtaRecords(
            smtp.mta,
            smtp.port,
            Path(smtp.mta_log) if smtp.mta_log else None,
            Path(smtp.mta_spool) if smtp.mta_spool else None,
        )
        self._boot_id = boot_id()
        folder.ledgers.mkdir(exist_ok=True)
        self._opened = Opened(last_incarnation(folder.ledgers) + 1, self._boot_id, os.getpid(), int(time.time() * 1000))
        self._suppressions = LateSuppressions(folder.suppressions_path)
        self._watch = ControlWatch(folder)
        self._control = ControlFile(generation=0, limits=self._job.limits)
        self._rows = ShardRows()
        self._backlog = Backlog(
            builder,
            self._suppressions,
            Pace(self._job.limits.per_s, self._job.limits.provider_per_s),
            Backoff(self._job.retry_first_s, self._job.retry_max_s),
            Breakers(self._job.breaker),
            log_position=lambda: log_position(self._records),
            boot_id=self._boot_id,
        )
        self._settling: set[asyncio.Task[None]] = set()
        self._bad_lines = 0  # of suppressions.log, that were told
        self._again = False
        self._started = False  # the doubts of earlier agents are settled
        self._leaving = False
        self._error: BaseException | None = None
        self._wake = asyncio.Event()
        self._injected: deque[tuple[float, int]] = deque()
        self._disk = ThreadPoolExecutor(1, "sync")
        self._readers = ThreadPoolExecutor(4, "settle")
        self._queue = QueueSteer(
            recaller_for(smtp, self._job.send_id, folder.ledgers), self._readers, listing_of(folder.ledgers)
        )

    async def run(self) -> ExitCode:
        """Until there is nothing more to do.

        Raises:
            LedgerError, ShardError, JobError: the agent can't go on; nothing is lost.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave)
        relay = Relay(
            self._job.smtp,
            self._password,
            self._backlog,
            incarnation=self._opened.incarnation,
            on_doubt=self._on_doubt,
            on_failure=self._on_failure,
        )
        log.info("agent %d of %s begins (pid %d)", self._opened.incarnation, self._job.job_id, os.getpid())
        try:
            return await self._work(relay)
        except BaseException as error:
            self._store_status(relay, "failed", _sentence(error))
            raise
        finally:
            self._backlog.sending = False
            await relay.close()
            if self._error is None:
                self._backlog.close()
            self._disk.shutdown(wait=False)
            self._readers.shutdown(wait=False, cancel_futures=True)

    async def _work(self, relay: Relay) -> ExitCode:
        next_status = next_sync = 0.0
        while True:
            self._poll()
            if not self._started and not self._settling:
                self._started = True
                gc.freeze()  # templates and keys live as long as the agent: no need to look at them again
            self._steer(relay)
            relay.tick()
            now = time.monotonic()
            ended = self._ended(relay)
            if ended is not None or now >= next_status:
                state, reason = self._state(relay, ended)
                self._store_status(relay, state, reason)
                next_status = now + STATUS_S
            if now >= next_sync:
                self._sync()
                next_sync = now + SYNC_S
            if ended is not None:
                log.info("agent %d ends: %s", self._opened.incarnation, ended.name)
                return ended
            self._wake.clear()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            if self._error is not None:
                raise self._error

    # What the slot says

    def _poll(self) -> None:
        if self._suppressions.poll():
            self._queue.suppress(*self._suppressions.take_fresh())
        if self._suppressions.bad_lines > self._bad_lines:
            self._bad_lines = self._suppressions.bad_lines
            log.warning("suppressions.log has %d lines that aren't a hash or a domain", self._suppressions.bad_lines)
        try:
            control = self._watch.poll()
        except JobError as error:
            log.warning("%s; the old one stays in force", error)
            return
        if control is None and self._again:
            control = self._control
        if control is not None:
            self._take(control)

    def _take(self, control: ControlFile) -> None:
        now = time.monotonic()
        self._again = False
        if control.limits != self._control.limits:
            self._backlog.pace.change(control.limits.per_s, control.limits.provider_per_s, now)
        for grant in control.leases:
            lease = self._backlog.leases.get(grant.ledger_name)
            if lease is None:
                lease = Lease(self._folder.path, grant, self._job.job_id, self._opened, self._rows)
                self._backlog.add(lease)
                if lease.doubts:
                    log.info("%s: %d rows in doubt", lease.name, len(lease.doubts))
                    self._on_doubt([(lease, doubt) for doubt in lease.doubts], None)
                    lease.doubts = []
            elif lease.dropped:
                self._again = True  # taken away and given back: opened anew once its last message is through
            else:
                lease.grant(grant)
                self._backlog.granted(lease)
        self._control = control

    @property
    def _expires_at(self) -> float | None:
        return self._control.expires_at if self._control.expires_at is not None else self._job.expires_at

    @property
    def _window_closed(self) -> bool:
        return self._control.window_closes_at is not None and time.time() >= self._control.window_closes_at

    def _steer_queue(self, relay: Relay, *, stopped: bool, expired: bool) -> None:
        """What the MTA has taken and not delivered follows the send: held, let go, or taken back."""
        self._queue.suppress(self._backlog.take_suppressed(), frozenset())
        quiet = not relay.in_flight and not self._settling
        if stopped and self._control.keep_queue:
            self._queue.steer(QueueWish.LEAVE, quiet=quiet)
        elif stopped:
            self._queue.steer(QueueWish.RECALL, "the send was stopped", quiet=quiet)
        elif expired:
            self._queue.steer(QueueWish.RECALL, "the send expired", quiet=quiet)
        elif self._control.control is Control.PAUSE or self._window_closed:
            self._queue.steer(QueueWish.HOLD, quiet=quiet)
        else:
            self._queue.steer(QueueWish.DELIVER, quiet=quiet)

    def _steer(self, relay: Relay) -> None:
        """What may be sent now, and what never will be."""
        expired = self._expires_at is not None and time.time() >= self._expires_at
        stopped = self._control.control is Control.STOP
        self._backlog.sending = (
            self._started
            and not self._window_closed
            and not self._leaving
            and not expired
            and self._error is None
            and self._control.control is Control.RUN
        )
        if self._started and not self._leaving:
            if stopped:
                self._backlog.end_all(Outcome.CANCELLED, "the send was stopped")
            elif expired:
                self._backlog.end_all(Outcome.EXPIRED, "not accepted before the send expired")
            self._steer_queue(relay, stopped=stopped, expired=expired)
        if self._control.generation:
            self._backlog.close_settled(grant.ledger_name for grant in self._control.leases)

    def _ended(self, relay: Relay) -> ExitCode | None:
        if self._settling or relay.in_flight or self._queue.busy:
            return None
        if self._leaving:
            return ExitCode.TERMINATED
        final = self._control.complete or self._control.control is Control.STOP
        if self._started and final and not self._backlog.left and self._queue.through:
            return ExitCode.DONE
        may_send = self._backlog.sending and self._backlog.left > self._backlog.shut
        if not may_send and self._watch.age_s() > self._job.idle_exit_s:
            return ExitCode.IDLE
        return None

    # Doubt

    def _on_doubt(self, doubts: Doubts, gone: "asyncio.Future[None] | None") -> None:
        task = asyncio.get_running_loop().create_task(self._settle(doubts, gone))
        self._settling.add(task)
        task.add_done_callback(self._settled)

    async def _settle(self, doubts: Doubts, gone: "asyncio.Future[None] | None") -> None:
        if gone is not None:
            await gone  # our own end of the connection
        found = await asyncio.get_running_loop().run_in_executor(self._readers, self._look, [d for _, d in doubts])
        for lease, doubt in doubts:
            verdict = found[doubt.message_key]
            log.info("message %s: %s", doubt.message_key.hex(), type(verdict).__name__)
            self._backlog.settled(lease, doubt, verdict)
        self._backlog.flush()

    def _look(self, doubts: list[InDoubt]) -> dict[bytes, Verdict]:
        return settle(doubts, self._records, boot=self._boot_id)

    def _settled(self, task: "asyncio.Task[None]") -> None:
        self._settling.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._on_failure(task.exception() or RuntimeError())
        self._wake.set()

    def _on_failure(self, error: BaseException) -> None:
        self._error = self._error or error
        self._wake.set()

    def _leave(self) -> None:
        log.info("told to leave; finishing what is in flight")
        self._leaving = True
        self._backlog.sending = False
        self._wake.set()

    # What is told

    def _sync(self) -> None:
        """``fdatasync`` of what was written since the last time, by a helper thread."""
        ledgers = [lease.ledger for lease in self._backlog.leases.values() if lease.ledger.unsynced]
        if ledgers:
            self._disk.submit(_sync_all, ledgers).add_done_callback(self._synced)

    def _synced(self, future: "Future[None]") -> None:
        error = future.exception()
        if error is not None:
            self._error = self._error or error  # seen at the next tick

    def _state(self, relay: Relay, ended: ExitCode | None) -> tuple[str, str]:
        if ended is not None:
            return ("done" if ended is ExitCode.DONE else "waiting"), _ENDINGS[ended]
        if self._settling and (not self._started or not self._backlog.sending):
            return "settling", "looking into the MTA's records for messages in doubt"
        if self._started and not self._queue.through and not self._backlog.left:
            return "settling", "taking messages back out of the MTA's queue"
        if self._control.control is Control.PAUSE:
            return "paused", "paused by an operator"
        if self._window_closed:
            return "waiting", "the send window is over"
        if relay.trouble and not relay.connections:
            return "waiting", relay.reason()
        if self._control.generation == 0:
            return "waiting", "there is no control.json yet"
        if relay.in_flight:
            return "sending", relay.reason() or self._held_sentence()
        if self._backlog.breakers.held():
            return "waiting", self._held_sentence()
        if self._backlog.dry and self._backlog.shut:
            return "waiting", f"{self._backlog.shut} messages wait for the send window of their time zone"
        if self._backlog.dry and self._backlog.deferred:
            return "waiting", f"{self._backlog.deferred} deferred messages wait for their next attempt"
        if self._backlog.dry:
            return "waiting", "nothing more is granted"
        return "sending", "as fast as the limits allow"

    def _held_sentence(self) -> str:
        held = self._backlog.breakers.held()
        if not held:
            return ""
        first, more = held[0], f" (and {len(held) - 1} more)" if len(held) > 1 else ""
        whom = "everything" if first.provider == EVERYBODY else first.provider
        again_s = max(0.0, first.until - time.monotonic())
        return f"{whom} is left alone{more}, next attempt in {again_s:.0f} s: {first.reason}"

    def _store_status(self, relay: Relay, state: str, reason: str) -> None:
        now = time.monotonic()
        backlog = self._backlog
        self._injected.append((now, backlog.injected))
        while now - self._injected[0][0] > RATE_WINDOW_S:
            self._injected.popleft()
        since, before = self._injected[0]
        elapsed = now - since
        leases = backlog.leases.values()
        status = Status(
            pid=os.getpid(),
            boot_id=self._boot_id,
            at=time.time(),
            state=state,
            reason=reason,
            generation=self._control.generation,
            suppressions_read=self._suppressions.lines,
            injected=sum(lease.injected for lease in leases),
            settled_rows=sum(lease.settled for lease in leases),
            in_flight=relay.in_flight,
            deferred=backlog.deferred,
            per_s=round((backlog.injected - before) / elapsed, 1) if elapsed > 0 else 0.0,
            connections=relay.connections,
            queued=self._queue.queued,
            recalled=self._queue.recalled,
            held=tuple(
                HeldProvider(provider=h.provider, until=time.time() + h.until - now, reason=h.reason)
                for h in backlog.breakers.held()
            ),
            dry=self._started and backlog.dry,
        )
        try:
            status.store(self._folder.status_path, durable=False)
        except OSError as error:
            log.warning("status.json can't be written: %s", error.strerror)


_ENDINGS = {
    ExitCode.DONE: "every granted row has its outcome",
    ExitCode.IDLE: "the slot is silent and nothing may be sent",
    ExitCode.TERMINATED: "told to leave; what was in flight is finished",
}


def _sync_all(ledgers: list[LedgerWriter]) -> None:
    for ledger in ledgers:
        ledger.sync()


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, LedgerError | ShardError | JobError) else type(error).__name__
