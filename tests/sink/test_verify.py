"""Verification sees what receivers would see: checked with dkimpy on messages that the message stage signed."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mailer_lib.message.dkim import sign_message
from mailer_lib.sink.maildir import make_maildir, store
from mailer_lib.sink.store import SinkStore
from mailer_lib.sink.verify import KeyFileError, PublicKeys, as_sent, check, dns_record, verify

ENVELOPE = b"Return-Path: <b@x.example>\r\nEnvelope-To: a@isp.example\r\nReceived: from x\r\n"
BULK = (
    "From: News <news@shop.example>\r\nTo: a@isp.example\r\nSubject: Hi\r\nDate: Tue, 24 Nov 2026 03:31:52 +0000\r\n"
    "Message-ID: <{id}@shop.example>\r\nList-Unsubscribe: <https://shop.example/u/x>\r\n"
    "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nList-ID: News <news.shop.example>\r\n"
    "Feedback-ID: a:b:c:shop\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHello\r\n"
)


@pytest.fixture(scope="module")
def pem() -> str:
    key = rsa.generate_private_key(65537, 1024)  # small: quick to make
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@pytest.fixture
def keys(tmp_path: Path, pem: str) -> PublicKeys:
    folder = tmp_path / "dkim"
    folder.mkdir()
    (folder / "shop.example.s1.pem").write_text(pem)
    return PublicKeys(folder)


def signed(pem: str, text: str = BULK, id_: str = "1") -> bytes:
    return sign_message(text.format(id=id_).encode(), "shop.example", "s1", pem)


def test_a_good_message(keys: PublicKeys, pem: str) -> None:
    verdict = check(ENVELOPE + signed(pem), keys)
    assert verdict.dkim and verdict.problems == ()


@pytest.mark.parametrize(("old", "new", "problem"), [
    (b"Hello", b"Hullo", "signature is wrong"),
    (b"Subject: Hi", b"Subject: Ho", "signature is wrong"),
    (b"https://shop.example/u/x", b"https://evil.example/u/x", "signature is wrong"),
    (b"Feedback-ID", b"X-Feedback-ID", "no feedback-id header"),
    (b"Subject: Hi", b"Subject: Hi\r\nSubject: Ho", "subject occurs 2 times"),
    (b"=One-Click", b"=Two-Clicks", "isn't List-Unsubscribe=One-Click"),
    (b"<https://shop.example/u/x>", b"<mailto:x@shop.example>", "names no http or https URL"),
    (b"list-unsubscribe-post:", b"", "DKIM doesn't cover list-unsubscribe-post"),
    (b"DKIM-Signature", b"X-Signature", "no DKIM signature"),
    (b"s=s1", b"s=s2", "public key isn't here"),
    (b"s=s1", b"s=../../s1", "public key isn't here"),
])  # fmt: skip
def test_what_is_wrong_is_said(keys: PublicKeys, pem: str, old: bytes, new: bytes, problem: str) -> None:
    verdict = check(ENVELOPE + signed(pem).replace(old, new), keys)
    assert any(problem in sentence for sentence in verdict.problems), verdict.problems


def test_a_confirmation_mail_needs_no_list_headers(keys: PublicKeys, pem: str) -> None:
    text = (
        "From: News <news@shop.example>\r\nTo: a@isp.example\r\nSubject: Confirm\r\nMessage-ID: <{id}@shop.example>\r\n"
        "Date: Tue, 24 Nov 2026 03:31:52 +0000\r\nAuto-Submitted: auto-generated\r\n\r\nHello\r\n"
    )
    assert check(signed(pem, text), keys).problems == ()


def test_only_the_sinks_own_lines_are_taken_off() -> None:
    assert as_sent(ENVELOPE + b"Received: from y\r\nA: b\r\n\r\nc") == b"Received: from y\r\nA: b\r\n\r\nc"
    assert as_sent(b"A: b\r\n\r\nReceived: c") == b"A: b\r\n\r\nReceived: c"


def test_a_report(tmp_path: Path, keys: PublicKeys, pem: str) -> None:
    maildir = tmp_path / "sinks" / "one" / "Maildir"
    make_maildir(maildir)
    for number, id_ in enumerate(("1", "2", "2", "3")):
        store(maildir, f"1xAAAA-00000{number}-2F", signed(pem, id_=id_), ENVELOPE, fsync=False)
    entries = SinkStore(tmp_path / "sinks")
    entries.refresh()
    report = verify(entries.entries(), keys, sample=3, seed=1)
    assert (report.messages, report.sampled, report.valid_signatures) == (4, 3, 3)
    assert report.doubles == {"2@shop.example": 2} and not report.good
    assert verify(entries.entries()[:2], keys).good


def test_key_files(tmp_path: Path, pem: str) -> None:
    path = tmp_path / "key.pem"
    path.write_text(pem)
    assert dns_record(path).startswith(b"v=DKIM1; k=rsa; p=MI")
    (tmp_path / "bad.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n")
    for bad in ("bad.pem", "missing.pem"):
        with pytest.raises(KeyFileError, match=bad):
            PublicKeys(tmp_path, tmp_path / bad)
