"""The asyncio Protocol against real servers: the development sink (aiosmtpd), and one that behaves badly."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from mailer_lib.agent.smtp.connection import SmtpConnection, connect, is_loopback, tls_context
from mailer_lib.agent.smtp.protocol import (
    Broken,
    Closed,
    ContentWanted,
    Envelope,
    Event,
    Finished,
    Ready,
    SessionConfig,
    Stage,
)
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import SmtpSecurity
from tests.support_agent import message_ids

RULES = """
domains:
  full.example: {refuse: {code: 552, enhanced: 5.2.2, text: "Mailbox full"}}
  later.example: {defer: {at: dot}}
  gone.example: {vanish: {}}
"""


@dataclass
class Client:
    """Sends a list of recipients over one connection, overlapping where it may."""

    recipients: list[str]
    answers: dict[str, str] = field(default_factory=dict)
    broken: Broken[str] | None = None
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def _next(self) -> tuple[str, Envelope] | None:
        if not self.recipients:
            return None
        name = self.recipients.pop(0)
        return name, Envelope("b@bounce.example", name, 1000)

    def on_events(self, connection: SmtpConnection[str], events: list[Event[str]]) -> None:
        session = connection.session
        wanted = None
        for event in events:
            if isinstance(event, Finished):
                yes = event.stage is Stage.DOT and event.reply.positive
                self.answers[event.message] = "taken" if yes else str(event.reply.code)
            elif isinstance(event, ContentWanted):
                wanted = event.message
            elif isinstance(event, Broken):
                self.broken = event
            else:
                assert isinstance(event, Ready | Closed)
        if session.over:
            if not self.done.done():
                self.done.set_result(None)
        elif wanted is not None:
            key = wanted.encode().hex().ljust(32, "0")[:32]
            session.send_content(
                f"Message-ID: <{key}@x.example>\r\nSubject: hello\r\n\r\n".encode() + b".dot\r\n" * 500,
                self._next() if session.pipelining else None,
            )
        elif session.idle:
            following = self._next()
            if following is None:
                session.quit()
            else:
                session.begin(*following)


def talk(
    port: int, recipients: list[str], config: SessionConfig, context: ssl.SSLContext | None = None, uv: bool = True
) -> Client:
    async def run() -> Client:
        client = Client(list(recipients))
        connection = await connect("1.1", client, "localhost", port, config, timeout_s=10, context=context)
        await asyncio.wait_for(client.done, 20)
        connection.abort()
        await connection.gone
        return client

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if uv else None) as runner:
        return runner.run(run())


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with start(tmp_path_factory.mktemp("plain"), rules=RULES, fsync=False) as process:
        yield process


@pytest.fixture(scope="module")
def tls_sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with start(
        tmp_path_factory.mktemp("tls"),
        require_starttls=True,
        auth={"agent": "geheim"},
        listen_tls=("127.0.0.1:0",),
        fsync=False,
    ) as process:
        yield process


def trusting(sink: SinkProcess, security: SmtpSecurity) -> ssl.SSLContext:
    context = tls_context(security)
    context.load_verify_locations(sink.certificate)
    return context


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_many_messages_go_over_one_connection(sink: SinkProcess, uv: bool) -> None:
    before = len(message_ids(sink.maildir))
    people = [f"p{n}@ok{uv}.example" for n in range(50)]
    client = talk(sink.port, people, SessionConfig("agent.example"), uv=uv)
    assert client.answers == dict.fromkeys(people, "taken")
    assert client.broken is None
    assert len(message_ids(sink.maildir)) == before + 50


def test_each_answer_finds_its_message(sink: SinkProcess) -> None:
    people = [f"p{n}@{('full', 'ok', 'later', 'ok', 'later', 'full')[n % 6]}.example" for n in range(60)]
    client = talk(sink.port, people, SessionConfig("agent.example"))
    expected = {"full": "552", "ok": "taken", "later": "451"}
    assert client.answers == {name: expected[name.partition("@")[2][:-8]] for name in people}


def test_a_connection_that_vanishes_leaves_one_message_in_doubt(sink: SinkProcess) -> None:
    client = talk(sink.port, ["a@ok.example", "b@gone.example", "c@ok.example"], SessionConfig("agent.example"))
    assert client.answers == {"a@ok.example": "taken"}
    assert client.broken is not None
    assert client.broken.in_doubt == ("b@gone.example",)
    assert client.broken.unsent in ((), ("c@ok.example",))


@pytest.mark.parametrize("security", [SmtpSecurity.STARTTLS, SmtpSecurity.OPPORTUNISTIC])
@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_starttls_and_auth(tls_sink: SinkProcess, security: SmtpSecurity, uv: bool) -> None:
    config = SessionConfig("agent.example", security, False, "agent", "geheim")
    client = talk(tls_sink.port, ["a@x.example", "b@x.example"], config, trusting(tls_sink, security), uv=uv)
    assert client.answers == {"a@x.example": "taken", "b@x.example": "taken"}


def test_implicit_tls(tls_sink: SinkProcess) -> None:
    config = SessionConfig("agent.example", SmtpSecurity.IMPLICIT, False, "agent", "geheim")
    client = talk(tls_sink.tls_ports[0], ["a@x.example"], config, trusting(tls_sink, SmtpSecurity.IMPLICIT))
    assert client.answers == {"a@x.example": "taken"}


def test_a_wrong_password_breaks_the_session_and_not_the_message(tls_sink: SinkProcess) -> None:
    config = SessionConfig("agent.example", SmtpSecurity.STARTTLS, False, "agent", "falsch")
    client = talk(tls_sink.port, ["a@x.example"], config, trusting(tls_sink, SmtpSecurity.STARTTLS))
    assert client.answers == {}
    assert client.broken is not None and client.broken.reason.startswith("AUTH was refused: 535")


@pytest.mark.parametrize("uv", [True, False], ids=["uvloop", "asyncio"])
def test_an_untrusted_certificate_is_refused_unless_tls_is_only_opportunistic(tls_sink: SinkProcess, uv: bool) -> None:
    config = SessionConfig("agent.example", SmtpSecurity.STARTTLS, False, "agent", "geheim")
    client = talk(tls_sink.port, ["a@x.example"], config, tls_context(SmtpSecurity.STARTTLS), uv=uv)
    assert client.answers == {}
    assert client.broken is not None and "certificate" in client.broken.reason
    config = SessionConfig("agent.example", SmtpSecurity.OPPORTUNISTIC, False, "agent", "geheim")
    client = talk(tls_sink.port, ["a@x.example"], config, tls_context(SmtpSecurity.OPPORTUNISTIC), uv=uv)
    assert client.answers == {"a@x.example": "taken"}


# --- a server that behaves badly --------------------------------------------------------------------------------------

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def against(behaviour: Behaviour, recipients: list[str]) -> Client:
    async def run() -> Client:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await behaviour(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            client = Client(list(recipients))
            port = server.sockets[0].getsockname()[1]
            connection = await connect("1.1", client, "127.0.0.1", port, SessionConfig("a.example"), timeout_s=10)
            await asyncio.wait_for(client.done, 20)
            connection.abort()
            await connection.gone
        return client

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def until_data(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A decent beginning: up to and with the 354 of the first message."""
    writer.write(b"220 mx\r\n")
    await reader.readline()
    writer.write(b"250-mx\r\n250 PIPELINING\r\n")
    for reply in (b"250 OK\r\n", b"250 OK\r\n", b"354 go\r\n"):
        await reader.readline()
        writer.write(reply)


