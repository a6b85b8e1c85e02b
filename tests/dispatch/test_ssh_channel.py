"""What is particular to the channel ssh: connections break, hosts change, agents outlive sessions; nothing is lost."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from mailer_lib.agent.job import Job, Secrets, SmtpServer
from mailer_lib.agent.job_host import PART_BYTES
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import slot_reports
from mailer_lib.dispatch import control, ssh_link
from mailer_lib.dispatch import slot as slots
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.channel import ChannelError, ChannelUnreachableError
from mailer_lib.dispatch.slot import SlotState
from mailer_lib.dispatch.ssh_channel import SshChannel
from mailer_lib.dispatch.ssh_link import shared_link
from mailer_lib.fleet import servers
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.sink.process import start
from mailer_lib.terms import ServerState
from tests.dispatch.real import Running, equip, ready_send, received
from tests.dispatch.world import World
from tests.fleet.verified import pretend_verified
from tests.sshd import Sshd

SECRETS = Secrets(dkim_key_pem="secret", token_key="00")
JOB = Job(
    job_id="a#1@b.0",
    send_id=1,
    campaign="a",
    edition="1",
    server="b",
    smtp=SmtpServer(host="127.0.0.1", port=25, helo_name="x"),
)


@contextmanager
def channel_to(server: DispatchServer, settings: Settings) -> Iterator[SshChannel]:
    with shared_link(server, settings) as link:
        yield SshChannel(link, "a/1/b.0")


@pytest.fixture(autouse=True)
def no_agent_stays(tmp_path: Path) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        if "mailer_lib.agent" in (command := process.info["cmdline"] or []) and str(tmp_path) in " ".join(command):
            process.kill()


def until(met: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not met():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it doesn't happen"
        time.sleep(0.05)


def test_an_upload_that_broke_off_goes_on_where_it_ended(
    ssh_server: DispatchServer, sshd: Sshd, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3 * PART_BYTES)
    (tmp_path / "source").write_bytes(data)
    sent: list[int] = []
    reader: list[psutil.Process] = []
    cut = threading.Timer(0.5, sshd.stop)
    put = SshChannel.put_shard_part

    def cut_in_the_third_part(self: SshChannel, *arguments: object) -> int | None:
        sent.append(arguments[3])  # type: ignore[arg-type]  # its offset
        if len(sent) == 4:
            reader.append(_remote(tmp_path / "jobs"))
            reader[0].suspend()  # so that the part is stuck half way
            cut.start()
        return put(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SshChannel, "put_shard_part", cut_in_the_third_part)
    with channel_to(ssh_server, settings) as channel:
        channel.prepare(JOB, b"{}", SECRETS)
        with pytest.raises(ChannelUnreachableError):
            channel.put_shard("0000.p1.parquet", tmp_path / "source")
        cut.join()
        reader[0].resume()
        sshd.start()
        shards = tmp_path / "jobs/a/1/b.0/shards"
        assert not (shards / "0000.p1.parquet").exists()
        until(lambda: _reaches(channel))
        channel.put_shard("0000.p1.parquet", tmp_path / "source")
    assert (shards / "0000.p1.parquet").read_bytes() == data
    assert sent == [0, 0, PART_BYTES, 2 * PART_BYTES, 0, 2 * PART_BYTES]  # the first asks how much is there


def _remote(jobs: Path) -> psutil.Process:
    """The process that reads our frames."""
    (found,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if "mailer_lib.agent.remote" in (process.info["cmdline"] or []) and str(jobs) in process.info["cmdline"]
    )
    return found


def _reaches(channel: SshChannel) -> bool:
    try:
        channel.log_tail()
    except ChannelUnreachableError:
        return False
    return True


def test_a_host_with_another_key_gets_no_byte_of_a_job(
    ssh_server: DispatchServer, settings: Settings, tmp_path: Path
) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOVcQCXA9Ui7EyMYLnYfQ3HJWsYvFWn3KyySZzNhIB9l"
    with (
        channel_to(ssh_server.model_copy(update={"host_key": other}), settings) as channel,
        pytest.raises(ChannelError, match="another host key"),
    ):
        channel.prepare(JOB, b"{}", SECRETS)
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("/nowhere/python", r"doesn't start.*mailfleet server provision mta-1"),
        ("/bin/echo", "something else than frames"),
    ],
)
def test_a_host_without_our_agent_is_told_apart_from_one_that_is_away(
    ssh_server: DispatchServer, settings: Settings, python: str, says: str
) -> None:
    with channel_to(ssh_server.model_copy(update={"agent_python": python}), settings) as channel:
        with pytest.raises(ChannelError, match=says) as caught:
            channel.is_alive()
        assert not isinstance(caught.value, ChannelUnreachableError)


def test_another_release_is_refused_with_what_to_do(
    ssh_server: DispatchServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_link, "release", lambda: "9.9")
    with (
        channel_to(ssh_server, settings) as channel,
        pytest.raises(ChannelError, match=r"this is 9\.9.*mailfleet server provision mta-1.*no row is lost"),
    ):
        channel.is_alive()


def test_slots_of_one_server_share_one_connection(ssh_server: DispatchServer, sshd: Sshd, settings: Settings) -> None:
    with shared_link(ssh_server, settings), shared_link(ssh_server, settings):
        channels = []
        for number in range(12):  # OpenSSH lets 10 sessions into a connection
            with shared_link(ssh_server.model_copy(update={"slots": number + 1}), settings) as link:
                channels.append(SshChannel(link, f"a/{number}/b.0"))
        threads = [threading.Thread(target=channel.log_tail) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(sshd.sessions()) == 1
    until(lambda: not sshd.sessions())


def test_a_server_that_is_away_is_not_asked_again_at_once(
    ssh_server: DispatchServer, sshd: Sshd, settings: Settings
) -> None:
    with channel_to(ssh_server, settings) as channel:
        assert channel.log_tail() == []
        sshd.stop()
        with pytest.raises(ChannelUnreachableError):
            until(lambda: channel.log_tail() is None)
        for _ in range(2):  # one tries to connect, the next hears what that one heard
            with pytest.raises(ChannelUnreachableError, match="can't be reached"):
                channel.log_tail()
        sshd.start()
        until(lambda: _reaches(channel))


# --- a send -----------------------------------------------------------------------------------------------------------


def over_ssh(world: World, sshd: Sshd, number: int = 0) -> Path:
    """Let a server of the world be reached by SSH; returns where its job folders are."""
    jobs = world.settings.home / "remote" / f"server-{number}"
    with write(world.engine) as connection:
        name = world.slot(number).server
        spec = servers.get(connection, name).spec().model_dump() | sshd.reached_as(jobs)
        servers.set_state(connection, name, ServerState.STANDBY, actor="test")
        servers.add(connection, servers.make_spec(**spec | {"state": ServerState.STANDBY}), actor="test", replace=True)
        pretend_verified(connection, name)
        servers.set_state(connection, name, ServerState.ACTIVE, actor="test")
    return jobs


def agents(jobs: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mailer_lib.agent" in command and str(jobs) in command[-1]:
            found.append(process)
    return found


def test_a_send_of_two_thousand_with_the_network_cut_in_its_middle_balances(
    sqlite_world: World, sshd: Sshd, tmp_path: Path
) -> None:
    world = sqlite_world
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        jobs = over_ssh(world, sshd)
        send_id = ready_send(world, [250] * 8, pace_per_s=250.0)
        slot = Running(world, send_id, world.slot())
        slot.until(lambda said: said.settled >= 300)
        (agent,) = agents(jobs)
        sshd.stop()
        away = slot.until(lambda said: "unreachable since" in said.reason)
        assert away.state is SlotState.WAITING
        with read(world.engine) as connection:
            word = connection.execute(select(slot_reports.c.state, slot_reports.c.reason)).one()
        assert "unreachable since" in word.reason
        time.sleep(4)
        assert agent.is_running()  # it outlives the session that started it
        sshd.start()
        report = slot.report()
        assert (report.state, report.injected) == (SlotState.DONE, 2000)
        assert balance(world.engine, world.settings, send_id).line() == (
            "frozen=2000 injected=2000 rejected=0 suppressed=0 failed=0 expired=0 cancelled=0 unknown=0 duplicates=0"
        )
        assert received(sink) == 2000
    assert not agents(jobs)
    assert not list(jobs.rglob("secrets.json"))
    assert not list(jobs.rglob("*.parquet"))


def test_rows_that_a_lost_server_was_never_granted_go_on_elsewhere(
    sqlite_world: World, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = sqlite_world
    monkeypatch.setattr(slots, "HAND_BACK_AWAY", slots.HAND_BACK_AWAY * 0)
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        over_ssh(world, sshd)
        send_id = ready_send(world, [400], pace_per_s=20.0)
        first = Running(world, send_id, world.slot(0))
        first.until(lambda said: said.settled >= 20)
        sshd.stop()
        first.until(lambda said: "unreachable since" in said.reason)
        control.set_pace(world.engine, "spring-sale#1", None, "ann")

        def sent_elsewhere() -> bool:  # once the first slot, which looks now and then, has handed them back
            second = Running(world, send_id, world.slot(1)).report()
            assert (second.state, second.reason) == (SlotState.IDLE, "the rows that are left are with local-1.0")
            return second.injected > 0

        until(sent_elsewhere)
        sshd.start()
        assert first.report().state is SlotState.DONE
        assert balance(world.engine, world.settings, send_id).balanced
        assert received(sink) == 400


def test_an_agent_is_found_again_by_the_next_call_and_kill_kills(
    sqlite_world: World, sshd: Sshd, tmp_path: Path
) -> None:
    world = sqlite_world
    with start(tmp_path / "sinks", fsync=False) as sink:
        equip(world, sink)
        jobs = over_ssh(world, sshd)
        send_id = ready_send(world, [500], pace_per_s=20.0)
        handed_over = threading.Event()
        slot = Running(world, send_id, world.slot(), hand_over=handed_over.is_set)
        slot.until(lambda said: said.settled > 0)
        (agent,) = agents(jobs)
        handed_over.set()
        assert slot.report().state is SlotState.HANDED_OVER
        assert not sshd.sessions() or until(lambda: not sshd.sessions()) is None  # its connection is closed
        assert agent.is_running()
        again = Running(world, send_id, world.slot())
        again.until(lambda said: said.state is SlotState.SENDING and said.settled > 0)
        assert agents(jobs) == [agent]
        with read(world.engine) as connection:
            server = servers.get(connection, world.slot().server)
        with shared_link(server, world.settings) as link:
            SshChannel(link, f"{world.campaign}/1/{world.slot().folder}").kill()
        until(lambda: agent not in agents(jobs))
        until(lambda: len(agents(jobs)) == 1)  # the slot starts another in the same folder
        again.stop.set()
        assert again.report().state is SlotState.LEFT
        assert not agents(jobs)
