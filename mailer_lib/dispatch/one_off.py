"""Hand one mail at a time to a dispatch server's MTA, outside any send: confirmations, not campaigns.

A handful a second over one connection with ``smtplib``; the ledgers, leases and pipelining of a send would be no use
here. The caller learns exactly what is known: taken, refused, to be tried again, or unknown (the connection broke when
the MTA may have had the whole message).
"""

import contextlib
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from mailer_lib import secret_refs
from mailer_lib.agent.replies import ReplyClass, classify, enhanced_code, redact
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, SmtpSecurity

TIMEOUT_S = 60.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class NoServerError(RuntimeError):
    """No dispatch server takes mail; the sentence says which were asked and what came of it."""


class HandOver(StrEnum):
    TAKEN = "taken"
    REFUSED = "refused"  # for good, and because of this recipient
    POSTPONED = "postponed"  # nothing was handed over: try again later
    UNKNOWN = "unknown"  # perhaps handed over; never to be repeated


@dataclass(frozen=True)
class Answer:
    hand_over: HandOver
    reply: ReplyClass | None = None
    text: str = ""  # of the MTA, without addresses


# Refusals that say something about the recipient; all others say something about us, and the mail may go later.
_ABOUT_RECIPIENT = frozenset({ReplyClass.UNKNOWN_MAILBOX, ReplyClass.INACTIVE_MAILBOX, ReplyClass.BAD_DOMAIN})


def reachable(servers: Sequence[DispatchServer]) -> list[DispatchServer]:
    """Those whose MTA can be reached from here: an ``ssh`` server's own loopback address can't."""
    return [s for s in servers if s.channel is ChannelKind.LOCAL or s.smtp_host not in _LOOPBACK]


class OneOffRelay:
    """A connection to the first of some dispatch servers that answers, made when it is needed and kept."""

    def __init__(self, settings: Settings, servers: Sequence[DispatchServer]) -> None:
        self._settings = settings
        self._servers = servers
        self._smtp: smtplib.SMTP | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._smtp is not None:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                self._smtp.quit()
            self._smtp = None

    def connect(self) -> None:
        """Make sure that there is a living connection.

        Raises:
            NoServerError: none of the servers answers.
            SecretRefError: a server's password isn't where its record says.
        """
        if self._smtp is not None:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                if self._smtp.noop()[0] == 250:
                    return
            self.close()
        problems = []
        for server in self._servers:
            try:
                self._smtp = _open(self._settings, server)
                return
            except (OSError, smtplib.SMTPException) as error:
                problems.append(f"{server.name} ({server.smtp_host}:{server.smtp_port}): {_words(error)}")
        raise NoServerError(f"no dispatch server takes the mail: {'; '.join(problems) or 'there is none'}")

    def submit(self, envelope_from: str, envelope_to: str, data: bytes) -> Answer:
        """Hand over one message (CRLF line ends; dots are stuffed here). Call ``connect`` first."""
        smtp = self._smtp
        assert smtp is not None
        options = ["SMTPUTF8"] if not envelope_to.isascii() else []
        if options and not smtp.has_extn("smtputf8"):
            return Answer(HandOver.REFUSED, None, "the dispatch server can't take an address outside ASCII (SMTPUTF8)")
        try:
            code, text = smtp.mail(envelope_from, options)
            if code < 400:
                code, text = smtp.rcpt(envelope_to)
            if code >= 400:
                return self._not_taken(smtp, code, text)
        except (OSError, smtplib.SMTPException):
            self.close()
            return Answer(HandOver.POSTPONED, None, "the connection broke")
        try:
            code, text = smtp.data(data)
        except smtplib.SMTPDataError as error:  # DATA itself was refused: no byte of the message has left
            return self._not_taken(smtp, error.smtp_code, error.smtp_error)
        except (OSError, smtplib.SMTPException):
            self.close()
            return Answer(HandOver.UNKNOWN, None, "the connection broke while the message was handed over")
        return Answer(HandOver.TAKEN, ReplyClass.ACCEPTED) if code < 400 else self._not_taken(smtp, code, text)

    def _not_taken(self, smtp: smtplib.SMTP, code: int, raw: bytes | str) -> Answer:
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        reply = classify(code, enhanced_code(code, text), text)
        with contextlib.suppress(OSError, smtplib.SMTPException):
            smtp.rset()
        refused = code >= 500 and reply in _ABOUT_RECIPIENT
        return Answer(HandOver.REFUSED if refused else HandOver.POSTPONED, reply, f"{code} {redact(text)}")


def _open(settings: Settings, server: DispatchServer) -> smtplib.SMTP:
    security = server.smtp_security
    if security is SmtpSecurity.IMPLICIT:
        smtp: smtplib.SMTP = smtplib.SMTP_SSL(
            server.smtp_host,
            server.smtp_port,
            server.helo_name,
            timeout=TIMEOUT_S,
            context=ssl.create_default_context(),
        )
    else:
        smtp = smtplib.SMTP(server.smtp_host, server.smtp_port, server.helo_name, timeout=TIMEOUT_S)
    try:
        smtp.ehlo()
        if security is SmtpSecurity.STARTTLS or (security is SmtpSecurity.OPPORTUNISTIC and smtp.has_extn("starttls")):
            context = ssl.create_default_context()
            if security is SmtpSecurity.OPPORTUNISTIC:  # encrypts against listeners, proves nothing (RFC 7435)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            smtp.starttls(context=context)
            smtp.ehlo()
        if server.smtp_user:
            password = secret_refs.resolve(settings, server.smtp_password_ref) if server.smtp_password_ref else ""
            smtp.login(server.smtp_user, password)
    except BaseException:
        smtp.close()
        raise
    return smtp


def _words(error: BaseException) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return f"{error.smtp_code} {text}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
