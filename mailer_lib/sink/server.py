"""The development mail sink: takes mail like an MTA, keeps it in a Maildir, and delivers it to nobody.

    <root>/<name>/Maildir/      what was taken
                 /mainlog       Exim's form (sink/mainlog.py), written after the message is durable and before the 250
                 /rules.yaml    whom to refuse, defer, slow down (sink/rules.py)
                 /ports.json    {"pid": …, "listen": [["127.0.0.1", 2525], …], "listen_tls": [...]}

One process, one event loop, several listen addresses. A message is stored and logged by a thread in one piece: a client
that vanishes cancels its session, never the storing, and the line that ends the connection in the log comes after. With
``fsync`` off it is done on the loop itself.

SIGTERM and SIGINT end it gracefully: no new connections, a 421 to who is idle, messages in hand are finished. SIGHUP
rotates the log. ``python -m mailer_lib.sink.server --help`` for the options.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from mailer_lib.agent.job import replace_file
from mailer_lib.sink.maildir import envelope_lines, make_maildir, store
from mailer_lib.sink.mainlog import MainLog, queue_ids, token
from mailer_lib.sink.rules import Fate, RuleBook
from mailer_lib.sink.session import SinkSession

STOP_GRACE_S = 5.0
STORING_THREADS = 8
_MESSAGE_ID = re.compile(rb"(?im)^message-id:[ \t]*(?:\r\n[ \t]+)?<([^<>\r\n]*)>")

Address = tuple[str, int]


class SinkError(RuntimeError):
    """The sink can't start; the sentence says why."""


@dataclass(frozen=True)
class SinkOptions:
    root: Path
    name: str = "sink"
    listen: tuple[Address, ...] = (("127.0.0.1", 2525),)
    listen_tls: tuple[Address, ...] = ()  # TLS from the first byte
    starttls: bool = False
    require_starttls: bool = False
    auth: tuple[tuple[str, str], ...] = ()  # (user, password): then AUTH is required
    fsync: bool = True
    log_max_bytes: int | None = None
    stop_on_stdin_eof: bool = False  # end when the parent does

    @property
    def folder(self) -> Path:
        return self.root / self.name


