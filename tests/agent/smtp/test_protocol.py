"""The state machine against scripted replies, and against a server model that does whatever RFC 5321 allows."""

import base64
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailer_lib.agent.smtp.protocol import (
    Broken,
    Closed,
    ContentWanted,
    Envelope,
    Event,
    Finished,
    Ready,
    SessionConfig,
    SmtpSession,
    Stage,
    StartTls,
)
from mailer_lib.agent.smtp.replies import Reply
from mailer_lib.terms import SmtpSecurity

Session = SmtpSession[str]
ENVELOPE = Envelope("b-1@bounce.example", "ann@example.org", 100)
BODY = b"Subject: x\r\n\r\nhello\r\n"
PIPELINING = b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 1000000\r\n"


def opened(extensions: bytes = PIPELINING, config: SessionConfig | None = None) -> Session:
    session = Session(config or SessionConfig("agent.example"))
    assert session.output() == b""
    assert session.receive(b"220 mx ESMTP\r\n") == []
    assert session.output() == b"EHLO agent.example\r\n"
    assert session.receive(extensions) == [Ready()]
    assert session.idle
    return session


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_server_without_ehlo_is_greeted_with_helo() -> None:
    session = Session(SessionConfig("agent.example"))
    session.receive(b"220 mx\r\n")
    session.output()
    assert session.receive(b"502 what?\r\n") == []
    assert session.output() == b"HELO agent.example\r\n"
    assert session.receive(b"250 mx\r\n") == [Ready()]
    assert not session.pipelining


@pytest.mark.parametrize("greeting", [b"554 no\r\n", b"421 busy\r\n", b"250 what\r\n"])
def test_a_server_that_refuses_the_connection(greeting: bytes) -> None:
    (event,) = Session(SessionConfig("agent.example")).receive(greeting)
    assert isinstance(event, Broken)
    assert "refuses the connection" in event.reason


def starttls_session(
    security: SmtpSecurity, extensions: bytes = b"250-mx\r\n250 STARTTLS\r\n"
) -> tuple[Session, list[Event[str]]]:
    session = Session(SessionConfig("agent.example", security))
    session.receive(b"220 mx\r\n")
    session.output()
    return session, session.receive(extensions)


