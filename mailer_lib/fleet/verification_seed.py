"""The test message of a verification: sent through the server, found in a seed box, checked as a receiver would.

A *seed box* is a mailbox of one's own at some provider, or here. ``MaildirSeedBox`` reads a Maildir: that of our
development sink, or one into which another MTA or a fetcher delivers.
"""

import email
import email.policy
import email.utils
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol

from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.findings import Finding, error, info, warning

_HEAD_BYTES = 64 * 1024
_PEER = re.compile(r"\[(?:IPv6:)?([0-9A-Fa-f:.]+)\]")
_TLS = re.compile(r"\bwith (?:UTF8)?E?SMTPSA?\b|\bTLS", re.IGNORECASE)
_MESSAGE_ID = re.compile(rb"^message-id:\s*(<[^>\s]+>)", re.IGNORECASE | re.MULTILINE)
_LOOK_EVERY_S = 0.25
_SILENT = logging.Logger("dkim", logging.CRITICAL)  # dkimpy logs what is a finding here


class SeedBox(Protocol):
    """Where test messages arrive."""

    address: str

    def find(self, message_id: str) -> bytes | None:
        """The whole message, once it is there."""


class MaildirSeedBox:
    def __init__(self, address: str, maildir: Path) -> None:
        self.address = address
        self._maildir = maildir
        self._ids: dict[Path, str] = {}  # what was read already

    def find(self, message_id: str) -> bytes | None:
        for folder in ("new", "cur"):
            for path in (self._maildir / folder).glob("*"):
                try:
                    if path not in self._ids:
                        with path.open("rb") as file:
                            found = _MESSAGE_ID.search(file.read(_HEAD_BYTES))
                        self._ids[path] = found[1].decode("ascii", "replace") if found else ""
                    if self._ids[path] == message_id:
                        return path.read_bytes()
                except OSError:
                    continue  # a reader moved it: it is found under its new name
        return None


@dataclass(frozen=True)
class SeedMessage:
    domain: SendingDomain
    sender: str  # envelope
    message_id: str
    data: bytes  # not signed yet


@dataclass(frozen=True)
class SeedResult:
    """What became of one test message."""

    domain: str
    refused: str | None = None  # by the MTA, in its words
    waited_s: float = 0.0
    arrived: bool = False
    dkim: str | None = None  # why the signature doesn't hold; None: it does
    peer: str | None = None  # address that handed it to the seed box
    tls: bool = False


def make_message(domain: SendingDomain, recipient: str, server: str, at: datetime) -> SeedMessage:
    message = EmailMessage(policy=email.policy.SMTP)
    message_id = email.utils.make_msgid(idstring="verification", domain=domain.name)
    message["From"] = f"Mailfleet <postmaster@{domain.name}>"
    message["To"] = recipient
    message["Subject"] = f"Verification of {server}"
    message["Date"] = email.utils.format_datetime(at)
    message["Message-ID"] = message_id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"Sent through the dispatch server {server} to see how its mail arrives.\n")
    return SeedMessage(domain, f"postmaster@{domain.return_path_domain}", message_id, message.as_bytes())


def wait_for(
    box: SeedBox, wanted: Sequence[str], timeout_s: float, *, sleep: Callable[[float], None] = time.sleep
) -> dict[str, tuple[bytes, float]]:
    """The messages of these Message-IDs that arrive in time, and after how long."""
    found: dict[str, tuple[bytes, float]] = {}
    started = time.monotonic()
    while True:
        for message_id in wanted:
            if message_id not in found and (data := box.find(message_id)) is not None:
                found[message_id] = (data, time.monotonic() - started)
        if len(found) == len(wanted) or time.monotonic() - started > timeout_s:
            return found
        sleep(_LOOK_EVERY_S)


def examine(domain: SendingDomain, data: bytes, waited_s: float, txt: Callable[[str], str | None]) -> SeedResult:
    """Read what arrived. ``txt`` gives a TXT record: the published key is what must verify."""
    received = str(email.message_from_bytes(data, policy=email.policy.compat32).get("Received", ""))
    peers = _PEER.findall(received)
    return SeedResult(
        domain.name,
        waited_s=waited_s,
        arrived=True,
        dkim=_dkim_problem(domain.name, data, txt),
        peer=str(ipaddress.ip_address(peers[0])) if peers else None,
        tls=_TLS.search(received) is not None,
    )


def judge_seed(results: Sequence[SeedResult], sources: Sequence[str]) -> Iterator[Finding]:
    if not results:
        yield warning(
            "seed",
            "no test message was sent: set MAILFLEET_SEED_ADDRESS and MAILFLEET_SEED_MAILDIR to a mailbox of yours",
        )
    for result in results:
        what = f"the test message of {result.domain}"
        if result.refused is not None:
            yield error("seed", f"{what} was refused by its own MTA: {result.refused}")
        elif not result.arrived:
            yield error(
                "seed",
                f"{what} didn't arrive within {result.waited_s:.0f} s: look at the MTA's log and queue on the server",
            )
        elif result.dkim is not None:
            yield error("seed", f"{what} arrived, but {result.dkim}")
        elif result.peer is not None and sources and result.peer not in sources:
            yield error(
                "seed",
                f"{what} came from {result.peer}, which wasn't checked ({', '.join(sources)} were): "
                f"verify with --source {result.peer}",
            )
        else:
            way = "over TLS" if result.tls else "in plain text"
            yield info("seed", f"{what} arrived after {result.waited_s:.1f} s {way}, and its signature verifies")


def _dkim_problem(domain: str, data: bytes, txt: Callable[[str], str | None]) -> str | None:
    try:
        import dkim
    except ImportError:
        return "dkimpy isn't installed, so its signature wasn't checked: install mailfleet[sink]"
    fields = email.message_from_bytes(data, policy=email.policy.compat32)
    signature = "".join(str(fields.get("DKIM-Signature", "")).split())
    if not signature:
        return "without a DKIM signature"
    if f";d={domain};" not in f";{signature};":
        return f"its DKIM signature isn't of {domain}"

    unpublished: list[str] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        record = txt(name.decode("ascii", "replace").rstrip("."))
        if record is None:
            unpublished.append(name.decode("ascii", "replace").rstrip("."))
            return None
        return record.encode()

    try:
        valid = dkim.verify(data, dnsfunc=ask, logger=_SILENT)
    except dkim.DKIMException as problem:
        return f"its DKIM signature can't be verified ({problem})"
    if unpublished:
        return f"the key of its DKIM signature, {unpublished[0]}, isn't published"
    return None if valid else "its DKIM signature doesn't verify: another key is published, or the message was changed"
