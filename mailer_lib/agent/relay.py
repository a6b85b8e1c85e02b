"""The transport ``relay``: one MTA takes everything, over a few long-lived connections.

A connection takes the next message when it is idle, or, with PIPELINING, while it sends one. Nothing is queued in here.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from math import inf

from mailer_lib.agent.backlog import Backlog, Outgoing
from mailer_lib.agent.job import SmtpServer
from mailer_lib.agent.lease import Lease
from mailer_lib.agent.ledger import InDoubt
from mailer_lib.agent.smtp.connection import SmtpConnection, connect, is_loopback, tls_context
from mailer_lib.agent.smtp.protocol import Broken, ContentWanted, Event, Finished, Ready, SessionConfig
from mailer_lib.terms import SmtpSecurity

IDLE_S = 30.0  # then a connection without work says QUIT
CONNECT_TIMEOUT_S = 30.0
_BACKOFF_FIRST_S = 0.5
_BACKOFF_LONGEST_S = 60.0

log = logging.getLogger(__name__)

Connection = SmtpConnection[Outgoing]
Doubts = list[tuple[Lease, InDoubt]]


class Relay:
    """Drives all connections of one job.

    ``on_doubt`` is given what a broken connection leaves in doubt, and the future that is done when its socket is
    closed; ``on_failure`` an error that the agent can't go on after (a ledger that can't be written).
    """

    def __init__(
        self,
        server: SmtpServer,
        password: str | None,
        backlog: Backlog,
        *,
        incarnation: int,
        on_doubt: "Callable[[Doubts, asyncio.Future[None]], None]",
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._server = server
        self._backlog = backlog
        self._incarnation = incarnation
        self._on_doubt = on_doubt
        self._on_failure = on_failure
        loopback = server.host == "localhost" or is_loopback(server.host)
        self._config = SessionConfig(server.helo_name, server.security, loopback, server.user, password)
        self._context = None if server.security is SmtpSecurity.NONE else tls_context(server.security)
        self._connections: set[Connection] = set()
        self._opening = 0
        self._number = 0
        self._failures = 0
        self._connect_at = -inf  # not before
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = False
        self.trouble = ""  # why the last connection failed; "" once one is open again

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Messages begun without an answer."""
        return sum(connection.session.in_flight for connection in self._connections)

    def reason(self) -> str:
        """A sentence about the MTA when it can't be used, or ""."""
        if not self.trouble:
            return ""
        wait_s = max(0.0, self._connect_at - time.monotonic())
        again = f"; next attempt in {wait_s:.0f} s" if wait_s >= 1 else ""
        return f"the MTA {self._server.host}:{self._server.port} can't be used: {self.trouble}{again}"

    # Work

    def pump(self) -> None:
        """Give idle connections work, and open more of them while there is some."""
        for connection in [connection for connection in self._connections if connection.session.idle]:
            self._begin(connection)
        self._backlog.flush()
        self._open_more()
        self._arm()

    def on_events(self, connection: Connection, events: list[Event[Outgoing]]) -> None:
        try:
            self._handle(connection, events)
        except Exception as error:  # a ledger that can't be written: nothing may be sent on
            self._fail(error)

    def _handle(self, connection: Connection, events: list[Event[Outgoing]]) -> None:
        session, backlog = connection.session, self._backlog
        wanted: Outgoing | None = None
        for event in events:
            if isinstance(event, Finished):
                connection.useful = True
                backlog.finished(event.message, event.stage, event.reply, connection.name)
            elif isinstance(event, ContentWanted):
                wanted = event.message
            elif isinstance(event, Ready):
                self._failures, self.trouble = 0, ""
            elif isinstance(event, Broken):
                self._broken(connection, event)
        if session.over:
            self._connections.discard(connection)
        elif wanted is not None:
            following = backlog.next() if session.pipelining else None
            backlog.intend(wanted, connection.name, connection.local_port)
            backlog.flush()  # the intent is in the kernel's hands before any byte of the message is
            refused = session.send_content(wanted.data, (following, following.envelope) if following else None)
            connection.flush()
            wanted.data = b""
            for event in refused:
                if isinstance(event, Finished):
                    backlog.finished(event.message, event.stage, event.reply, connection.name)
        elif session.idle:
            self._begin(connection)
        backlog.flush()
        if session.over:
            self._open_more()
        self._arm()

    def _begin(self, connection: Connection) -> None:
        while connection.session.idle:
            outgoing = self._backlog.next()
            if outgoing is None:
                return
            for event in connection.session.begin(outgoing, outgoing.envelope):
                if isinstance(event, Finished):  # the server's announced limits refuse it
                    self._backlog.finished(event.message, event.stage, event.reply, connection.name)
            connection.flush()

    def _broken(self, connection: Connection, event: Broken[Outgoing]) -> None:
        for outgoing in event.unsent:
            self._backlog.returned(outgoing)
        doubts = [(outgoing.lease, self._backlog.doubt(outgoing, connection.name)) for outgoing in event.in_doubt]
        log.info("connection %s ended: %s (%d in doubt)", connection.name, event.reason, len(doubts))
        if not connection.useful:  # else it did its work, and another one may do more at once
            self._failure(event.reason)
        elif doubts:
            self.trouble = event.reason
        connection.abort()
        if doubts:
            self._on_doubt(doubts, connection.gone)

    def _fail(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._backlog.sending = False
            self._on_failure(error)
        for connection in list(self._connections):
            connection.abort()

    # Connections

    def _open_more(self) -> None:
        if self._failed or not self._backlog.ready or time.monotonic() < self._connect_at:
            return
        wanted = self._server.connections - len(self._connections) - self._opening
        if self._failures:  # try with one first
            wanted = min(wanted, 1 - self._opening)
        for _ in range(wanted):
            self._opening += 1
            task = asyncio.get_running_loop().create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        self._number += 1
        name = f"{self._incarnation}.{self._number}"
        try:
            connection = await connect(
                name,
                self,
                self._server.host,
                self._server.port,
                self._config,
                timeout_s=min(CONNECT_TIMEOUT_S, self._server.timeout_s),
                context=self._context,
            )
        except TimeoutError:
            self._failure("no answer to the connection attempt")
        except (OSError, ssl.SSLError) as error:
            self._failure(_sentence(error))
        else:
            if not connection.session.over:
                self._connections.add(connection)
        finally:
            self._opening -= 1

    def _failure(self, reason: str) -> None:
        now = time.monotonic()
        if now >= self._connect_at:  # several connections that fail together are one failure
            self._failures += 1
            wait_s = min(_BACKOFF_LONGEST_S, _BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 20))
            self._connect_at = now + wait_s
        if reason != self.trouble:
            log.warning("the MTA can't be used: %s", reason)
        self.trouble = reason

    def tick(self) -> None:
        """Now and then: time-outs, idle connections, attempts that are due."""
        now = asyncio.get_running_loop().time()
        for connection in list(self._connections):
            quiet_s = now - connection.last_active
            if not connection.session.idle and quiet_s > self._server.timeout_s:
                connection.give_up(f"no reply for {quiet_s:.0f} s")
            elif connection.session.idle and quiet_s > IDLE_S:
                connection.session.quit()
                connection.flush()
        if not self._failed:
            self.pump()

    async def close(self, timeout_s: float = 2.0) -> None:
        """Say good-bye on idle connections and close all. Messages in flight must have been waited for."""
        if self._timer is not None:
            self._timer.cancel()
        connections = list(self._connections)
        for connection in connections:
            if connection.session.idle:
                connection.session.quit()
                connection.flush()
        if connections:
            await asyncio.wait([connection.gone for connection in connections], timeout=timeout_s)
        for connection in connections:
            connection.abort()

    def _arm(self) -> None:
        """Come back when the pace, or a deferred row, allows the next message."""
        wake_at = self._backlog.wake_at
        if wake_at == inf or (self._timer is not None and self._timer_at <= wake_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = wake_at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, wake_at - time.monotonic()), self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_at = None, inf
        try:
            self.pump()
        except Exception as error:
            self._fail(error)


def _sentence(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    return error.strerror or str(error) or type(error).__name__
