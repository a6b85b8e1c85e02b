"""Signatures that dkimpy, which shares no line with ours, finds good; and bad after any change."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailer_lib.message.dkim import DkimKeyError, DkimSigner, canonical_body, canonical_value, sign_message
from tests.message.world import DOMAIN, key_pem, verifies

RAW = (
    f"From: Fjord & Fern <hello@{DOMAIN}>\r\nTo: ann@example.com\r\nSubject: Please\r\n  confirm\r\n"
    "List-Unsubscribe: <https://x/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
    "Hello  Ann \r\n\r\nbye\r\n\r\n\r\n"
).encode()

LINES = st.lists(st.text(st.sampled_from("ab. \tÅ=:"), max_size=30), max_size=6)


@settings(max_examples=15)
@given(LINES, LINES)
@example([], [])
@example([" "], ["", "", ""])
def test_any_message_verifies(subject: list[str], body: list[str]) -> None:
    folded = "\r\n ".join(line.strip() for line in subject if line.strip())
    raw = (
        f"From: hello@{DOMAIN}\r\nSubject: {folded}\r\nDate: x\r\n\r\n".encode() + "\r\n".join(body).encode() + b"\r\n"
    )

    assert verifies(sign_message(raw, DOMAIN, "mf1", key_pem()))


def test_white_space_may_change_on_the_way_but_words_may_not() -> None:
    signed = sign_message(RAW, DOMAIN, "mf1", key_pem())

    assert verifies(signed)
    assert verifies(
        signed.replace(b"Hello  Ann \r\n", b"Hello Ann\r\n").replace(b"Please\r\n  confirm", b"Please confirm")
    )
    assert not verifies(signed.replace(b"Hello", b"Hallo"))
    assert not verifies(signed.replace(b"Please", b"Pleade"))


@pytest.mark.parametrize(
    "added",
    [
        b"From: forged@example.net\r\n",
        b"Subject: You won\r\n",
        b"List-Unsubscribe: <https://evil.example/>\r\n",
        b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n",
        b"Reply-To: forged@example.net\r\n",
        b"Content-Type: text/html\r\n",
    ],
)
def test_a_second_header_breaks_the_signature(added: bytes) -> None:
    signed = sign_message(RAW, DOMAIN, "mf1", key_pem())
    signature_end = signed.index(b"From: Fjord")

    assert not verifies(signed[:signature_end] + added + signed[signature_end:])


def test_the_signature_says_what_it_covers() -> None:
    header = sign_message(RAW, DOMAIN, "mf1", key_pem(), at=1_795_500_000)[: -len(RAW)].decode()

    assert all(len(line) <= 78 for line in header.split("\r\n"))
    tags = dict(tag.strip().split("=", 1) for tag in header.split(":", 1)[1].split(";"))
    assert (tags["a"], tags["c"], tags["d"], tags["s"]) == ("rsa-sha256", "relaxed/relaxed", DOMAIN, "mf1")
    assert tags["t"] == "1795500000"
    assert "l" not in tags
    names = [name.strip() for name in tags["h"].split(":")]
    for over_signed in ("from", "subject", "list-unsubscribe", "list-unsubscribe-post"):
        assert names.count(over_signed) == 2


def test_canonical_forms_of_the_rfc() -> None:
    assert canonical_value(b" A \t B\r\n\tC ") == b"A B C"
    assert canonical_body(b" C \r\nD \t E\r\n\r\n\r\n") == b" C\r\nD E\r\n"  # RFC 6376 §3.4.5
    assert canonical_body(b"\r\n\r\n") == b""


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.mark.parametrize(
    ("pem", "says"),
    [
        ("nonsense", "can't be read"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "isn't an RSA key"),
    ],
)
def test_an_unusable_key_is_named_and_not_shown(pem: str, says: str) -> None:
    with pytest.raises(DkimKeyError, match=says) as caught:
        DkimSigner(DOMAIN, "mf1", pem)
    assert f"mf1._domainkey.{DOMAIN}" in str(caught.value)
    assert pem not in str(caught.value)