@pytest.mark.parametrize("security", [SmtpSecurity.STARTTLS, SmtpSecurity.OPPORTUNISTIC])
def test_starttls_forgets_what_was_said_in_the_clear(security: SmtpSecurity) -> None:
    session, events = starttls_session(security, b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
    assert events == []
    assert session.output() == b"STARTTLS\r\n"
    assert session.receive(b"220 go\r\n") == [StartTls()]
    session.tls_started()
    assert session.output() == b"EHLO agent.example\r\n"
    assert session.receive(b"250-mx\r\n250 STARTTLS\r\n") == [Ready()]
    assert not session.pipelining


def test_a_plain_text_reply_slipped_in_behind_starttls_is_refused() -> None:
    session, _ = starttls_session(SmtpSecurity.STARTTLS)
    for slipped in (b"220 go\r\n250 PIPELINING\r\n", b"220 go\r\n250"):
        session, _ = starttls_session(SmtpSecurity.STARTTLS)
        events = session.receive(slipped)
        assert any(isinstance(event, Broken) for event in events)


def test_required_tls_is_never_gone_without() -> None:
    _, events = starttls_session(SmtpSecurity.STARTTLS, b"250 mx\r\n")
    assert isinstance(events[0], Broken)
    session, _ = starttls_session(SmtpSecurity.STARTTLS)
    assert isinstance(session.receive(b"454 not now\r\n")[0], Broken)


def test_opportunistic_tls_is_gone_without() -> None:
    _, events = starttls_session(SmtpSecurity.OPPORTUNISTIC, b"250 mx\r\n")
    assert events == [Ready()]
    session, _ = starttls_session(SmtpSecurity.OPPORTUNISTIC)
    assert session.receive(b"454 not now\r\n") == [Ready()]


def auth_session(offered: bytes, *, loopback: bool = True, tls: bool = False) -> tuple[Session, list[Event[str]]]:
    config = SessionConfig("agent.example", SmtpSecurity.NONE, loopback, "me", "geheim ü")
    session = Session(config, tls_active=tls)
    session.receive(b"220 mx\r\n")
    session.output()
    return session, session.receive(b"250-mx\r\n250 " + offered + b"\r\n")


def test_auth_plain() -> None:
    session, events = auth_session(b"AUTH LOGIN PLAIN")
    assert events == []
    assert session.output() == b"AUTH PLAIN " + base64.b64encode("\0me\0geheim ü".encode()) + b"\r\n"
    assert session.receive(b"235 OK\r\n") == [Ready()]


@pytest.mark.parametrize("offered", [b"AUTH LOGIN", b"AUTH=LOGIN"])
def test_auth_login(offered: bytes) -> None:
    session, _ = auth_session(offered, loopback=False, tls=True)
    assert session.output() == b"AUTH LOGIN\r\n"
    session.receive(b"334 VXNlcm5hbWU6\r\n")
    assert session.output() == base64.b64encode(b"me") + b"\r\n"
    session.receive(b"334 UGFzc3dvcmQ6\r\n")
    assert session.output() == base64.b64encode("geheim ü".encode()) + b"\r\n"
    assert session.receive(b"235 OK\r\n") == [Ready()]


def test_a_password_never_crosses_a_network_in_the_clear() -> None:
    session, events = auth_session(b"AUTH PLAIN", loopback=False)
    assert isinstance(events[0], Broken)
    assert session.output() == b""


def test_a_refused_login_says_nothing_of_the_password() -> None:
    session, _ = auth_session(b"AUTH PLAIN")
    (event,) = session.receive(b"535 5.7.8 no\r\n")
    assert isinstance(event, Broken)
    assert event.reason == "AUTH was refused: 535 5.7.8 no"
    assert "geheim" not in repr(SessionConfig("a", password="geheim"))
    assert isinstance(auth_session(b"AUTH CRAM-MD5")[1][0], Broken)


# --- one message ------------------------------------------------------------------------------------------------------


def test_with_pipelining_the_envelope_is_one_write() -> None:
    session = opened()
    assert session.begin("a", ENVELOPE) == []
    assert session.output() == (b"MAIL FROM:<b-1@bounce.example> SIZE=100\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
    assert session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n") == [ContentWanted("a")]
    assert session.send_content(BODY) == []
    assert session.output() == BODY + b".\r\n"
    assert session.receive(b"250 2.0.0 OK id=1t\r\n") == [Finished("a", Stage.DOT, Reply(250, ("2.0.0 OK id=1t",)))]
    assert session.idle


def test_the_next_envelope_goes_with_the_last_dot_and_its_content_waits_for_its_own_354() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.output()
    session.send_content(BODY, ("b", ENVELOPE))
    assert session.output() == BODY + (
        b".\r\nMAIL FROM:<b-1@bounce.example> SIZE=100\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"
    )
    assert session.in_flight == 2
    assert session.receive(b"250 OK a\r\n250 OK\r\n") == [Finished("a", Stage.DOT, Reply(250, ("OK a",)))]
    assert session.output() == b""
    assert session.receive(b"250 OK\r\n354 go\r\n") == [ContentWanted("b")]


def test_without_pipelining_it_goes_step_by_step() -> None:
    session = opened(b"250 mx\r\n")
    session.begin("a", ENVELOPE)
    assert session.output() == b"MAIL FROM:<b-1@bounce.example>\r\n"
    session.receive(b"250 OK\r\n")
    assert session.output() == b"RCPT TO:<ann@example.org>\r\n"
    session.receive(b"250 OK\r\n")
    assert session.output() == b"DATA\r\n"
    assert session.receive(b"354 go\r\n") == [ContentWanted("a")]
    session.send_content(BODY, ("b", ENVELOPE))
    assert session.output() == BODY + b".\r\n"
    session.receive(b"250 OK\r\n")
    assert session.output() == b"MAIL FROM:<b-1@bounce.example>\r\n"


CHUNKING = PIPELINING.replace(b"250-8BITMIME", b"250-CHUNKING\r\n250-8BITMIME")


def test_with_chunking_the_content_waits_for_the_recipient_only_and_goes_as_it_is() -> None:
    session = opened(CHUNKING)
    session.begin("a", ENVELOPE)
    assert session.output() == b"MAIL FROM:<b-1@bounce.example> SIZE=100\r\nRCPT TO:<ann@example.org>\r\n"
    assert session.receive(b"250 OK\r\n250 OK\r\n") == [ContentWanted("a")]
    session.send_content(b".a\r\n..b\r\nc", ("b", ENVELOPE))
    assert session.output() == (
        b"BDAT 12 LAST\r\n.a\r\n..b\r\nc\r\nMAIL FROM:<b-1@bounce.example> SIZE=100\r\nRCPT TO:<ann@example.org>\r\n"
    )
    assert session.receive(b"250 OK id=1t\r\n") == [Finished("a", Stage.DOT, Reply(250, ("OK id=1t",)))]
    assert session.receive(b"250 OK\r\n550 who?\r\n") == [Finished("b", Stage.RCPT, Reply(550, ("who?",)))]
    session.begin("c", ENVELOPE)
    assert session.output().startswith(b"RSET\r\nMAIL FROM:")  # the server still holds b's return path


def test_what_a_refused_chunk_leaves_open_is_reset_and_the_next_envelope_said_again() -> None:
    session = opened(CHUNKING)
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n")
    session.send_content(BODY, ("b", ENVELOPE))
    session.output()
    assert session.receive(b"550 5.7.1 no\r\n503 nested MAIL\r\n") == [
        Finished("a", Stage.DOT, Reply(550, ("5.7.1 no",)))
    ]
    assert session.receive(b"503 need MAIL\r\n") == []
    assert session.output().startswith(b"RSET\r\nMAIL FROM:")
    assert session.receive(b"250 OK\r\n250 OK\r\n250 OK\r\n") == [ContentWanted("b")]
    session.send_content(BODY)
    session.output()
    session.receive(b"451 later\r\n")
    session.begin("c", ENVELOPE)
    assert session.output().startswith(b"RSET\r\nMAIL FROM:")


def test_no_empty_message_reaches_whom_a_refused_one_left_behind() -> None:
    """Postfix keeps sender and recipient of content that it refused, and takes the next DATA for them."""
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY, ("b", ENVELOPE))
    session.output()
    events = session.receive(b"550 5.7.1 no\r\n503 nested MAIL\r\n250 OK\r\n354 go\r\n")
    assert events[0] == Finished("a", Stage.DOT, Reply(550, ("5.7.1 no",)))
    assert isinstance(events[1], Broken)
    assert (events[1].in_doubt, events[1].unsent) == ((), ("b",))
    assert session.output() == b""


def test_with_chunking_but_without_pipelining_it_goes_step_by_step() -> None:
    session = opened(b"250-mx\r\n250 CHUNKING\r\n")
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n")
    assert session.receive(b"250 OK\r\n") == [ContentWanted("a")]
    session.output()
    session.send_content(BODY)
    assert session.output() == b"BDAT %d LAST\r\n" % len(BODY) + BODY


def test_leading_dots_are_doubled_and_the_last_line_is_ended() -> None:
    session = opened()
    for content, wire in (
        (b".a\r\n..b\r\nc", b"..a\r\n...b\r\nc\r\n.\r\n"),
        (b"", b".\r\n"),
        (b"x\r\n.\r\ny\r\n", b"x\r\n..\r\ny\r\n.\r\n"),
    ):
        session.begin("a", ENVELOPE)
        session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
        session.output()
        session.send_content(content)
        assert session.output() == wire
        session.receive(b"250 OK\r\n")


def test_parameters_are_given_when_needed_and_offered() -> None:
    session = opened()
    session.begin("a", Envelope("b@x.example", "ännchen@example.org", 7, eight_bit=True))
    assert "MAIL FROM:<b@x.example> SIZE=7 BODY=8BITMIME SMTPUTF8\r\nRCPT TO:<ännchen@example.org>".encode() in (
        session.output()
    )


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (Envelope("b@x.example", "ännchen@example.org", 7), 553),
        (Envelope("b@x.example", "ann@example.org", 7, eight_bit=True), 554),
        (Envelope("b@x.example", "ann@example.org", 2000), 552),
        (Envelope("b@x.example", "ann@example.org>\r\nRSET", 7), 553),
    ],
)
def test_what_the_server_can_t_take_is_refused_before_it_is_asked(envelope: Envelope, code: int) -> None:
    session = opened(b"250-mx\r\n250 SIZE 1000\r\n")
    (event,) = session.begin("a", envelope)
    assert isinstance(event, Finished)
    assert event.reply.code == code
    assert session.output() == b""
    assert session.idle


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "stage", "code"),
    [
        (b"550 no\r\n503 need MAIL\r\n503 need RCPT\r\n", Stage.MAIL, 550),
        (b"250 OK\r\n550 5.1.1 who?\r\n554 no valid recipients\r\n", Stage.RCPT, 550),
        (b"250 OK\r\n450 later\r\n503 need RCPT\r\n", Stage.RCPT, 450),
        (b"250 OK\r\n250 OK\r\n451 later\r\n", Stage.DATA, 451),
    ],
)
def test_a_refused_envelope_in_the_pipeline(replies: bytes, stage: Stage, code: int) -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.output()
    (event,) = session.receive(replies)
    assert isinstance(event, Finished)
    assert (event.message, event.stage, event.reply.code) == ("a", stage, code)
    assert session.idle
    session.begin("b", ENVELOPE)
    assert session.output().startswith(b"RSET\r\nMAIL FROM:")  # the server may still hold half of it
    assert session.receive(b"250 OK\r\n250 OK\r\n250 OK\r\n354 go\r\n") == [ContentWanted("b")]


