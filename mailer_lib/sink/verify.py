"""Whether what a sink took is as receivers want it: DKIM (checked with dkimpy, no code of ours), headers, doubles.

The public key comes from the private one below ``home/keys/dkim/<domain>.<selector>.pem``, or from a ``--key`` file; no
DNS is asked.
"""

import random
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dkim
from cryptography.hazmat.primitives import serialization

from mailer_lib.sink.store import Entry, decoded, first, header_fields

ALWAYS = ("from", "to", "subject", "date", "message-id")
BULK = ("list-unsubscribe", "list-unsubscribe-post", "list-id", "feedback-id")
MUST_BE_SIGNED = frozenset({"from", "list-unsubscribe", "list-unsubscribe-post"})  # the last two: RFC 8058 §4
ADDED_BY_SINK = 3  # Return-Path, Envelope-To, Received


class KeyFileError(ValueError):
    """A DKIM key can't be used; the sentence says which and why."""


@dataclass(frozen=True)
class Verdict:
    """One message. ``problems`` are sentences; none: all is well."""

    dkim: bool
    problems: tuple[str, ...] = ()


@dataclass
class Report:
    messages: int = 0
    sampled: int = 0
    valid_signatures: int = 0
    doubles: dict[str, int] = field(default_factory=dict)  # Message-ID → copies, where more than one
    without_message_id: int = 0
    problems: Counter[str] = field(default_factory=Counter)  # sentence → messages

    @property
    def good(self) -> bool:
        return not self.doubles and not self.problems and self.valid_signatures == self.sampled


class PublicKeys:
    """DKIM public keys by domain and selector, as DNS TXT records."""

    def __init__(self, folder: Path, key_file: Path | None = None) -> None:
        """``key_file``: the one key for every signature.

        Raises:
            KeyFileError: ``key_file`` can't be read.
        """
        self._folder = folder
        self._known: dict[str, bytes | None] = {}
        self._only = None if key_file is None else dns_record(key_file)

    def dnsfunc(self, name: bytes, timeout: int = 5) -> bytes | None:
        """What dkimpy asks instead of DNS: ``<selector>._domainkey.<domain>.``"""
        if self._only is not None:
            return self._only
        text = name.decode("ascii", "replace").rstrip(".").lower()
        if text not in self._known:
            selector, _, domain = text.partition("._domainkey.")
            path = self._folder / f"{domain}.{selector}.pem"
            safe = re.fullmatch(r"[a-z0-9._-]+", f"{domain}{selector}") is not None
            self._known[text] = dns_record(path) if safe and path.is_file() else None
        return self._known[text]


def dns_record(path: Path) -> bytes:
    """The TXT record of a PEM file with an RSA key, private or public.

    Raises:
        KeyFileError: it holds none.
    """
    try:
        pem = path.read_bytes()
        if b"PRIVATE KEY" in pem:
            key = serialization.load_pem_private_key(pem, password=None).public_key()
        else:
            key = serialization.load_pem_public_key(pem)
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{path} holds no usable DKIM key: {type(error).__name__}") from None
    return b"v=DKIM1; k=rsa; p=" + b64encode(der)


def as_sent(raw: bytes) -> bytes:
    """The message without the lines that the sink put before it."""
    for _ in range(ADDED_BY_SINK):
        if not re.match(rb"(?:Return-Path|Envelope-To|Received):", raw):
            break
        end = re.search(rb"\r?\n(?![ \t])", raw)
        raw = raw[end.end() :] if end else b""
    return raw


def check(raw: bytes, keys: PublicKeys) -> Verdict:
    """Check one message as it was sent."""
    message = as_sent(raw)
    fields = header_fields(message)
    # A confirmation mail (RFC 3834: Auto-Submitted) is no bulk mail: there is nothing to leave yet.
    required = ALWAYS if first(fields, "auto-submitted") else ALWAYS + BULK
    problems = [f"no {name} header" for name in required if not first(fields, name)]
    counts = Counter(name for name, _ in fields)
    problems += [f"{name} occurs {counts[name]} times" for name in required if counts[name] > 1]
    if first(fields, "list-unsubscribe-post") not in (b"", b"List-Unsubscribe=One-Click"):
        problems.append("list-unsubscribe-post isn't List-Unsubscribe=One-Click")
    if first(fields, "list-unsubscribe") and unsubscribe_url(fields) is None:
        problems.append("list-unsubscribe names no http or https URL")
    signature = first(fields, "dkim-signature")
    if not signature:
        return Verdict(False, (*problems, "no DKIM signature"))
    signed = signed_headers(signature)
    problems += [f"DKIM doesn't cover {name}" for name in required if name in MUST_BE_SIGNED and name not in signed]
    try:
        valid = bool(dkim.verify(message, dnsfunc=keys.dnsfunc))
    except (dkim.DKIMException, KeyFileError, ValueError, TypeError):
        valid = False
    if not valid:
        problems.append("the DKIM signature is wrong, or its public key isn't here")
    return Verdict(valid, tuple(problems))


def signed_headers(signature: bytes) -> list[str]:
    """The names in ``h=`` of a DKIM-Signature value, lower case."""
    found = re.search(r"(?:^|;)\s*h\s*=([^;]*)", signature.decode("ascii", "replace"))
    return [name.strip().lower() for name in found[1].split(":")] if found else []


def unsubscribe_url(fields: list[tuple[str, bytes]]) -> str | None:
    """The first http or https URL of List-Unsubscribe (RFC 2369)."""
    found = re.search(r"<\s*(https?://[^>\s]+)\s*>", decoded(first(fields, "list-unsubscribe")))
    return found[1] if found else None


def verify(
    entries: Sequence[Entry],
    keys: PublicKeys,
    *,
    sample: int | None = None,
    seed: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Report:
    """Doubles among all; signatures and headers of ``sample`` messages chosen at random (None: of all)."""
    report = Report(messages=len(entries))
    copies = Counter(entry.message_id for entry in entries if entry.message_id)
    report.doubles = {message_id: number for message_id, number in copies.items() if number > 1}
    report.without_message_id = sum(1 for entry in entries if not entry.message_id)
    chosen = list(entries)
    if sample is not None and sample < len(chosen):
        chosen = random.Random(seed).sample(chosen, sample)
    for number, entry in enumerate(chosen, 1):
        try:
            verdict = check(entry.path.read_bytes(), keys)
        except FileNotFoundError:  # deleted meanwhile
            continue
        report.sampled += 1
        report.valid_signatures += verdict.dkim
        report.problems.update(verdict.problems)
        if progress is not None:
            progress(number, len(chosen))
    return report
