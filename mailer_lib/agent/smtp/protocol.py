"""An SMTP client as a state machine without I/O (RFC 5321, 2920 PIPELINING, 3207 STARTTLS, 4954 AUTH, 1870 SIZE,
6152 8BITMIME, 6531 SMTPUTF8, 3030 CHUNKING).

The caller feeds it what the server said (``receive``, ``receive_eof``), gives it messages (``begin``,
``send_content``), and writes what ``output`` returns. Each reply belongs to the oldest command without one; each
command belongs to a transaction, and each transaction to one message. So whatever fails in whatever order, every
message given comes back exactly once: in ``Finished``, or in ``Broken`` as *in doubt* (its last dot went out
unanswered) or *unsent*.

With PIPELINING the next envelope goes in the write that carries the last dot; its content waits for its own 354. Where
the server offers CHUNKING, content goes in one ``BDAT … LAST`` and waits for the reply to RCPT only; ``Stage.DOT`` is
the reply to either.
"""

import base64
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from mailer_lib.agent.replies import redact
from mailer_lib.agent.smtp.replies import GarbageError, Reply, ReplyParser
from mailer_lib.terms import SmtpSecurity

M = TypeVar("M")

_BAD_IN_PATH = re.compile(r"[\x00-\x1f\x7f<>]")
# Replies to MAIL that blame the session or our set-up, whoever the recipient is; 421: the server wants to close
_SETUP_CODES = frozenset({421, 500, 501, 502, 503, 504, 530, 534, 535, 538})


class Envelope(NamedTuple):
    """Return path and recipient, without angle brackets; ``size`` in bytes; ``eight_bit``: the content isn't ASCII;
    ``dotless``: whoever made the content vouches that no line of it begins with a dot."""

    sender: str
    recipient: str
    size: int
    eight_bit: bool = False
    dotless: bool = False


@dataclass(frozen=True)
class SessionConfig:
    helo_name: str
    security: SmtpSecurity = SmtpSecurity.NONE
    loopback: bool = False  # the server is on this machine: AUTH may go in the clear
    user: str | None = None
    password: str | None = field(default=None, repr=False)


class Stage(Enum):
    """What the command of a reply was."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    STARTTLS = auto()
    AUTH = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    DOT = auto()
    RSET = auto()
    QUIT = auto()


class Ready(NamedTuple):
    """The session is open: ``begin`` may be called."""


class StartTls(NamedTuple):
    """The caller must start TLS now, then call ``tls_started``."""


class ContentWanted(NamedTuple, Generic[M]):
    """The server waits for this message's content: the caller answers with ``send_content``."""

    message: M


class Finished(NamedTuple, Generic[M]):
    """The message's answer: accepted when ``stage`` is DOT and the reply is positive; else refused at ``stage``."""

    message: M
    stage: Stage
    reply: Reply


class Broken(NamedTuple, Generic[M]):
    """The session is over, and not by ``quit``. ``reason`` is a sentence without addresses."""

    reason: str
    in_doubt: tuple[M, ...] = ()  # the last dot went out, no reply came
    unsent: tuple[M, ...] = ()  # no content went out: may be sent again at once
    reply: Reply | None = None


class Closed(NamedTuple):
    """The session is over after ``quit``, with nothing left open."""


Event: TypeAlias = Ready | StartTls | ContentWanted[M] | Finished[M] | Broken[M] | Closed


class _Transaction(Generic[M]):
    __slots__ = ("again", "content_sent", "envelope", "message", "refusal", "refused_at")

    def __init__(self, message: M, envelope: Envelope) -> None:
        self.message = message
        self.envelope = envelope
        self.refusal: Reply | None = None
        self.refused_at = Stage.MAIL
        self.content_sent = False
        self.again = False  # its envelope ran into what refused content left: to be said once more


