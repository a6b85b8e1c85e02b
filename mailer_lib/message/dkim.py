"""DKIM signatures (RFC 6376): RSA-SHA256, relaxed/relaxed, no ``l=``.

From, Subject, List-Unsubscribe and List-Unsubscribe-Post (and what a forger would add next) are *over-signed*: named
once more in ``h=`` than they occur, so a second one breaks the signature (§5.4, §8.15). RSA signing releases the GIL.
"""

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

OVER_SIGNED = (
    "from", "to", "reply-to", "subject", "date", "list-unsubscribe", "list-unsubscribe-post", "mime-version",
    "content-type",
)  # fmt: skip
SIGNED = (
    "date", "from", "to", "reply-to", "subject", "message-id", "list-unsubscribe", "list-unsubscribe-post", "list-id",
    "feedback-id", "mime-version", "content-type", "in-reply-to", "references", "auto-submitted",
)  # fmt: skip

_CRLF = "\r\n"
_PADDING = padding.PKCS1v15()
_SHA256 = hashes.SHA256()
_WSP = re.compile(rb"[ \t]+")
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_EMPTY_TAIL = re.compile(rb"(?:\r\n)+\Z")


class DkimKeyError(ValueError):
    """The private key can't be used; the sentence says why."""


class DkimSigner:
    """Signs for one domain and selector. Safe to share between threads."""

    def __init__(self, domain: str, selector: str, pem: str) -> None:
        """
        Raises:
            DkimKeyError: ``pem`` is no RSA private key of at least 1024 bits.
        """
        self.domain, self.selector = domain, selector
        self._key = load_key(pem, f"{selector}._domainkey.{domain}")
        self._plans: dict[tuple[str, ...], str] = {}

    def sign(self, headers: Iterable[tuple[str, bytes]], body: bytes, *, at: int | None = None) -> bytes:
        """The ``DKIM-Signature`` header, with its CRLF, for any message.

        ``headers`` are (name, raw value without the last CRLF) from top to bottom; ``body`` has CRLF line ends.
        """
        fields = [(name.strip().lower(), canonical_value(value)) for name, value in headers]
        names, block = [], []
        for name in SIGNED:
            values = [value for field, value in fields if field == name]
            for value in reversed(values):  # the bottommost first (§5.4.2)
                names.append(name)
                block.append(name.encode() + b":" + value + b"\r\n")
        names += OVER_SIGNED
        digest = hashlib.sha256(canonical_body(body)).digest()
        return self.sign_canonical(self.prepare(names), b"".join(block), digest, int(time.time() if at is None else at))

    def prepare(self, names: Sequence[str]) -> str:
        """The static middle of a signature that covers ``names``, for ``sign_canonical``."""
        key = tuple(names)
        if key not in self._plans:
            lines, line = [], "h="
            for name in key:
                if len(line) + len(name) > 70:
                    lines.append(line)
                    line = ""
                line += name + ":"
            lines.append(line.rstrip(":") + ";")
            self._plans[key] = "\r\n ".join(lines)
        return self._plans[key]

    def sign_canonical(self, plan: str, canonical_headers: bytes, body_sha256: bytes, at: int) -> bytes:
        """Sign what is canonical already. ``plan`` names the headers of ``canonical_headers`` in their order, then the
        over-signed ones.
        """
        head = (
            f"v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n d={self.domain}; s={self.selector}; t={at};\r\n {plan}\r\n "
            f"bh={base64.b64encode(body_sha256).decode()};\r\n b="
        )
        own = f"dkim-signature:{head.replace(_CRLF, '')}".encode()  # folded with CRLF + one space: unfolding is enough
        signature = self._key.sign(canonical_headers + own, _PADDING, _SHA256)
        text = base64.b64encode(signature).decode()
        folded = "\r\n ".join([text[:70], *(text[i : i + 72] for i in range(70, len(text), 72))])
        return f"DKIM-Signature: {head}{folded}\r\n".encode()

    def public_key(self) -> str:
        """The ``p=`` of the DNS record: base64 of the SubjectPublicKeyInfo (§3.6.1)."""
        spki = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(spki).decode()


def sign_message(raw: bytes, domain: str, selector: str, pem: str, *, at: int | None = None) -> bytes:
    """``raw`` (a whole message, CRLF) with a signature on top: for one-off mails such as confirmations."""
    head, _, body = raw.partition(b"\r\n\r\n")
    fields = []
    for line in _FOLD.sub(b"\0", head).split(b"\r\n"):
        name, _, value = line.partition(b":")
        fields.append((name.decode("ascii"), value.replace(b"\0", b"\r\n")))
    return DkimSigner(domain, selector, pem).sign(fields, body, at=at) + raw


def load_key(pem: str, where: str) -> rsa.RSAPrivateKey:
    """
    Raises:
        DkimKeyError: no RSA private key, or one that receivers refuse (RFC 8301: under 1024 bits).
    """
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise DkimKeyError(f"the DKIM key of {where} can't be read: {type(error).__name__}") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise DkimKeyError(f"the DKIM key of {where} isn't an RSA key")
    if key.key_size < 1024:
        raise DkimKeyError(f"the DKIM key of {where} has {key.key_size} bits; make one of 2048")
    return key


def canonical_value(value: bytes) -> bytes:
    """Relaxed header canonicalisation of a value (§3.4.2): unfolded, white space collapsed and trimmed."""
    return _WSP.sub(b" ", value.replace(b"\r\n", b"")).strip(b" ")


def canonical_body(body: bytes) -> bytes:
    """Relaxed body canonicalisation (§3.4.4)."""
    lines = (_WSP.sub(b" ", line).rstrip(b" ") for line in body.split(b"\r\n"))
    text = _EMPTY_TAIL.sub(b"", b"\r\n".join(lines))
    return text + b"\r\n" if text else b""