class Sink:
    """The handler of every connection (aiosmtpd's hooks), and their watcher."""

    def __init__(self, options: SinkOptions) -> None:
        self.options = options
        self._maildir = options.folder / "Maildir"
        make_maildir(self._maildir)
        self.log = MainLog(options.folder / "mainlog", options.log_max_bytes)
        self._rules = RuleBook(options.folder / "rules.yaml")
        self._said_problem = ""
        self._next_id = queue_ids()
        self._storing = ThreadPoolExecutor(STORING_THREADS, "store")
        self.sessions: set[SinkSession] = set()
        self.stopping = asyncio.Event()

    def close(self) -> None:
        """Finish what is being stored, end the log."""
        self._storing.shutdown(wait=True)
        self.log.close()

    # --- watcher ------------------------------------------------------------------------------------------------------

    def opened(self, session: SinkSession) -> None:
        self.sessions.add(session)
        self.log.write(f"SMTP connection from {_ends(session)} (TCP/IP connection count = {len(self.sessions)})")

    def lost(self, session: SinkSession) -> None:
        self.sessions.discard(session)
        how = "closed by QUIT" if session.quit else "lost"
        helo = session.session.host_name if session.session and session.session.host_name else None
        line = f"SMTP connection from {f'({token(helo)}) ' if helo else ''}{_ends(session)} {how}"
        if session.in_hand is not None and not session.in_hand.done():
            session.in_hand.add_done_callback(lambda _: self.log.write(line))
        else:
            self.log.write(line)

    # --- aiosmtpd's hooks ---------------------------------------------------------------------------------------------

    async def handle_EHLO(
        self, server: SinkSession, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        kept = [line for line in responses[1:-1] if "AUTH" not in line or self._auth_offered(server)]
        return [responses[0], "250-PIPELINING", "250-ENHANCEDSTATUSCODES", *kept, responses[-1]]

    async def handle_RCPT(
        self, server: SinkSession, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.stopping.is_set():
            return "421 4.3.2 the sink is shutting down"
        verdict = self._rules.at_rcpt(address)
        self._report_problem()
        if verdict.delay_ms:
            await server.flush()
            await self._delay(verdict.delay_ms)
        if verdict.fate is not Fate.TAKE:
            self._log_refusal(server, envelope, address, verdict.reply, "RCPT")
            return verdict.reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SinkSession, session: Session, envelope: Envelope) -> str:
        message = envelope.original_content
        assert message is not None
        verdicts = [self._rules.after_dot(address) for address in envelope.rcpt_tos]
        if delay_ms := max(verdict.delay_ms for verdict in verdicts):
            await server.flush()
            await self._delay(delay_ms)
        for address, verdict in zip(envelope.rcpt_tos, verdicts, strict=True):
            if verdict.fate in (Fate.REFUSE, Fate.DEFER):
                self._log_refusal(server, envelope, address, verdict.reply, "after DATA")
                return verdict.reply
        accept = partial(self._accept, _Arrival.of(server, session, envelope), bytes(message))
        if self.options.fsync:
            queue_id = await self._in_a_thread(server, accept)
        else:
            queue_id = accept()
        if any(verdict.fate is Fate.VANISH for verdict in verdicts):
            assert server.transport is not None
            server.transport.abort()  # type: ignore[attr-defined]
        return f"250 2.0.0 OK id={queue_id}"

    async def handle_exception(self, error: Exception) -> str:
        """A storing that failed, or garbage that the state machine trips over: no detail, no address."""
        self.log.write(f"session error: {type(error).__name__}")
        if isinstance(error, OSError):
            return "452 4.3.1 can't store the message"
        return "451 4.3.0 local error"

    def authenticate(self, server: Any, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and any(
            data.login == user.encode() and data.password == password.encode() for user, password in self.options.auth
        )
        return AuthResult(success=good, handled=False)

    async def _delay(self, milliseconds: int) -> None:
        """A slow receiver; hurries when the sink is told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), milliseconds / 1000)

    # --- taking a message ---------------------------------------------------------------------------------------------

    def _accept(self, arrival: "_Arrival", message: bytes) -> str:
        """Store, then log: in one piece, whatever becomes of the connection. Returns the queue id."""
        queue_id = self._next_id()
        store(self._maildir, queue_id, message, arrival.envelope_lines(queue_id), fsync=self.options.fsync)
        self.log.write(f"{queue_id} <= {arrival.log_fields(message)}")
        return queue_id

    async def _in_a_thread(self, server: SinkSession, accept: "partial[str]") -> str:
        loop = asyncio.get_running_loop()
        # A second descriptor keeps the socket in the kernel's tables while the message is in hand: who waits for the
        # connection's sockets to be gone, before he looks into the log, waits for this line too.
        transport = server.transport
        connection = transport.get_extra_info("socket") if transport is not None else None
        twin = os.dup(connection.fileno()) if connection is not None else None
        future = loop.run_in_executor(self._storing, accept)
        server.in_hand = future
        if twin is not None:
            future.add_done_callback(lambda _: os.close(twin))
        return await asyncio.shield(future)

    def _log_refusal(self, server: SinkSession, envelope: Envelope, address: str, reply: str, when: str) -> None:
        temporarily = "temporarily " if reply.startswith("4") else ""
        host = token(server.session.host_name or "-") if server.session else "-"
        self.log.write(
            f"H={host} {_ends(server)} F=<{token(envelope.mail_from or '')}> {temporarily}rejected {when} "
            f"<@{token(address.rpartition('@')[2])}>: {reply}"
        )

    def _report_problem(self) -> None:
        if self._rules.problem != self._said_problem:
            self._said_problem = self._rules.problem
            if self._said_problem:
                self.log.write(f"rules: the old ones stay in force: {' | '.join(self._said_problem.splitlines())}")

    def _auth_offered(self, server: SinkSession) -> bool:
        tls_possible = self.options.starttls or self.options.require_starttls
        return bool(self.options.auth) and (server.secure or not tls_possible)


@dataclass(frozen=True)
class _Arrival:
    """What the log and the Maildir say of a message's way in."""

    helo: str
    ends: str
    peer: str
    protocol: str
    sender: str
    recipients: tuple[str, ...]

    @classmethod
    def of(cls, server: SinkSession, session: Session, envelope: Envelope) -> "_Arrival":
        return cls(
            helo=token(session.host_name or "-"),
            ends=_ends(server),
            peer=str(server.peer_address[0]),
            protocol=_protocol(server, session),
            sender=token(envelope.mail_from or "").removeprefix("<").removesuffix(">"),
            recipients=tuple(envelope.rcpt_tos),
        )

    def envelope_lines(self, queue_id: str) -> bytes:
        return envelope_lines(
            self.sender,
            self.recipients,
            helo=self.helo,
            peer=self.peer,
            protocol=self.protocol.upper(),
            queue_id=queue_id,
        )

    def log_fields(self, message: bytes) -> str:
        head = message[: max(message.find(b"\r\n\r\n"), 0) or len(message)]
        found = _MESSAGE_ID.search(head)
        message_id = f" id={token(found[1].decode('ascii', 'replace').strip())}" if found else ""
        return f"{self.sender or '<>'} H={self.helo} {self.ends} P={self.protocol} S={len(message)}{message_id}"


def _ends(session: SinkSession) -> str:
    peer, local = session.peer_address, session.local_address
    return f"[{peer[0]}]:{peer[1]} I=[{local[0]}]:{local[1]}"


def _protocol(server: SinkSession, session: Session) -> str:
    if not session.extended_smtp:
        return "smtp"
    return "esmtp" + ("s" if server.secure else "") + ("a" if session.authenticated else "")


# --- the process ------------------------------------------------------------------------------------------------------


async def serve(options: SinkOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SinkError: an address can't be listened on.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    ports_file = options.folder / "ports.json"
    ports_file.unlink(missing_ok=True)
    sink = Sink(options)
    tls = _tls(options) if options.starttls or options.require_starttls or options.listen_tls else None
    stop = _stop_event(sink, options)
    servers = [await _listen(sink, address, tls, implicit_tls=False) for address in options.listen]
    servers_tls = [await _listen(sink, address, tls, implicit_tls=True) for address in options.listen_tls]
    bound = {"pid": os.getpid(), "listen": _bound(servers), "listen_tls": _bound(servers_tls)}
    replace_file(ports_file, json.dumps(bound).encode())
    sink.log.write(f"sink {options.name} started, listening on {_in_words(bound)}")
    print(json.dumps(bound), flush=True)  # noqa: T201 - who started us waits for this line
    await stop.wait()
    await _shut_down(sink, servers + servers_tls)
    ports_file.unlink(missing_ok=True)


def _tls(options: SinkOptions) -> ssl.SSLContext:
    from mailer_lib.sink.certificate import server_context  # x509 takes a fifth of the start; few sinks speak TLS

    return server_context(options.folder)


def _stop_event(sink: Sink, options: SinkOptions) -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, sink.log.rotate)
    if options.stop_on_stdin_eof:

        def parent_gone() -> None:
            if not os.read(0, 4096):
                loop.remove_reader(0)
                stop.set()

        loop.add_reader(0, parent_gone)
    return stop


async def _listen(sink: Sink, address: Address, tls: ssl.SSLContext | None, *, implicit_tls: bool) -> asyncio.Server:
    options = sink.options

    def session() -> SinkSession:
        return SinkSession(
            sink,
            sink,
            port=address[1],
            implicit_tls=implicit_tls,
            hostname="sink.localhost",
            ident="Mailfleet development sink",
            tls_context=None if implicit_tls else tls,
            require_starttls=options.require_starttls,
            auth_required=bool(options.auth),
            auth_require_tls=bool(options.auth) and not implicit_tls and (options.starttls or options.require_starttls),
            authenticator=sink.authenticate,
            loop=asyncio.get_running_loop(),
        )

    try:
        return await asyncio.get_running_loop().create_server(
            session, address[0], address[1], ssl=tls if implicit_tls else None, backlog=1024
        )
    except OSError as error:
        raise SinkError(f"can't listen on {address[0]}:{address[1]}: {error.strerror or error}") from None


def _bound(servers: Sequence[asyncio.Server]) -> list[list[str | int]]:
    return [list(server.sockets[0].getsockname()[:2]) for server in servers]


def _in_words(bound: dict[str, Any]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in bound["listen"] + bound["listen_tls"])


async def _shut_down(sink: Sink, servers: Sequence[asyncio.Server]) -> None:
    """No new connections; who receives nothing gets a 421; the rest have a few seconds."""
    sink.stopping.set()
    for server in servers:
        server.close()
    deadline = asyncio.get_running_loop().time() + STOP_GRACE_S
    while sink.sessions and asyncio.get_running_loop().time() < deadline:
        for session in [session for session in sink.sessions if not session.receiving]:
            with contextlib.suppress(ConnectionError, RuntimeError):
                await session.push("421 4.3.2 the sink is shutting down")
            if session.transport is not None:
                session.transport.close()
        await asyncio.sleep(0.02)
    for session in list(sink.sessions):
        if session.transport is not None:
            session.transport.abort()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    sink.log.write("sink stopped")
    await asyncio.get_running_loop().run_in_executor(None, sink.close)


def parse_address(text: str) -> Address:
    """``HOST:PORT``, ``[v6]:PORT``; port 0: any free one.

    Raises:
        SinkError: anything else.
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SinkError(f"'{text}' is no address to listen on; write HOST:PORT, such as 127.0.0.1:2525")
    return host, int(port)


def run(options: SinkOptions) -> None:
    """Serve in this process until it is told to stop.

    Raises:
        SinkError: it can't start.
    """
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's: it would log addresses
    uses_tls = options.starttls or options.require_starttls
    if uses_tls:  # aiosmtpd puts asyncio's own SSLProtocol over the connection, which uvloop's transports don't carry
        asyncio.run(serve(options))
    else:
        uvloop.run(serve(options))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mailer_lib.sink.server", description="development mail sink")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", default="sink")
    parser.add_argument("--listen", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--listen-tls", action="append", default=[], metavar="HOST:PORT")
    parser.add_argument("--starttls", action="store_true")
    parser.add_argument("--require-starttls", action="store_true")
    parser.add_argument("--auth-file", type=Path, help="lines of user:password")
    parser.add_argument("--no-fsync", action="store_true")
    parser.add_argument("--log-max-bytes", type=int)
    parser.add_argument("--stop-on-stdin-eof", action="store_true")
    given = parser.parse_args(arguments)
    try:
        run(
            SinkOptions(
                root=given.root.absolute(),
                name=given.name,
                listen=tuple(map(parse_address, given.listen)),
                listen_tls=tuple(map(parse_address, given.listen_tls)),
                starttls=given.starttls,
                require_starttls=given.require_starttls,
                auth=read_auth(given.auth_file) if given.auth_file else (),
                fsync=not given.no_fsync,
                log_max_bytes=given.log_max_bytes,
                stop_on_stdin_eof=given.stop_on_stdin_eof,
            )
        )
    except SinkError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def read_auth(path: Path) -> tuple[tuple[str, str], ...]:
    """Who may log in: lines of ``user:password``.

    Raises:
        SinkError: a line without a colon, or no file.
    """
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise SinkError(f"can't read {path}: {error.strerror}") from None
    pairs = [line.partition(":") for line in lines]
    for number, (user, colon, _) in enumerate(pairs, 1):
        if not user or not colon:
            raise SinkError(f"{path}, line {number}: write user:password")
    return tuple((user, password) for user, _, password in pairs)


if __name__ == "__main__":
    sys.exit(main())
