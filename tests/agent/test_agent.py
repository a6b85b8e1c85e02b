"""The agent as a process of its own, against the development sink and against servers that misbehave."""

import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Control, MtaKind, Outcome, SmtpSecurity
from tests.support import free_port
from tests.support_agent import JobBuilder, message_ids, recipients, sink_server

RULES = """
domains:
  unknown.example: {unknown: {pattern: "."}}
  policy.example: {refuse: {at: dot}}
  greylist.example: {defer: {first: 1}}
  gone.example: {vanish: {first: 1}}
"""
KINDS = ("ok", "unknown", "policy", "greylist", "gone", "left", "blocked", "nameless")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path, rules=RULES) as process:
        yield process


@contextmanager
def running(job: JobBuilder) -> Iterator["subprocess.Popen[bytes]"]:
    agent = job.start()
    try:
        yield agent
    finally:
        agent.kill()
        agent.wait()


def wait_for(condition: Callable[[], object], job: JobBuilder) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.02)


def state_of(job: JobBuilder) -> str:
    return job.status().state if (job.path / "status.json").exists() else ""


def test_every_row_gets_the_outcome_that_it_deserves(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write(retry_first_s=0.2)
    people = recipients(80, lambda row: KINDS[row % 8])
    nameless = [row for row, person in enumerate(people) if person.provider == "nameless"]
    for row in nameless:
        people[row] = type(people[row])(
            **{name: getattr(people[row], name) for name in type(people[row]).__slots__} | {"given_name": None}
        )
    job.add_shard(people[:50])
    job.add_shard(people[50:])
    job.suppress(*(person.address_hash.hex() for person in people if person.provider == "left"), "@blocked.example")
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    expected = {
        "ok": Outcome.INJECTED,
        "unknown": Outcome.REJECTED,
        "policy": Outcome.REJECTED,
        "greylist": Outcome.INJECTED,
        "gone": Outcome.INJECTED,  # the connection vanished, the sink's log told
        "left": Outcome.SUPPRESSED,
        "blocked": Outcome.SUPPRESSED,
        "nameless": Outcome.FAILED,
    }
    outcomes = job.outcomes()
    assert len(outcomes) == 80
    for (shard, row), outcome in outcomes.items():
        assert outcome is expected[people[shard * 50 + row].provider]
    received = Counter(message_ids(sink.maildir))
    assert set(received.values()) == {1}
    assert set(received) == job.injected_keys()
    status = job.status()
    assert (status.state, status.injected, status.settled_rows, status.dry) == ("done", 30, 80, True)
    assert "@" not in job.log().replace("small#1@local-1.0", "")
    for path in (job.path / "ledgers").iterdir():
        assert "person" not in path.read_text()


def test_pause_resume_and_stop(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    job.add_shard(recipients(400))
    paced = Limits(per_s=100)
    job.control(limits=paced)
    with running(job) as agent:
        wait_for(lambda: len(job.outcomes()) >= 10, job)
        job.control(Control.PAUSE, paced)
        wait_for(lambda: state_of(job) == "paused" and not job.status().in_flight, job)
        paused_at = len(message_ids(sink.maildir))
        time.sleep(0.5)
        assert len(message_ids(sink.maildir)) == paused_at < 400
        job.control(Control.RUN, paced)
        wait_for(lambda: len(message_ids(sink.maildir)) > paused_at, job)
        job.control(Control.STOP, paced)
        assert agent.wait(30) == ExitCode.DONE, job.log()
    outcomes = Counter(job.outcomes().values())
    assert outcomes.total() == 400
    assert set(outcomes) == {Outcome.INJECTED, Outcome.CANCELLED}
    assert outcomes[Outcome.INJECTED] == len(message_ids(sink.maildir))


def test_somebody_who_leaves_in_mid_run_gets_nothing_more(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    people = recipients(200)
    job.add_shard(people)
    job.control(limits=Limits(per_s=100))
    with running(job) as agent:
        wait_for(lambda: job.outcomes(), job)
        job.suppress(people[-1].address_hash.hex())
        wait_for(lambda: job.status().suppressions_read == 1, job)
        job.control()
        assert agent.wait(30) == ExitCode.DONE, job.log()
    outcomes = job.outcomes()
    assert outcomes[0, 199] is Outcome.SUPPRESSED
    assert people[-1].message_key.hex() not in message_ids(sink.maildir)


def test_only_what_is_granted_is_sent_by_one_agent_until_it_is_told_to_leave(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    grant = job.add_shard(recipients(50), granted_through=10)
    job.control(complete=False)
    with running(job) as agent:
        wait_for(lambda: len(job.outcomes()) == 10 and job.status().dry, job)
        assert job.run() == ExitCode.LOCKED
        assert f"an agent (pid {agent.pid}) already works in" in job.log()
        assert len(message_ids(sink.maildir)) == 10
        job.leases[0] = grant.model_copy(update={"granted_through": 25})
        job.control(complete=False)
        wait_for(lambda: len(job.outcomes()) == 25, job)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == ExitCode.TERMINATED
    assert set(job.outcomes()) == {(0, row) for row in range(25)}
    job.leases[0] = grant.model_copy(update={"granted_through": 50})
    job.control()
    assert job.run() == ExitCode.DONE
    assert len(message_ids(sink.maildir)) == len(set(message_ids(sink.maildir))) == 50


def test_what_was_not_accepted_in_time_expires(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write(expires_at=time.time() + 3600)
    job.add_shard(recipients(20, lambda row: "slow" if row % 2 else "other"))
    job.control(limits=Limits(provider_per_s={"slow": 0}))
    with running(job) as agent:
        wait_for(lambda: len(job.outcomes()) == 10, job)
        job.control(limits=Limits(provider_per_s={"slow": 0}), expires_at=time.time())
        assert agent.wait(30) == ExitCode.DONE, job.log()
    assert Counter(job.outcomes().values()) == {Outcome.INJECTED: 10, Outcome.EXPIRED: 10}


def test_an_agent_whose_slot_is_silent_and_that_has_nothing_to_do_ends(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write(idle_exit_s=0.5)
    job.add_shard(recipients(20), granted_through=10)
    job.control(complete=False)
    assert job.run() == ExitCode.IDLE
    assert len(job.outcomes()) == 10


def test_an_mta_that_is_away_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "late"
    job = JobBuilder(tmp_path / "job", sink_server(port, folder / "mainlog")).write()
    job.add_shard(recipients(20))
    job.control()
    with running(job) as agent:
        wait_for(lambda: state_of(job) == "waiting" and "can't be used" in job.status().reason, job)
        with start(tmp_path, name="late", listen=(f"127.0.0.1:{port}",)) as sink:
            assert agent.wait(60) == ExitCode.DONE, job.log()
            assert len(message_ids(sink.maildir)) == 20


def test_an_mta_that_dies_and_comes_back_gets_each_message_once(tmp_path: Path) -> None:
    """SIGKILL of the sink in mid-run: what it had in hand is settled from its log."""
    port = free_port()
    address = (f"127.0.0.1:{port}",)
    job = JobBuilder(tmp_path / "job", sink_server(port, tmp_path / "mx/mainlog")).write()
    job.add_shard(recipients(600))
    job.control(limits=Limits(per_s=300))
    sink = start(tmp_path, name="mx", listen=address)
    with running(job) as agent:
        wait_for(lambda: len(job.outcomes()) >= 100, job)
        sink.kill()
        with start(tmp_path, name="mx", listen=address) as sink:
            job.control()
            assert agent.wait(60) == ExitCode.DONE, job.log()
            received = Counter(message_ids(sink.maildir))
    assert Counter(job.outcomes().values()) == {Outcome.INJECTED: 600}
    # Stored, and killed before the line in its log: the sink's own doubt (RFC 1047), at most one for each connection
    assert received.total() <= 600 + 4
    assert set(received) == job.injected_keys()


def test_starttls_and_auth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(tmp_path, require_starttls=True, auth={"agent": "geheim"}) as sink:
        monkeypatch.setenv("SSL_CERT_FILE", str(sink.certificate))
        server = sink_server(sink.port, sink.mainlog, security=SmtpSecurity.STARTTLS, user="agent")
        job = JobBuilder(tmp_path / "job", server, password="geheim").write()
        job.add_shard(recipients(30))
        job.control()
        assert job.run() == ExitCode.DONE, job.log()
        assert len(message_ids(sink.maildir)) == 30
        assert "geheim" not in job.log()


def test_a_shard_that_isn_t_the_granted_one_is_refused(tmp_path: Path) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(free_port(), None)).write()
    grant = job.add_shard(recipients(5))
    job.leases[0] = grant.model_copy(update={"sha256": "0" * 64})
    job.control()
    assert job.run() == ExitCode.BAD_JOB
    assert "isn't the shard that was granted" in job.log()
    assert job.status().state == "failed"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda job: (job.path / "job.json").unlink(), "job.json can't be read"),
        (lambda job: (job.path / "job.json").write_text("{}"), "Field required"),
        (lambda job: (job.path / "message.json").write_text("no"), "message.json"),
    ],
)
def test_a_folder_that_can_t_be_used(tmp_path: Path, spoil: Callable[[JobBuilder], object], sentence: str) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(25, None)).write()
    spoil(job)
    assert job.run() == ExitCode.BAD_JOB
    assert sentence in job.log()


def test_a_damaged_ledger_stops_the_agent(tmp_path: Path, sink: SinkProcess) -> None:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    job.add_shard(recipients(5), granted_through=3)
    job.control(complete=False)
    with running(job) as agent:
        wait_for(lambda: len(job.outcomes()) == 3, job)
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)
    (ledger,) = (job.path / "ledgers").iterdir()
    data = bytearray(ledger.read_bytes())
    data[data.index(b"\nS\t") + 3] ^= 1
    ledger.write_bytes(data)
    assert job.run() == ExitCode.FAILED
    assert "damaged ledger line" in job.log()
    assert len(message_ids(sink.maildir)) == 3


