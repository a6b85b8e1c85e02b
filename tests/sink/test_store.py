import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.sink.content import read_content
from mailer_lib.sink.maildir import make_maildir, store
from mailer_lib.sink.store import NoSuchMessageError, SinkStore, decoded, header_fields

MESSAGE = (
    "From: =?utf-8?q?Fjord_=26_Fern?= <news@x.example>\r\nTo: a@isp.example\r\n"
    "Subject: =?utf-8?b?RnLDvGhsaW5n?=\r\n =?utf-8?q?_ist_da?=\r\nMessage-ID: <{id}@x.example>\r\n\r\nHello\r\n"
)


def put(root: Path, sink: str, queue_id: str, recipient: str = "ann@isp.example") -> Path:
    maildir = root / sink / "Maildir"
    make_maildir(maildir)
    envelope = f"Return-Path: <b@x.example>\r\nEnvelope-To: {recipient}\r\nReceived: from x\r\n".encode()
    return store(maildir, queue_id, MESSAGE.format(id=queue_id).encode(), envelope, fsync=False)


def test_an_entry(tmp_path: Path) -> None:
    path = put(tmp_path, "one", "1xAAAA-000001-2F")
    store_ = SinkStore(tmp_path)
    store_.refresh()
    (entry,) = store_.entries()
    assert (entry.id, entry.sink, entry.path) == ("1xAAAA-000001-2F", "one", path)
    assert (entry.sender, entry.subject) == ("Fjord & Fern <news@x.example>", "Frühling ist da")
    assert (entry.recipient, entry.message_id) == ("ann@isp.example", "1xAAAA-000001-2F@x.example")
    assert entry.size == path.stat().st_size


def test_all_sinks_of_a_root(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path, f"sink{number % 2}", f"1xAAAA-00000{number}-2F")
    (tmp_path / "not-a-sink").mkdir()
    assert SinkStore(tmp_path).count() == {"sink0": 2, "sink1": 1}
    assert SinkStore(tmp_path / "nowhere").count() == {}


def test_what_comes_and_goes_is_seen(tmp_path: Path) -> None:
    store_ = SinkStore(tmp_path)
    paths = []
    for number in range(30):
        paths.append(put(tmp_path, "one", f"1xAAAA-0000{number:02}-2F"))
        store_.refresh()
        assert len(store_.entries()) == number + 1
    paths[3].unlink()
    paths[4].rename(tmp_path / "one" / "Maildir" / "cur" / f"{paths[4].name}:2,S")
    store_.refresh()
    assert len(store_.entries()) == 29
    assert store_.get("1xAAAA-000004-2F").path.parent.name == "cur"


def test_search_needs_every_word(tmp_path: Path) -> None:
    put(tmp_path, "one", "1xAAAA-000001-2F", "ann@isp.example")
    store_ = SinkStore(tmp_path)
    store_.refresh()
    (entry,) = store_.entries()
    assert entry.matches(["frühling", "ann@"]) and entry.matches([]) and entry.matches(["1xaaaa"])
    assert not entry.matches(["frühling", "bert"])


@pytest.mark.parametrize("bad", ["1xAAAA-000009-2F", "../../etc/passwd", "", "*", "1xAAAA-000001-2F/x", "\0"])
def test_unknown_ids(tmp_path: Path, bad: str) -> None:
    put(tmp_path, "one", "1xAAAA-000001-2F")
    with pytest.raises(NoSuchMessageError):
        SinkStore(tmp_path).get(bad)


def test_leftovers_of_a_killed_sink_go(tmp_path: Path) -> None:
    put(tmp_path, "one", "1xAAAA-000001-2F")
    (tmp_path / "one" / "Maildir" / "tmp" / "half").write_bytes(b"half")
    make_maildir(tmp_path / "one" / "Maildir")
    assert os.listdir(tmp_path / "one" / "Maildir" / "tmp") == []
    assert SinkStore(tmp_path).count() == {"one": 1}


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(raw: bytes) -> None:
    for _, value in header_fields(raw):
        decoded(value)
    read_content(raw)
    read_content(b"Content-Type: multipart/alternative; boundary=x\r\n\r\n--x\r\n" + raw + b"\r\n--x--\r\n")


def test_content_of_a_multipart() -> None:
    content = read_content(
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n"
        b"--x\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Gr=FC=DFe\r\n--x\r\nContent-Type: text/html; charset=nonsense\r\n\r\n<p>hi\r\n--x--\r\n"
    )
    assert content.text is not None and content.text.strip() == "Grüße"
    assert content.html is not None and content.html.strip() == "<p>hi"
    assert content.header("subject") == "x"
