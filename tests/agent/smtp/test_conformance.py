"""The SMTP client against the MTAs that will be at the other end: a real Exim and a real Postfix, each with and without
PIPELINING and CHUNKING, and Exim with STARTTLS. What they accept is handed on to the development sink, so that what
arrived can be compared byte by byte.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path

import pytest
import uvloop

from mailer_lib.agent.smtp.connection import SmtpConnection, connect, tls_context
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
from tests.mta.exim import Exim
from tests.mta.postfix import Postfix

DOMAINS = ("taken.example", "refusing.example", "taken.example", "greylisting.example", "content.example")
ANSWERS = {
    "taken.example": (Stage.DOT, 250, {"", "2.0.0"}),
    "refusing.example": (Stage.RCPT, 550, {"5.1.1"}),
    "greylisting.example": (Stage.RCPT, None, {"4.7.1"}),
    "content.example": (Stage.DOT, 550, {"5.7.1"}),
}
BODY = (
    ".a dot leads\r\n..two\r\n.\r\n\r\n.\r\nsechzehn Grüße, 私\r\n"
    + "x" * 990
    + "\r\nBDAT 3 LAST\r\nQUIT\r\n\t \r\nend\r\n"
).encode()


def content(recipient: str) -> bytes:
    head = f"From: a@b.example\r\nTo: {recipient}\r\nSubject: x\r\nMessage-ID: <{recipient}>\r\nMIME-Version: 1.0\r\n"
    return head.encode() + b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + BODY


@dataclass
class Client:
    """Sends to a list of recipients over one connection, overlapping where it may, then says good-bye."""

    recipients: list[str]
    answers: dict[str, tuple[Stage, int, str]] = field(default_factory=dict)
    ended: list[Event[str]] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def _next(self) -> tuple[str, Envelope] | None:
        if not self.recipients:
            return None
        name = self.recipients.pop(0)
        return name, Envelope("b@bounce.example", name, len(content(name)), eight_bit=True)

    def on_events(self, connection: SmtpConnection[str], events: list[Event[str]]) -> None:
        session = connection.session
        wanted = None
        for event in events:
            if isinstance(event, Finished):
                assert event.message not in self.answers
                self.answers[event.message] = (event.stage, event.reply.code, event.reply.enhanced)
            elif isinstance(event, ContentWanted):
                wanted = event.message
            elif isinstance(event, Ready):
                self.said |= {name for name in ("pipelining", "chunking") if getattr(session, name)}
            elif isinstance(event, Broken | Closed):
                self.ended.append(event)
                if not self.done.done():
                    self.done.set_result(None)
        if wanted is not None:
            session.send_content(content(wanted), self._next() if session.pipelining else None)
        elif session.idle:
            following = self._next()
            if following is None:
                session.quit()
            else:
                session.begin(*following)
        connection.flush()


def send(port: int, recipients: list[str], security: SmtpSecurity = SmtpSecurity.NONE) -> Client:
    """Until every recipient has an answer or a connection gives none; what came back unsent is sent again."""

    async def run() -> Client:
        client = Client(recipients)
        context = None if security is SmtpSecurity.NONE else tls_context(security)
        config = SessionConfig("agent.example", security, loopback=True)
        while True:
            before = len(client.answers)
            client.done = asyncio.get_running_loop().create_future()
            await connect("1.1", client, "127.0.0.1", port, config, timeout_s=10, context=context)
            await asyncio.wait_for(client.done, 60)
            end = client.ended[-1]
            if isinstance(end, Closed) or len(client.answers) == before:
                return client
            assert isinstance(end, Broken)
            assert not end.in_doubt
            client.recipients[:0] = end.unsent

    return uvloop.run(run())


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path, name="onward", fsync=False) as running:
        yield running


def arrived(sink: SinkProcess, count: int) -> dict[str, bytes]:
    """Bodies by recipient, once ``count`` messages are there."""
    deadline = time.monotonic() + 60
    while len(list((sink.maildir / "new").iterdir())) < count:
        assert time.monotonic() < deadline, "what the MTA took doesn't come on"
        time.sleep(0.1)
    found = {}
    for path in (sink.maildir / "new").iterdir():
        raw = path.read_bytes()
        mail = message_from_bytes(raw)
        assert mail["To"] not in found
        found[mail["To"]] = raw.replace(b"\r\n", b"\n").partition(b"\n\n")[2]
    return found


def check(client: Client, people: list[str], sink: SinkProcess, *, offered: set[str]) -> None:
    assert client.said == offered
    assert client.ended[-1] == Closed()
    assert set(client.answers) == set(people)
    for person, (stage, code, enhanced) in client.answers.items():
        wanted_stage, wanted_code, wanted_enhanced = ANSWERS[person.partition("@")[2]]
        assert (stage, enhanced in wanted_enhanced) == (wanted_stage, True), (person, stage, code, enhanced)
        assert code == wanted_code or (wanted_code is None and 400 <= code < 500)
    taken = [person for person in people if person.endswith("@taken.example")]
    bodies = arrived(sink, len(taken))
    assert set(bodies) == set(taken)
    assert set(bodies.values()) == {BODY.replace(b"\r\n", b"\n")}


@pytest.mark.e2e
@pytest.mark.parametrize("chunking", [True, False], ids=["bdat", "data"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "step by step"])
@pytest.mark.parametrize("server", [Exim, Postfix])
def test_each_recipient_gets_its_own_answer_and_each_message_arrives_as_it_was(
    tmp_path: Path, sink: SinkProcess, server: type[Exim] | type[Postfix], pipelining: bool, chunking: bool
) -> None:
    people = [f"p{n}@{DOMAINS[n % len(DOMAINS)]}" for n in range(40)]
    mta = server(tmp_path / "mta", sink.port, pipelining=pipelining, chunking=chunking)
    if isinstance(mta, Exim):
        mta.runner_every_s = 1
    with mta:
        client = send(mta.port, list(people))
        offered = {name for name, is_so in (("pipelining", pipelining), ("chunking", chunking)) if is_so}
        check(client, people, sink, offered=offered)
        if isinstance(mta, Exim):
            assert not mta.panics
        if isinstance(mta, Exim) or chunking or not pipelining:
            assert client.ended == [Closed()]
        else:  # Postfix keeps what it refused after DATA open: only a new connection is safe
            assert len(client.ended) > 1


@pytest.mark.e2e
def test_over_starttls_too(tmp_path: Path, sink: SinkProcess) -> None:
    people = [f"p{n}@{DOMAINS[n % len(DOMAINS)]}" for n in range(20)]
    with Exim(tmp_path / "mta", sink.port, runner_every_s=1, starttls=True) as mta:
        refused = send(mta.port, list(people), SmtpSecurity.STARTTLS)
        assert not refused.answers  # its certificate is nobody's, and this policy asks for a good one
        assert isinstance(refused.ended[0], Broken)
        assert "certificate" in refused.ended[0].reason
        client = send(mta.port, list(people), SmtpSecurity.OPPORTUNISTIC)
        check(client, people, sink, offered={"pipelining", "chunking"})
        accepted = [line for line in mta.log.read_text().splitlines() if " <= " in line]
        assert [" X=TLS" in line for line in accepted] == [True] * sum(p.endswith("@taken.example") for p in people)
