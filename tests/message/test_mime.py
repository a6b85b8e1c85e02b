"""Bodies and headers come out as they went in, in lines that nothing on the road has a reason to touch."""

import email
import email.policy
import quopri
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailer_lib.message import mime
from mailer_lib.message.dkim import canonical_body

TEXT = st.text(st.one_of(st.sampled_from(" \t.=\n\rFrom-é😀"), st.characters(exclude_categories=["Cs"])), max_size=300)


@given(st.lists(TEXT, max_size=5))
@example(["From here", " .leading", "..", "a  b ", "\n", "x" * 400, "=" * 80, "é" * 60, ""])
def test_segments_decode_to_what_was_encoded_however_they_are_joined(texts: list[str]) -> None:
    *segments, last = [*texts, "end"]
    encoded = b"".join(mime.quoted_printable_value(t) for t in segments) + mime.quoted_printable(last, last=True)

    assert quopri.decodestring(encoded) == ("".join([*segments, last]) + "\n").replace("\n", "\r\n").encode()


@given(TEXT)
@example("From " * 30)
@example(("." + "x" * 74) * 3)
@example(" " * 200)
def test_no_line_needs_touching(text: str) -> None:
    encoded = mime.quoted_printable(text, last=True)

    assert canonical_body(encoded + b"--end\r\n") == encoded + b"--end\r\n"
    assert b"\0" not in encoded and encoded.isascii()
    for line in encoded.split(b"\r\n"):
        assert len(line) <= 76
        assert not line.startswith((b".", b" ", b"From "))
        assert not line.endswith((b" ", b"\t"))
        assert b"\r" not in line and b"\n" not in line


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("", b""),
        ("Ann", b"Ann=\r\n"),
        (".hidden", b"=2Ehidden=\r\n"),
        ("two  spaces", b"two =20spaces=\r\n"),
        ("From me", b"=46rom me=\r\n"),
        ("a\nb", b"a\r\nb=\r\n"),
        ("Å", b"=C3=85=\r\n"),
    ],
)
def test_values(value: str, encoded: bytes) -> None:
    assert mime.quoted_printable_value(value) == encoded


def header(name: str, value: str) -> email.message.EmailMessage:
    raw = f"{name}: {value}\r\n\r\n".encode()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert list(message.keys()) == [name], "one header, whatever is in it"
    return message  # type: ignore[return-value]


@given(TEXT)
@example("Grüße, José – 20 % off" * 8)
@example("a " * 300)
@example("x" * 900)
@example("=?utf-8?b?aGk=?=")
@example("a\r\nBcc: everybody@example.com")
def test_a_subject_is_one_header_and_reads_as_it_was_written(text: str) -> None:
    value = mime.unstructured(text, len("Subject: "))

    assert re.search(r"\r(?!\n )|(?<!\r)\n", value) is None
    assert all(len(line) <= 76 for line in f"Subject: {value}".split("\r\n"))
    assert "".join(header("Subject", value)["Subject"].split()) == "".join(mime.clean(text).split())


@given(TEXT)
@example('O"Brien, \\ Ann')
@example("ann@example.com")
@example("Ann\r\nBcc: x@example.com")
@example("Zoë " * 50)
def test_a_display_name_can_not_change_the_address(name: str) -> None:
    value = mime.mailbox(name, "ann@example.com", len("To: "))

    assert re.search(r"\r(?!\n )|(?<!\r)\n", value) is None
    addresses = header("To", value)["To"].addresses
    assert [a.addr_spec for a in addresses] == ["ann@example.com"]
    assert "".join(addresses[0].display_name.split()) == "".join(mime.clean(name).split())


def test_clean_keeps_what_scripts_and_emoji_need() -> None:
    assert mime.clean("  a\t\r\n b\0c\x85 \u2028d ") == "a b c d"
    assert mime.clean("👩\u200d🚀 نمی\u200cخواهم") == "👩\u200d🚀 نمی\u200cخواهم"