async def silent_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"")


async def a_web_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def a_reply_of_a_megabyte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for _ in range(1024):
        writer.write(b"220-" + b"x" * 1020 + b"\r\n")
    await writer.drain()


async def close_after_354(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await until_data(reader, writer)


async def close_after_the_dot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await until_data(reader, writer)
    await reader.readuntil(b"\r\n.\r\n")


async def garbage_after_the_dot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await close_after_the_dot(reader, writer)
    writer.write(b"\x00\x01\x02" * 5000)


async def byte_by_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def say(reply: bytes) -> None:
        for byte in reply:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    await say(b"220-mx\r\n220 mx\r\n")
    await reader.readline()
    await say(b"250-mx\r\n250 PIPELINING\r\n")
    for _ in range(2):
        for reply in (b"250 OK\r\n", b"250 OK\r\n", b"354 go\r\n"):
            await reader.readline()
            await say(reply)
        await reader.readuntil(b"\r\n.\r\n")
        await say(b"250-OK\r\n250 OK\r\n")
    await reader.readline()
    await say(b"221 bye\r\n")


@pytest.mark.parametrize(
    ("behaviour", "in_doubt"),
    [
        (silent_close, ()),
        (a_web_server, ()),
        (a_reply_of_a_megabyte, ()),
        (close_after_the_dot, ("a@x.example",)),
        (garbage_after_the_dot, ("a@x.example",)),
    ],
)
def test_doubt_is_only_about_what_was_sent(behaviour: Behaviour, in_doubt: tuple[str, ...]) -> None:
    client = against(behaviour, ["a@x.example", "b@x.example"])
    assert client.answers == {}
    assert client.broken is not None
    assert client.broken.in_doubt == in_doubt
    assert client.broken.unsent == (("b@x.example",) if in_doubt else ())


def test_a_connection_closed_at_the_354_loses_nothing() -> None:
    client = against(close_after_354, ["a@x.example", "b@x.example"])
    assert client.broken is not None
    assert {*client.broken.in_doubt, *client.broken.unsent} >= {"a@x.example"}


def test_replies_that_come_byte_by_byte() -> None:
    client = against(byte_by_byte, ["a@x.example", "b@x.example"])
    assert client.answers == {"a@x.example": "taken", "b@x.example": "taken"}
    assert client.broken is None


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("mail.example", False)]
)
def test_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


def test_a_refused_connection_is_an_os_error(tmp_path: Path) -> None:
    from tests.support import free_port

    with pytest.raises(OSError):
        talk(free_port(), [], SessionConfig("a.example"))
