"""The local channel: files go over whole, and there is never a second agent."""

import fcntl
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mailer_lib.agent.job import ControlFile, Job, Secrets, SmtpServer, Status
from mailer_lib.dispatch.agent_keeper import AgentFailedError, AgentKeeper
from mailer_lib.dispatch.channel import ChannelError, LocalChannel


@pytest.fixture
def channel(tmp_path: Path) -> LocalChannel:
    folder = tmp_path / "job"
    folder.mkdir()
    made = LocalChannel(folder)
    job = Job(
        job_id="a#1@b.0",
        send_id=1,
        campaign="a",
        edition="1",
        server="b",
        smtp=SmtpServer(host="127.0.0.1", port=25, helo_name="x"),
    )
    made.prepare(job, b"{}", Secrets(dkim_key_pem="secret", token_key="00"))
    return made


def test_secrets_are_readable_by_their_owner_only_and_go_when_the_job_is_over(channel: LocalChannel) -> None:
    secrets = channel.folder / "secrets.json"
    assert secrets.stat().st_mode & 0o777 == 0o600
    (channel.folder / "source").write_bytes(b"rows")
    channel.put_shard("0000.p1.parquet", channel.folder / "source")
    channel.clear()
    assert not secrets.exists()
    assert list((channel.folder / "shards").iterdir()) == []
    assert (channel.folder / "ledgers").is_dir()


def test_control_is_replaced_whole(channel: LocalChannel) -> None:
    assert channel.read_control() is None
    channel.write_control(ControlFile(generation=3))
    assert channel.read_control() == ControlFile(generation=3)
    (channel.folder / "control.json").write_text("{")
    with pytest.raises(ChannelError, match="isn't a control file"):
        channel.read_control()


def test_suppressions_are_appended_after_a_torn_line(channel: LocalChannel) -> None:
    channel.append_suppressions(["aa", "@example.org"])
    path = channel.folder / "suppressions.log"
    path.write_bytes(path.read_bytes() + b"bb")  # its writer was killed
    channel.append_suppressions(["cc"])
    assert path.read_bytes() == b"aa\n@example.org\nbb\ncc\n"
    assert channel.suppressions() == {"aa", "@example.org", "bb", "cc"}


def test_a_ledger_is_fetched_from_an_offset(channel: LocalChannel) -> None:
    assert channel.fetch_ledger("x.ledger", 0, 10) == b""
    (channel.folder / "ledgers" / "x.ledger").write_bytes(b"0123456789")
    assert channel.fetch_ledger("x.ledger", 4, 3) == b"456"


def test_whoever_holds_the_lock_is_alive_and_is_not_joined(channel: LocalChannel) -> None:
    assert not channel.is_alive()
    handle = os.open(channel.folder / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert channel.is_alive()
    channel.start()
    assert not (channel.folder / "agent.log").exists()
    os.close(handle)
    assert not channel.is_alive()


def test_a_pid_that_belongs_to_another_process_by_now_is_left_alone(channel: LocalChannel) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    handle = os.open(channel.folder / "agent.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # somebody is alive, but status.json is old
        Status(pid=stranger.pid, boot_id="x", at=0, state="sending").store(channel.folder / "status.json")
        channel.stop()
        channel.kill()
        assert stranger.poll() is None
    finally:
        os.close(handle)
        stranger.kill()
        stranger.communicate()


def test_an_agent_that_ends_at_once_is_restarted_with_growing_pauses_and_then_given_up(channel: LocalChannel) -> None:
    clock = [0.0]
    keeper = AgentKeeper(channel, "local-1", clock=lambda: clock[0])
    starts = []
    with pytest.raises(AgentFailedError, match=r"(?s)ended 6 times in a row without settling anything.*message\.json"):
        while True:
            if keeper.ensure():
                starts.append(clock[0])
                assert channel._process is not None
                channel._process.wait()  # it can't use this folder: message.json isn't a bundle
            clock[0] += 0.25
    assert len(starts) == 6
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1 < pauses[-1]
