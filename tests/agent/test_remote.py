"""The agent's side of the session: every request has one answer, and none reaches outside the job folders."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailer_lib.agent import remote
from mailer_lib.agent.frames import Decoder, Frame, FrameError, encode
from mailer_lib.agent.remote import Jobs, Op, serve
from mailer_lib.release import release

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
# what starts or ends processes is asked for by name only, in tests of the channel
HARMLESS = [*sorted(set(Op) - {Op.START, Op.STOP, Op.KILL}), "", "rm", "__init__"]


def answer(jobs: Jobs, header: dict[str, Any], payload: bytes = b"") -> Frame:
    (frame,) = Decoder().feed(jobs.answer(Frame(header, payload)))
    return frame


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    op=st.sampled_from(HARMLESS),
    job=st.sampled_from(["a/1/b.0", "", "..", "../../x", "a/../b", "/a/b/c", "a/b", "a/b/c/d"]) | st.text(max_size=20),
    arguments=st.dictionaries(
        st.sampled_from(["name", "size", "sha256", "offset", "limit", "lines", "control", "job_file", "secrets", "id"]),
        ANYTHING,
        max_size=6,
    ),
    payload=st.binary(max_size=50),
)
def test_any_request_has_an_answer_and_leaves_everything_outside_alone(
    tmp_path: Path, op: str, job: str, arguments: dict[str, Any], payload: bytes
) -> None:
    root = tmp_path / "outer" / "jobs"
    (root / "a" / "1" / "b.0").mkdir(parents=True, exist_ok=True)
    (root / "a" / "1" / "b.0" / "shards").mkdir(exist_ok=True)
    answered = answer(Jobs(root), {**arguments, "op": op, "job": job}, payload)
    assert isinstance(answered.header, dict)
    assert [path.name for path in tmp_path.iterdir()] == ["outer"]
    assert [path.name for path in (tmp_path / "outer").iterdir()] == ["jobs"]


def test_an_error_is_a_sentence_without_a_value_of_the_request(tmp_path: Path) -> None:
    request = {"id": 7, "job": "a/1/b.0", "op": "prepare", "job_file": {}, "secrets": {"dkim_key_pem": "horse"}}
    refused = answer(Jobs(tmp_path), request)
    assert refused.header["id"] == 7
    assert "horse" not in refused.header["error"]
    assert "job_id" in refused.header["error"]


def test_it_says_who_it_is_answers_and_ends_with_its_input(tmp_path: Path) -> None:
    request_read, request_write = os.pipe()
    answer_read, answer_write = os.pipe()
    thread = threading.Thread(target=serve, args=(tmp_path, request_read, answer_write))
    thread.start()
    for number in range(200):
        os.write(request_write, encode({"id": number, "job": f"a/{number % 5}/b.0", "op": "pulse"}))
    os.close(request_write)
    thread.join(20)
    assert not thread.is_alive()
    os.close(answer_write)
    decoder, frames = Decoder(), []
    while data := os.read(answer_read, 1 << 16):
        frames += decoder.feed(data)
    assert frames[0].header == {"hello": remote.PROTOCOL, "release": release()}
    assert sorted(frame.header["id"] for frame in frames[1:]) == list(range(200))
    assert all(frame.header["alive"] is False for frame in frames[1:])


def test_what_is_not_the_protocol_ends_the_session(tmp_path: Path) -> None:
    request_read, request_write = os.pipe()
    _, answer_write = os.pipe()
    os.write(request_write, b"GET / HTTP/1.1\r\n")
    with pytest.raises(FrameError, match="isn't a frame"):
        serve(tmp_path, request_read, answer_write)
