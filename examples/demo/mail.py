"""Reading what the sink took, as its recipients would: straight from the Maildir."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

_HEAD_BYTES = 16_384


@dataclass(frozen=True)
class Received:
    path: Path
    recipient: str
    subject: str
    send: str  # campaign#edition, of the Feedback-ID
    one_click_url: str  # of List-Unsubscribe


def count(maildir: Path) -> int:
    """Messages in a Maildir."""
    return sum(1 for folder in ("new", "cur") for _ in (maildir / folder).iterdir()) if maildir.exists() else 0


def received(maildir: Path) -> Iterator[Received]:
    """Every message, by its headers, oldest first."""
    paths = [path for folder in ("new", "cur") for path in (maildir / folder).iterdir()]
    for path in sorted(paths, key=lambda p: p.stat().st_mtime_ns):
        yield read(path)


def read(path: Path) -> Received:
    from email import policy
    from email.parser import BytesHeaderParser

    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    headers = BytesHeaderParser(policy=policy.default).parsebytes(head)
    links = [part.strip(" <>") for part in str(headers["List-Unsubscribe"] or "").split(",")]
    return Received(
        path=path,
        recipient=str(headers["Envelope-To"] or headers["To"] or ""),
        subject=str(headers["Subject"] or ""),
        send=[*str(headers["Feedback-ID"] or "").split(":"), ""][1],
        one_click_url=next((link for link in links if link.startswith("http")), ""),
    )


def unsubscribe(message: Received) -> int:
    """What a mailbox provider does when its user presses *Unsubscribe* (RFC 8058); returns the HTTP status."""
    answer = httpx.post(message.one_click_url, data={"List-Unsubscribe": "One-Click"}, timeout=30.0, trust_env=False)
    return answer.status_code