def test_data_accepted_for_a_refused_recipient_is_closed_by_a_lone_dot() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.output()
    assert session.receive(b"250 OK\r\n550 who?\r\n354 go\r\n") == []
    assert session.output() == b".\r\n"
    assert session.receive(b"250 OK\r\n") == [Finished("a", Stage.RCPT, Reply(550, ("who?",)))]
    session.begin("b", ENVELOPE)
    assert session.output().startswith(b"MAIL FROM:")


def test_a_refusal_after_the_dot_while_the_next_goes_through() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY, ("b", ENVELOPE))
    assert session.receive(b"451 later\r\n250 OK\r\n250 OK\r\n354 go\r\n") == [
        Finished("a", Stage.DOT, Reply(451, ("later",))),
        ContentWanted("b"),
    ]


def test_without_pipelining_a_refused_recipient_is_reset_step_by_step() -> None:
    session = opened(b"250 mx\r\n")
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n")
    session.output()
    assert session.receive(b"550 who?\r\n") == [Finished("a", Stage.RCPT, Reply(550, ("who?",)))]
    assert session.output() == b"RSET\r\n"
    assert not session.idle
    session.receive(b"250 OK\r\n")
    assert session.idle


def test_a_set_up_that_the_server_rejects_blames_no_message() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    (event,) = session.receive(b"530 5.7.0 Authentication required\r\n503 no\r\n503 no\r\n")
    assert event == Broken(
        "MAIL was refused: 530 5.7.0 Authentication required",
        (),
        ("a",),
        Reply(530, ("5.7.0 Authentication required",)),
    )


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_closed_socket_leaves_doubt_only_about_what_was_sent() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY, ("b", ENVELOPE))
    assert session.receive_eof() == [Broken("the server closed the connection", ("a",), ("b",))]
    assert session.over
    assert session.receive(b"250 OK\r\n") == []
    assert session.receive_eof() == []


