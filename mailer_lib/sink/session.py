"""One SMTP connection of the sink: aiosmtpd's state machine, with the pieces that pipelining clients need replaced.

What differs from ``aiosmtpd.smtp.SMTP`` (1.4.6), and why:

- Replies are gathered while complete pipelined commands wait in the buffer and leave in one segment (RFC 2920 §3.2); a
  write for each reply costs a system call and a small packet each.
- DATA is read up to CRLF.CRLF in one piece; aiosmtpd reads line by line, 1.5 ms for 35 KB. A bare LF never ends a
  message.
- Addresses are matched by a regular expression before the e-mail package's parser is asked (150 µs each).
- Command limits are kept for each connection: in aiosmtpd one table grows with every EHLO of every connection.
- A client that has said all may close its side (Exim does, having sent QUIT with the last dot): what it said is still
  answered. aiosmtpd drops the answers, so that a stored message comes again.
- ``connection_lost`` reports to the sink, which logs the end of the connection after what it still had in hand.
"""

import asyncio
import re
from collections import defaultdict
from typing import Any, Protocol

from aiosmtpd.smtp import SMTP

MAX_MESSAGE_BYTES = 10 * 1024 * 1024
COMMAND_BYTES = 2048
_HELD_BYTES = 8192
_END = b"\r\n.\r\n"
_PLAIN_ADDRESS = re.compile(r"<([A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+)>(.*)", re.DOTALL)
_HOLDABLE = (b"2", b"4", b"5")  # not 3xx: the client waits for it before it says more


class Watcher(Protocol):
    """Who wants to know of a connection's begin and end."""

    def opened(self, session: "SinkSession") -> None: ...

    def lost(self, session: "SinkSession") -> None: ...


class SinkSession(SMTP):
    line_length_limit = MAX_MESSAGE_BYTES + 1024  # of the StreamReader: a whole message is read in one piece

    def __init__(self, handler: Any, watcher: Watcher, *, port: int, implicit_tls: bool, **options: Any) -> None:
        super().__init__(handler, data_size_limit=MAX_MESSAGE_BYTES, enable_SMTPUTF8=True, **options)
        self.command_size_limits = defaultdict(lambda: COMMAND_BYTES)
        self.command_size_limit = COMMAND_BYTES
        self.watcher = watcher
        self.port = port
        self.implicit_tls = implicit_tls
        self.peer_address = ("?", 0)
        self.local_address = ("?", port)
        self.quit = False
        self.receiving = False  # between DATA and its reply
        self.in_hand: asyncio.Future[Any] | None = None  # a message that is being stored
        self._held = bytearray()
        self._reading_content = False

    # --- begin and end ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        starttls = self._original_transport is not None
        if starttls and self.transport is None:
            # Since Python 3.11 the TLS transport is made late: aiosmtpd would take this for a new connection.
            self.transport = transport
        super().connection_made(transport)
        if not starttls:
            self.peer_address = transport.get_extra_info("peername", ("?", 0))[:2]
            self.local_address = transport.get_extra_info("sockname", ("?", self.port))[:2]
            self.watcher.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.watcher.lost(self)

    def eof_received(self) -> bool | None:
        waiting = bytes(self._reader._buffer)  # type: ignore[attr-defined]
        said_all = waiting.upper().endswith(b"QUIT\r\n") and (not self._reading_content or _END in waiting)
        if self.secure or not said_all:
            return super().eof_received()
        self._reader.feed_eof()
        return True  # the transport stays open for the answers; QUIT closes it

    @property
    def secure(self) -> bool:
        return self.implicit_tls or self._tls_protocol is not None

    # --- replies ------------------------------------------------------------------------------------------------------

    async def push(self, status: str | bytes) -> None:
        reply = status.encode("utf-8", "backslashreplace") if isinstance(status, str) else status
        self._held += reply + b"\r\n"
        more_commands_wait = b"\n" in self._reader._buffer  # type: ignore[attr-defined]
        if more_commands_wait and reply[:1] in _HOLDABLE and not self._closing(reply) and len(self._held) < _HELD_BYTES:
            return
        await self.flush()

    async def flush(self) -> None:
        """Send the replies that were held back."""
        if self._held:
            self._writer.write(bytes(self._held))
            self._held.clear()
            await self._writer.drain()

    @staticmethod
    def _closing(reply: bytes) -> bool:
        return reply[:3] in (b"220", b"221", b"421")

    async def smtp_QUIT(self, arg: str) -> None:
        self.quit = not arg
        await super().smtp_QUIT(arg)

    # --- commands -----------------------------------------------------------------------------------------------------

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        plain = _PLAIN_ADDRESS.fullmatch(arg.strip()) if arg else None
        if plain is not None:
            return plain[1], plain[2]
        try:
            address, rest = super()._getaddr(arg)
        except Exception:  # the e-mail package's parser raises IndexError and others on garbage
            return None, None
        if address and any(character < " " or character == "\x7f" for character in address):
            return None, None
        return address, rest

    async def smtp_DATA(self, arg: str) -> None:
        if await self.check_helo_needed() or await self.check_auth_needed("DATA"):
            return
        assert self.envelope is not None
        if not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 Error: need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        self.receiving = True
        try:
            await self.push("354 End data with <CR><LF>.<CR><LF>")
            self._reading_content = True
            message = await self._read_message()
            self._reading_content = False
            if message is None:
                self._set_post_data_state()  # type: ignore[no-untyped-call]
                await self.push("552 5.3.4 Error: message too big")
                return
            self.envelope.content = self.envelope.original_content = message
            status = await self._call_handler_hook("DATA")
            self._set_post_data_state()  # type: ignore[no-untyped-call]
        finally:
            self.receiving = self._reading_content = False
        await self.push(status)

    async def _read_message(self) -> bytes | None:
        """The message without its last dot, transparency undone (RFC 5321 §4.5.2); None when it is too big."""
        self._reset_timeout()
        first = await self._read_until(b"\r\n")
        if first == b".\r\n":
            return b""
        if first is not None:
            # Give the line's end back: the next line may be the dot.
            self._reader._buffer[0:0] = b"\r\n"  # type: ignore[attr-defined]
            rest = await self._read_until(_END)
            raw = None if rest is None else first[:-2] + rest[: -len(b".\r\n")]
        else:
            await self._read_until(_END)
            raw = None
        if raw is None or len(raw) > MAX_MESSAGE_BYTES:
            return None
        return raw.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    async def _read_until(self, end: bytes) -> bytes | None:
        """Up to and with ``end``; None when that was more than a message may have, all of it read and dropped."""
        too_big = False
        while True:
            try:
                data = await self._reader.readuntil(end)
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(max(error.consumed, 1))
                too_big = True
            else:
                return None if too_big else data
