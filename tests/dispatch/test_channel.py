"""What a channel promises, for both of them: files go over whole, and there is never a second agent."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from mailer_lib.agent.job import ControlFile, Job, Secrets, SmtpServer, Status
from mailer_lib.agent.job_host import PART_BYTES
from mailer_lib.dispatch.agent_keeper import AgentFailedError, AgentKeeper
from mailer_lib.dispatch.channel import Channel, ChannelError, LocalChannel
from mailer_lib.dispatch.ssh_channel import PULSE_S, SshChannel
from mailer_lib.dispatch.ssh_link import shared_link

JOB = Job(
    job_id="a#1@b.0",
    send_id=1,
    campaign="a",
    edition="1",
    server="b",
    smtp=SmtpServer(host="127.0.0.1", port=25, helo_name="x"),
)


@dataclass
class Bench:
    channel: Channel
    folder: Path  # of the job, as its host sees it


@pytest.fixture(params=["local", "ssh"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "jobs" / "a" / "1" / "b.0"
    if request.param == "local":
        folder.mkdir(parents=True)
        yield Bench(LocalChannel(folder), folder)
        return
    server = request.getfixturevalue("ssh_server")
    with shared_link(server, request.getfixturevalue("settings")) as link:
        yield Bench(SshChannel(link, "a/1/b.0"), folder)


@pytest.fixture
def prepared(bench: Bench) -> Bench:
    bench.channel.prepare(JOB, b"{}", Secrets(dkim_key_pem="secret", token_key="00"))
    return bench


def test_a_folder_is_made_with_its_files_for_its_owner_only(bench: Bench) -> None:
    assert bench.channel.message() is None
    assert bench.channel.status() is None
    assert bench.channel.log_tail() == []
    bench.channel.prepare(JOB, b'{"a": 1}', Secrets(dkim_key_pem="secret", token_key="00"))
    assert bench.channel.message() == b'{"a": 1}'
    assert Job.load(bench.folder / "job.json") == JOB
    assert (bench.folder / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_secrets_and_recipients_go_when_the_job_is_over(prepared: Bench, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"rows")
    prepared.channel.put_shard("0000.p1.parquet", tmp_path / "source")
    assert (prepared.folder / "shards" / "0000.p1.parquet").read_bytes() == b"rows"
    prepared.channel.clear()
    assert not (prepared.folder / "secrets.json").exists()
    assert list((prepared.folder / "shards").iterdir()) == []
    assert (prepared.folder / "ledgers").is_dir()


def test_a_large_shard_goes_over_in_parts_and_has_its_name_only_when_it_is_whole(
    prepared: Bench, tmp_path: Path
) -> None:
    data = os.urandom(2 * PART_BYTES + 17)
    (tmp_path / "source").write_bytes(data)
    prepared.channel.put_shard("0001.p1.parquet", tmp_path / "source")
    assert [path.name for path in (prepared.folder / "shards").iterdir()] == ["0001.p1.parquet"]
    assert (prepared.folder / "shards" / "0001.p1.parquet").read_bytes() == data


def test_a_shard_that_is_there_is_left_alone(prepared: Bench, tmp_path: Path) -> None:
    (prepared.folder / "shards" / "0000.p1.parquet").write_bytes(b"there")
    (tmp_path / "source").write_bytes(b"other")
    prepared.channel.put_shard("0000.p1.parquet", tmp_path / "source")
    assert (prepared.folder / "shards" / "0000.p1.parquet").read_bytes() == b"there"


def test_control_is_replaced_whole(prepared: Bench) -> None:
    assert prepared.channel.read_control() is None
    prepared.channel.write_control(ControlFile(generation=3))
    assert prepared.channel.read_control() == ControlFile(generation=3)
    (prepared.folder / "control.json").write_text("{")
    with pytest.raises(ChannelError, match="isn't a control file"):
        prepared.channel.read_control()


def test_suppressions_are_appended_after_a_torn_line(prepared: Bench) -> None:
    prepared.channel.append_suppressions(["aa", "@example.org"])
    path = prepared.folder / "suppressions.log"
    path.write_bytes(path.read_bytes() + b"bb")  # its writer was killed
    prepared.channel.append_suppressions(["cc"])
    assert path.read_bytes() == b"aa\n@example.org\nbb\ncc\n"
    assert prepared.channel.suppressions() == {"aa", "@example.org", "bb", "cc"}


def test_many_suppressions_go_over_in_several_requests(prepared: Bench) -> None:
    lines = [f"{number:032x}" for number in range(45_000)]
    prepared.channel.append_suppressions(lines)
    assert (prepared.folder / "suppressions.log").read_text().split() == lines
    assert prepared.channel.suppressions() == set(lines)


def test_a_ledger_is_fetched_from_an_offset(prepared: Bench) -> None:
    assert prepared.channel.fetch_ledger("x.ledger", 0, 10) == b""
    (prepared.folder / "ledgers" / "x.ledger").write_bytes(b"0123456789")
    assert prepared.channel.fetch_ledger("x.ledger", 4, 3) == b"456"


def test_a_name_that_leads_out_of_the_folder_is_refused(prepared: Bench, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"rows")
    for name in ("../x", "/etc/passwd", "", ".hidden", "a/b"):
        with pytest.raises(ChannelError, match="can't be the name"):
            prepared.channel.put_shard(name, tmp_path / "source")
        with pytest.raises(ChannelError, match="can't be the name"):
            prepared.channel.fetch_ledger(name, 0, 10)


def test_whoever_holds_the_lock_is_alive_and_is_not_joined(prepared: Bench) -> None:
    assert not prepared.channel.is_alive()
    handle = os.open(prepared.folder / "agent.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    time.sleep(PULSE_S)
    assert prepared.channel.is_alive()
    prepared.channel.start()
    assert not (prepared.folder / "agent.log").exists()
    os.close(handle)
    time.sleep(PULSE_S)
    assert not prepared.channel.is_alive()


def test_a_pid_that_belongs_to_another_process_by_now_is_left_alone(prepared: Bench) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    handle = os.open(prepared.folder / "agent.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # somebody is alive, but status.json is old
        Status(pid=stranger.pid, boot_id="x", at=0, state="sending").store(prepared.folder / "status.json")
        prepared.channel.stop()
        prepared.channel.kill()
        assert stranger.poll() is None
    finally:
        os.close(handle)
        stranger.kill()
        stranger.communicate()


@pytest.mark.parametrize("bench", ["local"], indirect=True)
def test_an_agent_that_ends_at_once_is_restarted_with_growing_pauses_and_then_given_up(prepared: Bench) -> None:
    clock = [0.0]
    keeper = AgentKeeper(prepared.channel, "local-1", clock=lambda: clock[0])
    starts = []
    with pytest.raises(AgentFailedError, match=r"(?s)ended 6 times in a row without settling anything.*message\.json"):
        while True:
            if keeper.ensure():
                starts.append(clock[0])
                _until_gone(prepared)  # it can't use this folder: message.json isn't a bundle
            clock[0] += 0.25
    assert len(starts) == 6
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1 < pauses[-1]


def _until_gone(bench: Bench) -> None:
    """Until no process works for this folder, as its host sees it."""
    while any(str(bench.folder) in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])):
        bench.channel.is_alive()  # collects a child that has ended
        time.sleep(0.05)
    time.sleep(PULSE_S)
