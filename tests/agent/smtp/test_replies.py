from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.smtp.replies import MAX_LINE_BYTES, MAX_REPLY_BYTES, GarbageError, Reply, ReplyParser


def parse(*chunks: bytes) -> list[Reply]:
    parser = ReplyParser()
    return [reply for chunk in chunks for reply in parser.feed(chunk)]


def test_single_and_multi_line_replies() -> None:
    assert parse(b"250 2.0.0 OK\r\n354\r\n250-mx\r\n250-SIZE 1000\r\n250 HELP\r\n") == [
        Reply(250, ("2.0.0 OK",)),
        Reply(354, ("",)),
        Reply(250, ("mx", "SIZE 1000", "HELP")),
    ]


def test_a_bare_line_feed_ends_a_line_too() -> None:
    assert parse(b"250 OK\n") == [Reply(250, ("OK",))]


def test_enhanced_codes_are_kept() -> None:
    assert parse(b"550 5.1.1 no\r\n")[0].enhanced == "5.1.1"
    assert parse(b"550 4.1.1 no\r\n")[0].enhanced == ""


texts = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=40)
replies = st.lists(
    st.builds(Reply, st.integers(200, 599), st.lists(texts, min_size=1, max_size=4).map(tuple)), max_size=6
)


def wire(reply: Reply) -> bytes:
    last = len(reply.lines) - 1
    return b"".join(f"{reply.code}{' ' if n == last else '-'}{line}\r\n".encode() for n, line in enumerate(reply.lines))


@given(replies, st.data())
def test_the_cut_into_segments_makes_no_difference(expected: list[Reply], data: st.DataObject) -> None:
    whole = b"".join(map(wire, expected))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    edges = [0, *cuts, len(whole)]
    assert parse(*(whole[a:b] for a, b in pairwise(edges))) == expected


@given(st.binary(max_size=400))
def test_garbage_is_an_error_and_never_a_crash(data: bytes) -> None:
    parser = ReplyParser()
    try:
        for reply in parser.feed(data):
            assert 200 <= reply.code < 600
    except GarbageError as error:
        assert all(200 <= reply.code < 600 for reply in error.salvaged)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250+OK\r\n",
        b"150 early\r\n",
        b"\r\n",
        b"250-a\r\n550 b\r\n",
        b"250 " + b"x" * (MAX_LINE_BYTES + 1) + b"\r\n",
        b"x" * (MAX_LINE_BYTES + 1),
        b"250-" + b"x" * 1000 + b"\r\n" + (b"250-" + b"x" * 1000 + b"\r\n") * (MAX_REPLY_BYTES // 1000),
    ],
)
def test_what_isn_t_smtp_is_refused(data: bytes) -> None:
    with pytest.raises(GarbageError):
        parse(data)


def test_replies_before_the_garbage_are_kept() -> None:
    with pytest.raises(GarbageError) as caught:
        parse(b"250 OK\r\nwhat?\r\n")
    assert caught.value.salvaged == [Reply(250, ("OK",))]
