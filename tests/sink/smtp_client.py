"""A raw SMTP client: what a test wants on the wire, byte by byte."""

import re
import socket
from pathlib import Path

LINE = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[\d+\] "
    r"(?P<id>[0-9A-Za-z]{6}-[0-9A-Za-z]{6}-[0-9A-Za-z]{2}) <= (?P<from>\S+) H=(?P<helo>\S+) "
    r"\[127\.0\.0\.1\]:(?P<port>\d+) I=\[127\.0\.0\.1\]:(?P<local>\d+) P=(?P<protocol>\S+) S=(?P<size>\d+)"
    r"(?: id=(?P<message_id>\S+))?$"
)


class Client:
    def __init__(self, port: int, helo: str = "client.example") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.port: int = self.socket.getsockname()[1]
        self._file = self.socket.makefile("rb")
        assert self.reply().startswith("220")
        if helo:
            self.extensions = self.say(f"EHLO {helo}")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> str:
        lines = []
        while True:
            line = self._file.readline().decode()
            if not line:
                raise ConnectionError("closed by the sink")
            lines.append(line.rstrip("\r\n"))
            if line[3:4] != "-":
                return "\n".join(lines)

    def say(self, command: str) -> str:
        self.send(command.encode() + b"\r\n")
        return self.reply()

    def envelope(self, recipient: str, sender: str = "b-1@bounce.example") -> list[str]:
        self.send(f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode())
        return [self.reply() for _ in range(3)]

    def deliver(self, recipient: str, message: bytes = b"Message-ID: <1@x>\r\n\r\nhello\r\n") -> str:
        """The last reply: of the dot, or of the RCPT that was refused."""
        _, rcpt, data = self.envelope(recipient)
        if not data.startswith("354"):
            self.say("RSET")
            return rcpt
        self.send(message + b".\r\n")
        return self.reply()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def accepted(mainlog: Path) -> list[dict[str, str]]:
    """The ``<=`` lines of one log file, each checked against the form that settling reads."""
    found = []
    for line in mainlog.read_text().splitlines():
        if " <= " in line:
            match = LINE.match(line)
            assert match, line
            found.append(match.groupdict())
    return found


def stored(maildir: Path) -> dict[str, bytes]:
    """Files by queue id."""
    return {path.name.split(".")[1]: path.read_bytes() for path in (maildir / "new").iterdir()}
