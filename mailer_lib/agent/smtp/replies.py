"""Parsing of SMTP replies (RFC 5321 §4.2) from a stream of bytes, with bounds on what a hostile server may send."""

import re
from typing import NamedTuple

from mailer_lib.agent.replies import enhanced_code

MAX_LINE_BYTES = 4096  # the RFC says 512, real servers say more
MAX_REPLY_BYTES = 64 * 1024
_CODE = re.compile(rb"[2-5]\d\d")


class SmtpProtocolError(RuntimeError):
    """The peer doesn't speak SMTP (any more)."""


class Reply(NamedTuple):
    """One whole reply. ``lines`` are the texts without codes, decoded as UTF-8 with replacement."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.lines)

    @property
    def enhanced(self) -> str:
        """The enhanced status code, or ""."""
        return enhanced_code(self.code, self.lines[0]) if self.lines else ""

    @property
    def positive(self) -> bool:
        return self.code < 400

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500


class ReplyParser:
    """Bytes in, replies out."""

    def __init__(self) -> None:
        self._rest = b""
        self._code = 0  # of a multi-line reply that has begun
        self._lines: list[str] = []
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Nothing is left over: no half line, no half reply."""
        return not self._rest and not self._lines

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that ``data`` completes.

        Raises:
            SmtpProtocolError: garbage, an overlong line or reply. Replies before it are in ``salvaged`` of the error.
        """
        replies: list[Reply] = []
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        try:
            for line in lines:
                reply = self._line(line[:-1] if line[-1:] == b"\r" else line)
                if reply is not None:
                    replies.append(reply)
            if len(self._rest) > MAX_LINE_BYTES:
                raise SmtpProtocolError(f"a reply line of more than {MAX_LINE_BYTES} bytes")
        except SmtpProtocolError as error:
            raise GarbageError(str(error), replies) from None
        return replies

    def _line(self, line: bytes) -> Reply | None:
        if len(line) > MAX_LINE_BYTES:
            raise SmtpProtocolError(f"a reply line of more than {MAX_LINE_BYTES} bytes")
        code, mark = line[:3], line[3:4]
        if not _CODE.fullmatch(code) or mark not in (b" ", b"-", b""):
            raise SmtpProtocolError("not an SMTP reply")
        number = int(code)
        text = line[4:].decode("utf-8", "replace")
        if not self._lines:
            if mark != b"-":
                return Reply(number, (text,))
            self._code, self._bytes = number, 0
        elif number != self._code:
            raise SmtpProtocolError(f"a reply that begins with {self._code} goes on with {number}")
        self._lines.append(text)
        self._bytes += len(line)
        if self._bytes > MAX_REPLY_BYTES:
            raise SmtpProtocolError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
        if mark == b"-":
            return None
        reply = Reply(number, tuple(self._lines))
        self._lines = []
        return reply


class GarbageError(SmtpProtocolError):
    """GarbageError after ``salvaged`` good replies."""

    def __init__(self, sentence: str, salvaged: list[Reply]) -> None:
        super().__init__(sentence)
        self.salvaged = salvaged