class SmtpSession(Generic[M]):
    """One session. ``tls_active``: TLS runs already (implicit TLS)."""

    def __init__(self, config: SessionConfig, tls_active: bool = False) -> None:
        self._config = config
        self._tls = tls_active
        self._parser = ReplyParser()
        self._out: list[bytes] = []
        self._awaited: deque[tuple[Stage, _Transaction[M] | None]] = deque([(Stage.GREETING, None)])
        self._open: deque[_Transaction[M]] = deque()  # begun, without an answer, oldest first
        self._wanted: _Transaction[M] | None = None  # has its 354, waits for send_content
        self._later: _Transaction[M] | None = None  # begun while it couldn't overlap
        self._half_open = False  # the server may hold half a transaction: RSET before the next MAIL
        self._content_refused = False  # the last content was, and no MAIL has been answered since
        self._auth_lines: deque[bytes] = deque()
        self._extensions: dict[str, str] = {}
        self._ready = False
        self._over = False
        self._quitting = False
        self._handlers: dict[Stage, Callable[[Reply, list[Event[M]]], None]] = {
            Stage.GREETING: self._on_greeting,
            Stage.EHLO: self._on_ehlo,
            Stage.HELO: self._on_helo,
            Stage.STARTTLS: self._on_starttls,
            Stage.AUTH: self._on_auth,
            Stage.RSET: self._on_rset,
            Stage.QUIT: self._on_quit,
        }

    # What the caller may ask

    @property
    def over(self) -> bool:
        """Broken or closed: nothing more will come."""
        return self._over

    @property
    def waiting(self) -> bool:
        """A reply is owed by the server."""
        return bool(self._awaited) and not self._over

    @property
    def idle(self) -> bool:
        """Open, and no message is under way: ``begin`` may be called."""
        return self._ready and not self._open and not self._awaited and not self._over and not self._quitting

    @property
    def pipelining(self) -> bool:
        return "PIPELINING" in self._extensions

    @property
    def chunking(self) -> bool:
        return "CHUNKING" in self._extensions

    @property
    def in_flight(self) -> int:
        """Messages begun without an answer."""
        return len(self._open)

    def output(self) -> bytes:
        """What is to be written now, in one write."""
        out = b"".join(self._out) if len(self._out) != 1 else self._out[0]
        self._out.clear()
        return out

    # What the caller may do

    def begin(self, message: M, envelope: Envelope) -> list[Event[M]]:
        """Start a message on an idle session. Its events come from ``receive``, or at once when the server's
        announced limits refuse it."""
        if not self.idle:
            raise RuntimeError("a message can begin on an idle session only")
        events: list[Event[M]] = []
        self._start(_Transaction(message, envelope), events)
        return events

    def send_content(self, data: bytes, following: tuple[M, Envelope] | None = None) -> list[Event[M]]:
        """Answer ``ContentWanted``: content (CRLF lines), its end, and the next message's envelope, in one output."""
        current = self._wanted
        if current is None:
            raise RuntimeError("no content is wanted")
        self._wanted = None
        self._out += _chunk(data) if self.chunking else _dotted(data, current.envelope.dotless)
        current.content_sent = True
        self._awaited.append((Stage.DOT, current))
        events: list[Event[M]] = []
        if following is not None:
            self._start(_Transaction(*following), events)
        return events

    def quit(self) -> None:
        """Say good-bye on an idle session; ``Closed`` follows."""
        if not self.idle:
            raise RuntimeError("QUIT is for an idle session")
        self._quitting = True
        self._command(b"QUIT", Stage.QUIT)

    def tls_started(self) -> None:
        """TLS runs: everything said before is forgotten (RFC 3207 §4.2)."""
        self._tls = True
        self._extensions = {}
        self._hello()

    def receive(self, data: bytes) -> list[Event[M]]:
        """What the server's bytes mean."""
        if self._over:
            return []
        try:
            replies = self._parser.feed(data)
            garbage = None
        except GarbageError as error:
            replies, garbage = error.salvaged, str(error)
        events: list[Event[M]] = []
        for reply in replies:
            if self._awaited:
                stage, transaction = self._awaited.popleft()
                if transaction is None:
                    self._handlers[stage](reply, events)
                elif stage is Stage.DOT:
                    self._on_dot(transaction, reply, events)
                elif stage is Stage.DATA:
                    self._on_data(transaction, reply, events)
                else:
                    self._on_envelope(stage, transaction, reply, events)
            else:
                self._break(_said("the server closes the connection", reply), events, reply)
            if self._over:
                return events
            if self._later is not None and not self._awaited:
                later, self._later = self._later, None
                self._open.remove(later)
                self._start(later, events)
        if garbage is not None:
            self._break(garbage, events)
        return events

    def receive_eof(self, why: str = "the server closed the connection") -> list[Event[M]]:
        """The connection is gone."""
        if self._over:
            return []
        events: list[Event[M]] = []
        if self._quitting:
            self._close(events)
        else:
            self._break(why, events)
        return events

    # Opening and closing

    def _on_greeting(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code != 220:
            self._break(_said("the server refuses the connection", reply), events, reply)
        else:
            self._hello()

    def _hello(self) -> None:
        self._command(b"EHLO " + self._config.helo_name.encode("ascii", "replace"), Stage.EHLO)

    def _on_ehlo(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code in (500, 501, 502, 504):
            self._command(b"HELO " + self._config.helo_name.encode("ascii", "replace"), Stage.HELO)
            return
        if reply.code != 250:
            self._break(_said("EHLO was refused", reply), events, reply)
            return
        for line in reply.lines[1:]:
            keyword, _, value = line.strip().replace("=", " ", 1).partition(" ")  # "AUTH=LOGIN" is an old form
            self._extensions[keyword.upper()] = f"{self._extensions.get(keyword.upper(), '')} {value}".strip()
        self._after_hello(events)

    def _on_helo(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code != 250:
            self._break(_said("HELO was refused", reply), events, reply)
        else:
            self._after_hello(events)

    def _after_hello(self, events: list[Event[M]]) -> None:
        security = self._config.security
        if not self._tls and security in (SmtpSecurity.STARTTLS, SmtpSecurity.OPPORTUNISTIC):
            if "STARTTLS" in self._extensions:
                self._command(b"STARTTLS", Stage.STARTTLS)
                return
            if security is SmtpSecurity.STARTTLS:
                self._break("the server doesn't offer STARTTLS, which this job requires", events)
                return
        if self._config.user is None:
            self._now_ready(events)
        else:
            self._authenticate(self._config.user, self._config.password or "", events)

    def _on_starttls(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code == 220:
            if self._parser.empty:
                events.append(StartTls())
            else:  # somebody slipped plain text in before TLS (CVE-2011-0411)
                self._break("the server talks on in plain text after STARTTLS", events)
        elif self._config.security is SmtpSecurity.OPPORTUNISTIC:
            del self._extensions["STARTTLS"]
            self._after_hello(events)
        else:
            self._break(_said("STARTTLS was refused", reply), events, reply)

    def _authenticate(self, user: str, password: str, events: list[Event[M]]) -> None:
        if not self._tls and not self._config.loopback:
            self._break("AUTH needs TLS: the password doesn't go over the network in the clear", events)
            return
        mechanisms = self._extensions.get("AUTH", "").upper().split()
        if "PLAIN" in mechanisms:
            self._command(b"AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()), Stage.AUTH)
        elif "LOGIN" in mechanisms:
            self._auth_lines.extend((base64.b64encode(user.encode()), base64.b64encode(password.encode())))
            self._command(b"AUTH LOGIN", Stage.AUTH)
        else:
            self._break("the server offers neither AUTH PLAIN nor AUTH LOGIN", events)

    def _on_auth(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code == 334 and self._auth_lines:
            self._command(self._auth_lines.popleft(), Stage.AUTH)
        elif reply.code == 235:
            self._now_ready(events)
        else:
            self._break(_said("AUTH was refused", reply), events, reply)

    def _now_ready(self, events: list[Event[M]]) -> None:
        self._ready = True
        events.append(Ready())

    def _on_rset(self, reply: Reply, events: list[Event[M]]) -> None:
        if reply.code != 250:
            self._break(_said("RSET was refused", reply), events, reply)

    def _on_quit(self, _reply: Reply, events: list[Event[M]]) -> None:
        self._close(events)

    def _close(self, events: list[Event[M]]) -> None:
        self._over = True
        events.append(Closed())

    def _break(self, reason: str, events: list[Event[M]], reply: Reply | None = None) -> None:
        """End the session. Messages whose refusal is known are finished by it, the others are in doubt or unsent."""
        self._over = True
        in_doubt: list[M] = []
        unsent: list[M] = []
        for transaction in self._open:
            refusal = transaction.refusal
            if transaction.content_sent:
                in_doubt.append(transaction.message)
            elif refusal is None or _is_set_up(transaction.refused_at, refusal):
                unsent.append(transaction.message)
            else:
                events.append(Finished(transaction.message, transaction.refused_at, refusal))
        self._open.clear()
        self._awaited.clear()
        self._out.clear()
        self._wanted = self._later = None
        events.append(Broken(reason, tuple(in_doubt), tuple(unsent), reply))

    # Transactions

    def _command(self, line: bytes, stage: Stage, transaction: _Transaction[M] | None = None) -> None:
        self._out.append(line + b"\r\n")
        self._awaited.append((stage, transaction))

    def _start(self, transaction: _Transaction[M], events: list[Event[M]]) -> None:
        """Send the envelope, or as much of it as may go now."""
        envelope = transaction.envelope
        refusal = self._refused_here(envelope)
        if refusal is not None:
            events.append(Finished(transaction.message, Stage.MAIL, refusal))
            return
        self._open.append(transaction)
        if not self.pipelining and self._awaited:
            self._later = transaction
            return
        utf8 = not (envelope.sender.isascii() and envelope.recipient.isascii())
        mail = f"MAIL FROM:<{envelope.sender}>"
        if "SIZE" in self._extensions:
            mail += f" SIZE={envelope.size}"
        if (envelope.eight_bit or utf8) and "8BITMIME" in self._extensions:
            mail += " BODY=8BITMIME"
        if utf8:
            mail += " SMTPUTF8"
        if not self.pipelining:
            self._command(mail.encode(), Stage.MAIL, transaction)
            return
        if self._half_open:
            self._half_open = False
            self._command(b"RSET", Stage.RSET)
        self._out.append(f"{mail}\r\nRCPT TO:<{envelope.recipient}>\r\n".encode())
        self._awaited += ((Stage.MAIL, transaction), (Stage.RCPT, transaction))
        if not self.chunking:
            self._command(b"DATA", Stage.DATA, transaction)

    def _refused_here(self, envelope: Envelope) -> Reply | None:
        """A reply of our own where the server's announced extensions can't carry the message."""
        sender, recipient = envelope.sender, envelope.recipient
        if _BAD_IN_PATH.search(sender) or _BAD_IN_PATH.search(recipient):
            return Reply(553, ("5.1.3 control character or angle bracket in an address",))
        if not (sender.isascii() and recipient.isascii()) and "SMTPUTF8" not in self._extensions:
            return Reply(553, ("5.6.7 non-ASCII address, and the server doesn't offer SMTPUTF8",))
        if envelope.eight_bit and "8BITMIME" not in self._extensions:
            return Reply(554, ("5.6.3 8-bit content, and the server doesn't offer 8BITMIME",))
        limit = self._extensions.get("SIZE", "")
        if limit.isdigit() and 0 < int(limit) < envelope.size:
            return Reply(552, (f"5.3.4 message of {envelope.size} bytes, the server takes {limit}",))
        return None

    def _on_envelope(self, stage: Stage, transaction: _Transaction[M], reply: Reply, events: list[Event[M]]) -> None:
        if 300 <= reply.code < 400:
            self._break(_said(f"{stage.name} was answered by neither yes nor no", reply), events, reply)
            return
        if stage is Stage.MAIL:
            transaction.again = self._content_refused and reply.code == 503
            self._content_refused = False
        if transaction.refusal is None and not reply.positive and not transaction.again:
            transaction.refusal, transaction.refused_at = reply, stage
        if self.pipelining and (stage is Stage.MAIL or not self.chunking):
            return  # the last reply to the envelope decides
        if transaction.again:
            self._say_again(transaction, events)
        elif transaction.refusal is not None:
            self._half_open = self.pipelining  # else ``_refused`` resets at once
            self._refused(transaction, events)
        elif stage is Stage.MAIL:
            self._command(f"RCPT TO:<{transaction.envelope.recipient}>".encode(), Stage.RCPT, transaction)
        elif self.chunking:
            self._wanted = transaction
            events.append(ContentWanted(transaction.message))
        else:
            self._command(b"DATA", Stage.DATA, transaction)

    def _say_again(self, transaction: _Transaction[M], events: list[Event[M]]) -> None:
        transaction.again = False
        self._half_open = True
        self._open.popleft()
        self._start(transaction, events)

    def _on_data(self, transaction: _Transaction[M], reply: Reply, events: list[Event[M]]) -> None:
        if reply.code == 354:
            if transaction.refusal is None and not transaction.again:
                self._wanted = transaction
                events.append(ContentWanted(transaction.message))
            elif transaction.refusal is not None and transaction.refused_at is Stage.RCPT:
                # RFC 2920 §3.1: DATA without a valid recipient is closed by a lone dot
                self._out.append(b".\r\n")
                self._awaited.append((Stage.DOT, transaction))
            else:  # a dot would send an empty message to the recipients of another one
                self._break("the server wants content although it refused the sender", events, reply)
        elif transaction.again and not reply.positive:
            self._say_again(transaction, events)
        elif reply.positive:
            self._break(_said("DATA was answered by something else than 354 or a refusal", reply), events, reply)
        else:
            if transaction.refusal is None:
                transaction.refusal, transaction.refused_at = reply, Stage.DATA
            self._half_open = True
            self._refused(transaction, events)

    def _on_dot(self, transaction: _Transaction[M], reply: Reply, events: list[Event[M]]) -> None:
        if 300 <= reply.code < 400:
            self._break(_said("the last dot was answered by neither yes nor no", reply), events, reply)
        elif transaction.refusal is not None:  # the lone dot of an envelope that had been refused
            self._refused(transaction, events)
        else:
            self._open.popleft()
            if not reply.positive:
                self._after_refused_content()
            self._finish(transaction.message, Stage.DOT, reply, events)

    def _after_refused_content(self) -> None:
        """The server may keep the transaction open until RSET: RFC 3030 §2 says so of a refused chunk, and Postfix 3.7
        does it after DATA too (``smtpd_end_of_data_restrictions``). Exim 4.96 doesn't."""
        if not self.pipelining:
            self._command(b"RSET", Stage.RSET)
        elif self._open:  # the next envelope is out already, and may be refused for it
            self._content_refused = True
        else:
            self._half_open = True

    def _refused(self, transaction: _Transaction[M], events: list[Event[M]]) -> None:
        """The transaction is over; its refusal is its answer."""
        refusal, stage = transaction.refusal, transaction.refused_at
        assert refusal is not None
        if _is_set_up(stage, refusal):
            self._break(_said("MAIL was refused", refusal), events, refusal)  # gives the message back as unsent
            return
        self._open.popleft()
        if not self.pipelining and stage is not Stage.MAIL:
            self._command(b"RSET", Stage.RSET)
        self._finish(transaction.message, stage, refusal, events)

    def _finish(self, message: M, stage: Stage, reply: Reply, events: list[Event[M]]) -> None:
        events.append(Finished(message, stage, reply))
        if reply.code == 421:
            self._break(_said("the server closes the connection", reply), events, reply)


def _dotted(data: bytes, dotless: bool) -> tuple[bytes, ...]:
    """Content for DATA: leading dots doubled, the last dot after it (RFC 5321 §4.5.2). Looking for them in 40 KB takes
    a tenth of what an unsigned message costs."""
    if not dotless and (b"\r\n." in data or data[:1] == b"."):
        data = data.replace(b"\r\n.", b"\r\n..")
        if data[:1] == b".":
            data = b"." + data
    return data, b".\r\n" if data[-2:] == b"\r\n" or not data else b"\r\n.\r\n"


def _chunk(data: bytes) -> tuple[bytes, ...]:
    """Content as the only chunk (RFC 3030 §2), which ends as a line, as DATA's does."""
    end = b"" if data[-2:] == b"\r\n" or not data else b"\r\n"
    return b"BDAT %d LAST\r\n" % (len(data) + len(end)), data, end


def _is_set_up(stage: Stage, refusal: Reply) -> bool:
    """A refusal that blames our set-up or the session, so that no message may be judged by it."""
    return stage is Stage.MAIL and refusal.code in _SETUP_CODES


def _said(what: str, reply: Reply) -> str:
    return f"{what}: {reply.code} {redact(reply.text)[:200]}".rstrip()