# --- servers that misbehave -------------------------------------------------------------------------------------------


@contextmanager
def scripted_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """``serve`` handles each connection in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(client: socket.socket) -> None:
        with client, suppress(OSError):
            serve(client)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def until_content(client: socket.socket) -> bytes:
    """Up to the 354; returns the first bytes of content."""
    client.sendall(b"220 mx\r\n")
    client.recv(4096)
    client.sendall(b"250-mx\r\n250 PIPELINING\r\n")
    commands = b""
    while b"DATA\r\n" not in commands:
        commands += client.recv(4096) or b"DATA\r\n"
    client.sendall(b"250 OK\r\n250 OK\r\n354 go\r\n")
    return client.recv(1)


def vanish(client: socket.socket) -> None:
    until_content(client)
    client.recv(1 << 20)


def test_a_relay_that_vanishes_after_the_dot_leaves_the_message_unknown(tmp_path: Path) -> None:
    with scripted_server(vanish) as port:
        job = JobBuilder(tmp_path / "job", sink_server(port, None, connections=2)).write()
        job.add_shard(recipients(4))
        job.control()
        assert job.run() == ExitCode.DONE, job.log()
    assert Counter(job.outcomes().values()) == {Outcome.UNKNOWN: 4}


def test_the_intent_is_written_before_a_byte_of_the_message_leaves(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(client: socket.socket) -> None:
        until_content(client)
        seen.append(sum(len(state.in_doubt) for state in job.states().values()))

    with scripted_server(look) as port:
        job = JobBuilder(tmp_path / "job", sink_server(port, None, connections=1)).write()
        job.add_shard(recipients(5))
        job.control()
        assert job.run() == ExitCode.DONE, job.log()
    assert len(seen) == 5
    assert all(in_doubt >= 1 for in_doubt in seen)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    release = threading.Event()

    def mute(client: socket.socket) -> None:
        until_content(client)
        release.wait(30)

    with scripted_server(mute) as port:
        server = sink_server(port, None, connections=1, timeout_s=0.5)
        assert server.mta is MtaKind.RELAY
        job = JobBuilder(tmp_path / "job", server).write()
        job.add_shard(recipients(1))
        job.control()
        try:
            assert job.run() == ExitCode.DONE, job.log()
        finally:
            release.set()
    assert Counter(job.outcomes().values()) == {Outcome.UNKNOWN: 1}
    assert "no reply for" in job.log()


def test_a_server_that_wants_auth_blames_no_message(tmp_path: Path) -> None:
    def strict(client: socket.socket) -> None:
        client.sendall(b"220 mx\r\n")
        client.recv(4096)
        client.sendall(b"250-mx\r\n250 PIPELINING\r\n")
        client.recv(4096)
        client.sendall(b"530 5.7.0 Authentication required\r\n503 no\r\n503 no\r\n")
        client.recv(4096)

    with scripted_server(strict) as port:
        job = JobBuilder(tmp_path / "job", sink_server(port, None, connections=2)).write()
        job.add_shard(recipients(5))
        job.control()
        with running(job) as agent:
            wait_for(lambda: state_of(job) and "Authentication required" in job.status().reason, job)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == ExitCode.TERMINATED
    assert job.outcomes() == {}


def test_an_agent_stops_by_itself_when_the_send_window_closes(tmp_path: Path, sink: SinkProcess) -> None:
    """Its slot may be dead by then."""
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    job.add_shard(recipients(400))
    slow = Limits(per_s=10.0)
    job.control(limits=slow, complete=False)
    with running(job):
        wait_for(lambda: len(message_ids(sink.maildir)) > 0, job)
        job.control(limits=slow, complete=False, window_closes_at=time.time() + 1.0)
        wait_for(lambda: job.status().reason == "the send window is over" and not job.status().in_flight, job)
        sent = len(message_ids(sink.maildir))
        assert 0 < sent < 400
        time.sleep(1.0)
        assert len(message_ids(sink.maildir)) == sent
        job.control(limits=slow, complete=False)  # it is open again
        wait_for(lambda: len(message_ids(sink.maildir)) > sent, job)