def test_421_in_the_pipeline() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY, ("b", ENVELOPE))
    assert session.receive(b"421 shutting down\r\n") == [
        Finished("a", Stage.DOT, Reply(421, ("shutting down",))),
        Broken("the server closes the connection: 421 shutting down", (), ("b",), Reply(421, ("shutting down",))),
    ]


def test_421_for_a_recipient_is_that_message_s_answer() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    assert session.receive(b"250 OK\r\n421 too many\r\n") == []
    assert session.receive_eof("gone") == [
        Finished("a", Stage.RCPT, Reply(421, ("too many",))),
        Broken("gone", (), ()),
    ]


def test_a_word_out_of_turn_ends_the_session() -> None:
    session = opened()
    (event,) = session.receive(b"421 4.4.2 idle for too long\r\n")
    assert isinstance(event, Broken)
    assert event.reason == "the server closes the connection: 421 4.4.2 idle for too long"


def test_garbage_after_the_dot_leaves_doubt() -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY)
    (event,) = session.receive(b"<html>\r\n")
    assert event == Broken("not an SMTP reply", ("a",), ())


@pytest.mark.parametrize("reply", [b"354 more\r\n", b"334 what\r\n"])
def test_neither_yes_nor_no_after_the_dot_leaves_doubt(reply: bytes) -> None:
    session = opened()
    session.begin("a", ENVELOPE)
    session.receive(b"250 OK\r\n250 OK\r\n354 go\r\n")
    session.send_content(BODY)
    (event,) = session.receive(reply)
    assert isinstance(event, Broken)
    assert event.in_doubt == ("a",)


