"""Frames come out as they went in, however they arrive; whatever else comes ends the session and costs no memory."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.frames import MAGIC, MAX_HEADER, MAX_PAYLOAD, Decoder, Frame, FrameError, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3)
)
FRAMES = st.builds(Frame, st.dictionaries(st.text(max_size=10), VALUES, max_size=4), st.binary(max_size=300))


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_frames_come_out_as_they_went_in_however_the_bytes_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode(frame.header, frame.payload) for frame in frames)
    decoder, found, at, turn = Decoder(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += decoder.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == frames


@given(st.binary(max_size=200), st.integers(0, 60))
def test_damaged_bytes_give_a_frame_or_the_one_error_and_never_another(damage: bytes, at: int) -> None:
    data = encode({"id": 1, "op": "pulse"}, b"x" * 20)
    decoder = Decoder()
    try:
        for frame in decoder.feed(data[:at] + damage + data[at:]):
            assert isinstance(frame.header, dict)
    except FrameError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"Welcome to mta-1!\n",
        MAGIC + (MAX_HEADER + 1).to_bytes(4, "big") + bytes(4),
        MAGIC + bytes(4) + (MAX_PAYLOAD + 1).to_bytes(4, "big"),
        MAGIC + (2).to_bytes(4, "big") + bytes(4) + b"[]",
        MAGIC + (3).to_bytes(4, "big") + bytes(4) + b"{x}",
        MAGIC + (2).to_bytes(4, "big") + bytes(4) + b"\xff\xff",
    ],
    ids=["a banner", "large header", "large payload", "no object", "no JSON", "no UTF-8"],
)
def test_what_is_no_frame_is_refused_before_it_is_stored(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(Decoder().feed(data))


def test_what_does_not_fit_is_not_sent() -> None:
    with pytest.raises(FrameError, match="at most"):
        encode({}, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(FrameError, match="at most"):
        encode({"x": "y" * MAX_HEADER})
    assert json.loads(encode({"x": 1})[12:]) == {"x": 1}
