"""Reading what the sink took, as its recipients would: straight from the Maildir."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

_HEAD_BYTES = 8192
_FIELDS = {
    "recipient": re.compile(rb"^Envelope-To: *(\S+)", re.MULTILINE | re.IGNORECASE),
    "send": re.compile(rb"^Feedback-ID: *[^:]*:([^:\s]+)", re.MULTILINE | re.IGNORECASE),
    "one_click_url": re.compile(rb"^List-Unsubscribe: *<(http[^>]+)>", re.MULTILINE | re.IGNORECASE),
}


@dataclass(frozen=True)
class Received:
    path: Path
    recipient: str
    send: str  # campaign#edition, of the Feedback-ID
    one_click_url: str  # of List-Unsubscribe


def count(maildir: Path) -> int:
    """Messages in a Maildir."""
    return sum(1 for _ in _paths(maildir))


def received(maildir: Path, send: str | None = None) -> Iterator[Received]:
    """Every message, by its headers; of one send if it is given."""
    for path in _paths(maildir):
        message = read(path)
        if send is None or message.send == send:
            yield message


def read(path: Path) -> Received:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
    found = {name: pattern.search(head) for name, pattern in _FIELDS.items()}
    return Received(path, **{name: match[1].decode() if match else "" for name, match in found.items()})


def unsubscribe(message: Received) -> int:
    """What a mailbox provider does when its user presses *Unsubscribe* (RFC 8058); returns the HTTP status."""
    answer = httpx.post(message.one_click_url, data={"List-Unsubscribe": "One-Click"}, timeout=30.0, trust_env=False)
    return answer.status_code


def _paths(maildir: Path) -> Iterator[Path]:
    for folder in ("new", "cur"):
        if (maildir / folder).exists():
            yield from (maildir / folder).iterdir()
