"""A bundle, a recipient and a key to build messages with."""

import email
import email.policy
from email.message import EmailMessage
from functools import cache
from typing import Any

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mailer_lib.message.builder import BuiltMessage, MessageBuilder
from mailer_lib.message.bundle import Bundle, BundleVariant, Mailbox
from mailer_lib.message.dkim import DkimSigner
from mailer_lib.shard.recipient import Recipient
from mailer_lib.tokens import send_token_key

TOKEN_KEY = bytes(range(32))
SEND_ID = 7
DOMAIN = "news.fjordfern.example"
AT = 1_795_500_000


@cache
def key_pem() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def verifies(raw: bytes, pem: str | None = None) -> bool:
    """What a receiver says, with the public key of ``pem`` in DNS."""
    record = f"v=DKIM1; k=rsa; p={DkimSigner(DOMAIN, 'mf1', pem or key_pem()).public_key()}".encode()
    return bool(dkim.verify(raw, dnsfunc=lambda name, timeout=5: record))


def bundle(html: str = "<p>Hello</p>", text: str = "Hello", subject: str = "Hello", **more: Any) -> Bundle:
    values: dict[str, Any] = {
        "campaign": "spring-sale",
        "edition": "1",
        "send_id": SEND_ID,
        "list_name": "newsletter",
        "list_title": "Fjord & Fern News",
        "sender": Mailbox(name="Fjord & Fern", address=f"hello@{DOMAIN}"),
        "dkim_domain": DOMAIN,
        "dkim_selector": "mf1",
        "return_path_domain": f"bounce.{DOMAIN}",
        "tracking_url": "https://links.fjordfern.example",
        "variants": (BundleVariant(name="A", weight=1, subject=subject, html=html, text=text),),
    }
    return Bundle(**{**values, **more})


def recipient(**more: Any) -> Recipient:
    values: dict[str, Any] = {
        "contact_id": 42,
        "message_key": bytes(range(16)),
        "address_hash": bytes(16),
        "address": "ann@example.com",
        "domain": "example.com",
        "provider": "other",
        "given_name": "Ann",
        "family_name": "Lee",
    }
    return Recipient(**{**values, **more})


def builder(made: Bundle, *, signed: bool = False) -> MessageBuilder:
    key = send_token_key(TOKEN_KEY, SEND_ID)
    return MessageBuilder(made, dkim_key_pem=key_pem() if signed else None, token_key=key, clock=lambda: AT)


def read(built: BuiltMessage) -> EmailMessage:
    message = email.message_from_bytes(built.data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def parts(built: BuiltMessage) -> tuple[str, str]:
    """(text, HTML) as a receiver decodes them, with the line break that every part ends with taken off."""
    message = read(built)
    found = []
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        assert part is not None
        raw = part.get_payload(decode=True)
        assert isinstance(raw, bytes)
        text = raw.decode().replace("\r\n", "\n")
        assert text.endswith("\n")
        found.append(text[:-1])
    return found[0], found[1]
