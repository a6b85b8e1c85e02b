"""The asyncio side of a session: a Protocol that moves bytes between a transport and ``SmtpSession``, and starts TLS.

It decides nothing: events go to a ``Handler``, which answers through the session and calls ``flush``.
"""

import asyncio
import ipaddress
import socket
import ssl
from typing import Generic, Protocol, TypeVar, cast

from mailer_lib.agent.smtp.protocol import Event, SessionConfig, SmtpSession, StartTls
from mailer_lib.terms import SmtpSecurity

M = TypeVar("M")


class Handler(Protocol[M]):
    """Who owns the connections."""

    def on_events(self, connection: "SmtpConnection[M]", events: list[Event[M]]) -> None:
        """What happened, in order. Called for each read, also without events: the session may be idle now."""


def tls_context(security: SmtpSecurity) -> ssl.SSLContext:
    """Certificates are checked, except where TLS is only opportunistic (RFC 7435)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if security is SmtpSecurity.OPPORTUNISTIC:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


class SmtpConnection(asyncio.Protocol, Generic[M]):
    """One connection to an MTA. ``name`` is the ledger's ``conn``."""

    def __init__(
        self, name: str, handler: Handler[M], config: SessionConfig, server_name: str, context: ssl.SSLContext | None
    ) -> None:
        self.name = name
        self.local_port = 0
        self.last_active = 0.0  # loop time of the last byte in either direction
        self.useful = False  # at least one message had its answer here: the owner's note
        self._handler = handler
        self._server_name = server_name
        self._context = context
        self._transport: asyncio.Transport | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self.session: SmtpSession[M] = SmtpSession(config, tls_active=config.security is SmtpSecurity.IMPLICIT)
        self.gone = asyncio.get_running_loop().create_future()  # done when the socket is closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's isn't a subclass of asyncio's
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.local_port = transport.get_extra_info("sockname")[1]
        self.last_active = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        self.last_active = asyncio.get_running_loop().time()
        self._deliver(self.session.receive(data))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        why = "the server closed the connection"
        if error is not None and not isinstance(error, ConnectionResetError):
            why = f"the connection broke: {error}"
        self._deliver(self.session.receive_eof(why))

    def _deliver(self, events: list[Event[M]]) -> None:
        if events and isinstance(events[-1], StartTls):
            events.pop()
            self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())
        self._handler.on_events(self, events)
        if self.session.over:
            self.close()
        else:
            self.flush()

    async def _start_tls(self) -> None:
        if self._transport is None or self._context is None:
            return
        loop = asyncio.get_running_loop()
        try:
            upgraded = await loop.start_tls(
                self._transport, self, self._context, server_hostname=self._server_name, ssl_handshake_timeout=30
            )
        except (OSError, TimeoutError) as error:
            self._deliver(self.session.receive_eof(f"TLS with the server failed: {_tls_sentence(error)}"))
            return
        if upgraded is None:
            self._deliver(self.session.receive_eof("the connection broke while TLS was being started"))
            return
        self._transport = upgraded
        self.session.tls_started()
        self.flush()

    def flush(self) -> None:
        """Write what the session has to say, in one write."""
        data = self.session.output()
        if data and self._transport is not None:
            self.last_active = asyncio.get_running_loop().time()
            self._transport.write(data)

    def give_up(self, why: str) -> None:
        """Treat the session as broken: a timeout, or the agent leaves."""
        self._deliver(self.session.receive_eof(why))

    def close(self) -> None:
        """Close the socket after what was written is out."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """Close the socket at once."""
        if self._transport is not None:
            self._transport.abort()


def _tls_sentence(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return "the handshake took too long"
    return str(error) or type(error).__name__


async def connect(
    name: str,
    handler: Handler[M],
    host: str,
    port: int,
    config: SessionConfig,
    *,
    timeout_s: float,
    context: ssl.SSLContext | None = None,
) -> SmtpConnection[M]:
    """Open a connection; its events begin to arrive at ``handler``.

    Raises:
        OSError, TimeoutError: it can't be opened.
    """
    loop = asyncio.get_running_loop()
    implicit = config.security is SmtpSecurity.IMPLICIT
    async with asyncio.timeout(timeout_s):
        _, connection = await loop.create_connection(
            lambda: SmtpConnection(name, handler, config, host, context),
            host,
            port,
            ssl=context if implicit else None,
            server_hostname=host if implicit else None,
        )
    return connection