def test_quit() -> None:
    session = opened()
    session.quit()
    assert session.output() == b"QUIT\r\n"
    assert session.receive(b"221 bye\r\n") == [Closed()]
    session = opened()
    session.quit()
    assert session.receive_eof() == [Closed()]


def test_reasons_hold_no_addresses() -> None:
    session = opened()
    (event,) = session.receive(b"421 <ann@example.org> is why\r\n")
    assert isinstance(event, Broken)
    assert "ann@" not in event.reason


# --- against a model --------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """A server: correct in its answers, free in its moods. Knows what it took, and what it saw."""

    choose: "st.DataObject"
    pipelining: bool
    lenient_data: bool  # 354 although no recipient is valid
    chunking: bool = False
    strict: bool = False  # refused content leaves the transaction open until RSET
    empty_to: list[str] = field(default_factory=list)
    chunk: int | None = None  # bytes of a BDAT that are awaited
    buffer: bytes = b""
    sender: bool = False
    recipient: str | None = None
    in_data: bool = False
    taken: dict[str, bytes] = field(default_factory=dict)
    twice: bool = False
    out: bytes = b""
    closed: bool = False

    def mood(self, *weighted: str) -> str:
        return self.choose.draw(st.sampled_from(weighted))

    def feed(self, data: bytes) -> None:
        self.buffer += data
        while not self.closed:
            if self.chunk is not None:
                if len(self.buffer) < self.chunk:
                    return
                content, self.buffer = self.buffer[: self.chunk], self.buffer[self.chunk :]
                assert self.pipelining or not self.buffer, "pipelined although it wasn't offered"
                self.chunk = None
                self.took(content)
            elif self.in_data:
                end = self.buffer.find(b"\r\n.\r\n")
                if self.buffer.startswith(b".\r\n"):
                    content, self.buffer = b"", self.buffer[3:]
                elif end >= 0:
                    content, self.buffer = self.buffer[: end + 2], self.buffer[end + 5 :]
                else:
                    return
                assert self.pipelining or not self.buffer, "pipelined although it wasn't offered"
                self.in_data = False
                self.took(content)
            else:
                line, newline, rest = self.buffer.partition(b"\r\n")
                if not newline:
                    return
                chunk = line.startswith(b"BDAT")
                assert self.pipelining or not rest or chunk, "pipelined although it wasn't offered"
                self.buffer = rest
                self.command(line.decode())

    def say(self, code: int) -> None:
        self.out += b"%d x\r\n" % code
        if code == 421:
            self.closed = True

    def took(self, content: bytes) -> None:
        recipient, self.sender, self.recipient = self.recipient, False, None
        if recipient is not None and not content:
            self.empty_to.append(recipient)
        if recipient is None:
            self.say(self.choose.draw(st.sampled_from([250, 554])))
            return
        mood = self.mood("ok", "ok", "ok", "451", "554", "421", "vanish before", "vanish after", "garbage")
        if mood in ("ok", "vanish after", "garbage"):
            self.twice = self.twice or recipient in self.taken
            self.taken[recipient] = content
        if mood.startswith("vanish"):
            self.closed = True
        elif mood == "garbage":
            self.out += b"\x00\xff garbage\r\n"
            self.closed = True
        else:
            self.say(250 if mood == "ok" else int(mood))
            if mood != "ok" and self.strict:
                self.sender, self.recipient = True, recipient

    def command(self, line: str) -> None:
        if line == "RSET":
            self.sender, self.recipient = False, None
            self.say(250)
        elif line.startswith("MAIL"):
            if self.sender:
                self.say(503)
            else:
                code = int(self.mood("250", "250", "250", "250", "451", "550", "421"))
                self.sender = code == 250
                self.say(code)
        elif line.startswith("RCPT"):
            if not self.sender:
                self.say(503)
            else:
                code = int(self.mood("250", "250", "250", "250", "450", "550", "421"))
                if code == 250:
                    self.recipient = line[line.index("<") + 1 : -1]
                self.say(code)
        elif line.startswith("BDAT"):
            assert self.chunking and self.recipient is not None
            _, size, last = line.split()
            assert last == "LAST"
            self.chunk = int(size)
        elif line == "DATA":
            assert not self.chunking
            if self.recipient is None and not (self.sender and self.lenient_data):
                self.say(503)
            else:
                code = int(self.mood("354", "354", "354", "354", "451", "554"))
                if code == 354:
                    self.in_data = True
                self.say(code)
        else:
            raise AssertionError(f"unexpected command {line}")


@settings(max_examples=400, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_every_message_comes_back_once_and_with_the_truth(
    data: st.DataObject, pipelining: bool, lenient: bool, overlap: bool, chunking: bool, strict: bool
) -> None:
    server = Model(data, pipelining, lenient, chunking, strict)
    offered = [name for name, is_offered in ((b"PIPELINING", pipelining), (b"CHUNKING", chunking)) if is_offered]
    session = opened(b"".join(b"250-%s\r\n" % line for line in (b"mx", *offered)) + b"250 HELP\r\n")
    count = data.draw(st.integers(1, 6))
    names = iter([f"m{n}@example.org" for n in range(count)])
    given_to_it: list[str] = []
    answers: dict[str, str] = {}
    wanted: str | None = None
    content_of = {f"m{n}@example.org": b"message m%d\r\n.dot\r\n" % n for n in range(count)}

    def following() -> tuple[str, Envelope] | None:
        name = next(names, None)
        if name is None:
            return None
        given_to_it.append(name)
        return name, Envelope("b@x.example", name, 10)

    def hear(events: list[Event[str]]) -> None:
        nonlocal wanted
        for event in events:
            if isinstance(event, Finished):
                assert event.message not in answers
                yes = event.stage is Stage.DOT and event.reply.positive
                answers[event.message] = "accepted" if yes else "refused"
            elif isinstance(event, ContentWanted):
                wanted = event.message
            elif isinstance(event, Broken):
                for kind, messages in (("doubt", event.in_doubt), ("unsent", event.unsent)):
                    for message in messages:
                        assert message not in answers
                        answers[message] = kind

    for _ in range(200):
        if session.over:
            break
        if wanted is not None:
            name, wanted = wanted, None
            hear(session.send_content(content_of[name], following() if overlap else None))
        elif session.idle:
            first = following()
            if first is None:
                break
            hear(session.begin(*first))
        server.feed(session.output())
        said, server.out = server.out, b""
        while said and not session.over:
            cut = data.draw(st.integers(1, len(said)))
            chunk, said = said[:cut], said[cut:]
            hear(session.receive(chunk))
            if not server.closed:
                server.feed(session.output())
                said, server.out = said + server.out, b""
            if wanted is not None and not session.over and not said:
                break
        if server.closed and not session.over:
            hear(session.receive_eof())

    assert session.over or session.idle
    assert not server.twice
    assert not server.empty_to
    assert set(answers) == set(given_to_it)
    for name, answer in answers.items():
        if answer == "accepted":
            sent = content_of[name] if chunking else content_of[name].replace(b"\r\n.", b"\r\n..")
            assert server.taken[name] == sent
        elif answer in ("refused", "unsent"):
            assert name not in server.taken
    for name in server.taken:
        assert answers[name] in ("accepted", "doubt")


SAID = [
    *(b"%d x\r\n" % code for code in (220, 250, 354, 421, 451, 550, 503)),
    b"250-PIPELINING\r\n",
    b"\x00",
    b"25",
    b"\r\n",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SAID), max_size=30))
def test_no_sequence_of_replies_loses_a_message(chunks: list[bytes]) -> None:
    session = Session(SessionConfig("agent.example"))
    given_to_it: list[str] = []
    back: list[str] = []
    events: list[Event[str]] = []

    def hear(new: list[Event[str]]) -> None:
        events.extend(new)
        for event in new:
            if isinstance(event, Finished):
                back.append(event.message)
            elif isinstance(event, Broken):
                back.extend(event.in_doubt + event.unsent)

    for chunk in chunks:
        hear(session.receive(chunk))
        if session.over:
            break
        if events and isinstance(events[-1], ContentWanted):
            events.clear()
            given_to_it.append(f"m{len(given_to_it)}")
            hear(session.send_content(BODY, (given_to_it[-1], ENVELOPE)))
        elif session.idle:
            given_to_it.append(f"m{len(given_to_it)}")
            hear(session.begin(given_to_it[-1], ENVELOPE))
        session.output()
    hear(session.receive_eof())
    assert sorted(back) == sorted(given_to_it)
