"""What a real Exim has taken and not delivered: held by a pause, taken back by stop, expiry and suppression."""

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import SmtpServer
from mailer_lib.agent.mta_queue import EximQueue
from mailer_lib.agent.recall import QueueListing
from mailer_lib.agent.recalls import Recall, RecallLog, Step
from mailer_lib.terms import Control, MtaKind, Outcome
from tests.mta.exim import Exim
from tests.support_agent import SEND_ID, JobBuilder, recipients

QUEUE = f"s{SEND_ID}"


@pytest.fixture
def exim(tmp_path: Path) -> Iterator[Exim]:
    with Exim(tmp_path / "mta") as started:
        yield started
        assert not started.panics


def job_for(exim: Exim, path: Path, *, named: bool = True, **more: object) -> JobBuilder:
    smtp = SmtpServer(
        host="127.0.0.1",
        port=exim.port,
        helo_name=f"{QUEUE}.queue.invalid" if named else "agent.example",
        connections=2,
        mta=MtaKind.EXIM,
        mta_log=str(exim.log),
        mta_spool=str(exim.spool),
        mta_queues=named,
        mta_command=exim.command,
    )
    return JobBuilder(path, smtp).write(**more)


def queue_of(exim: Exim) -> EximQueue:
    return EximQueue(exim.spool, (QUEUE, ""), tuple(exim.command.split()))


def until(met: object, agent: "subprocess.Popen[bytes]", job: JobBuilder) -> None:
    deadline = time.monotonic() + 30
    while not met():  # type: ignore[operator]
        assert agent.poll() is None, job.log()
        assert time.monotonic() < deadline, f"{job.log()}\n{job.status()}"
        time.sleep(0.05)


def recalled(job: JobBuilder) -> list[Recall]:
    return [recall for recall in RecallLog(job.path / "ledgers").read() if recall.step is Step.RECALLED]


@pytest.mark.parametrize("named", [True, False], ids=["queue of the send", "one queue for all"])
def test_a_stop_takes_back_what_the_mta_has_not_delivered(exim: Exim, tmp_path: Path, named: bool) -> None:
    other = JobBuilder(tmp_path / "other", job_for(exim, tmp_path / "x", named=False).smtp).write()
    other.add_shard(recipients(40)[30:])
    other.control()
    assert other.run() == ExitCode.DONE, other.log()  # another send's messages lie in the same spool
    job = job_for(exim, tmp_path / "job", named=named)
    job.add_shard(recipients(30))
    job.control(complete=False)
    agent = job.start()
    until(lambda: len(job.outcomes()) == 30, agent, job)
    assert len(list((exim.spool / QUEUE / "input").rglob("*-H"))) == (30 if named else 0)
    job.control(Control.STOP)
    assert agent.wait(30) == ExitCode.DONE, job.log()
    assert {(recall.ledger, recall.row, recall.why) for recall in recalled(job)} == {
        ("0000.p1.e1.ledger", row, "the send was stopped") for row in range(30)
    }
    assert set(exim.queued()) == {person.message_key.hex() for person in recipients(40)[30:]}
    assert set(job.outcomes().values()) == {Outcome.INJECTED}  # the ledger says what was handed over; the centre amends
    assert job.status().recalled == 30


def test_a_stop_that_keeps_the_queue_takes_nothing_back(exim: Exim, tmp_path: Path) -> None:
    job = job_for(exim, tmp_path / "job")
    job.add_shard(recipients(5))
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    job.control(Control.STOP, keep_queue=True)
    assert job.run() == ExitCode.DONE, job.log()
    assert len(exim.queued()) == 5
    assert recalled(job) == []


def test_expiry_takes_back_what_the_mta_has_not_delivered(exim: Exim, tmp_path: Path) -> None:
    job = job_for(exim, tmp_path / "job")
    job.add_shard(recipients(5))
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    job.control(expires_at=time.time() - 1)  # the agent comes back when the send has expired
    assert job.run() == ExitCode.DONE, job.log()
    assert {recall.why for recall in recalled(job)} == {"the send expired"}
    assert exim.queued() == Counter()


def test_a_pause_holds_the_queue_and_going_on_releases_it(exim: Exim, tmp_path: Path) -> None:
    job = job_for(exim, tmp_path / "job")
    job.add_shard(recipients(12))
    job.control(complete=False)
    agent = job.start()
    until(lambda: len(job.outcomes()) == 12, agent, job)
    job.control(Control.PAUSE, complete=False)
    until(lambda: all(message.frozen for message in queue_of(exim).messages()), agent, job)
    assert len(queue_of(exim).messages()) == 12
    job.control(complete=False)
    until(lambda: not any(message.frozen for message in queue_of(exim).messages()), agent, job)
    assert len(queue_of(exim).messages()) == 12
    job.control()
    assert agent.wait(30) == ExitCode.DONE, job.log()


def test_who_leaves_after_the_hand_over_is_taken_out_of_the_queue(exim: Exim, tmp_path: Path) -> None:
    people = recipients(9, lambda row: "ab"[row % 2])
    job = job_for(exim, tmp_path / "job")
    job.add_shard(people)
    job.control(complete=False)
    agent = job.start()
    until(lambda: len(job.outcomes()) == 9, agent, job)
    job.suppress(people[4].address_hash.hex(), f"={people[4].message_key.hex()}", "@b.example")
    until(lambda: len(recalled(job)) == 5, agent, job)
    job.control()
    assert agent.wait(30) == ExitCode.DONE, job.log()
    assert {recall.row for recall in recalled(job)} == {1, 3, 4, 5, 7}
    assert {recall.why for recall in recalled(job)} == {"suppressed after it was handed over"}
    assert set(exim.queued()) == {people[row].message_key.hex() for row in (0, 2, 6, 8)}


def test_an_agent_that_is_told_to_leave_finishes_its_look_at_the_queue(exim: Exim, tmp_path: Path) -> None:
    people = recipients(3)
    job = job_for(exim, tmp_path / "job")
    job.add_shard(people)
    job.control(complete=False)
    agent = job.start()
    until(lambda: len(job.outcomes()) == 3, agent, job)
    job.suppress(f"={people[1].message_key.hex()}")
    until(lambda: len(recalled(job)) == 1, agent, job)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == ExitCode.TERMINATED, job.log()


def test_what_is_being_delivered_is_not_recalled(tmp_path: Path) -> None:
    with SlowSink() as sink, Exim(tmp_path / "mta", relay_to=sink.port) as exim:
        job = job_for(exim, tmp_path / "job")
        job.add_shard(recipients(3))
        job.control()
        assert job.run() == ExitCode.DONE, job.log()
        first = queue_of(exim).messages()[0]
        delivery = subprocess.Popen([*exim.command.split(), f"-qG{QUEUE}", "-Mc", first.queue_id])
        sink.greeted.wait(20)  # Exim holds the message's lock now, and waits for the receiver's word
        job.control(Control.STOP)
        agent = job.start()
        until(lambda: len(recalled(job)) == 2, agent, job)
        time.sleep(1)  # it is asked for again and again, and refused
        assert len(recalled(job)) == 2
        sink.go_on.set()
        delivery.wait(20)
        assert agent.wait(40) == ExitCode.DONE, job.log()
        assert len(recalled(job)) == 2
        assert first.queue_id not in {recall.queue_id for recall in recalled(job)}
        assert f"{first.queue_id} => " in exim.log.read_text()


def test_an_agent_killed_while_it_recalls_leaves_a_question_that_the_next_one_answers(
    exim: Exim, tmp_path: Path
) -> None:
    job = job_for(exim, tmp_path / "job")
    job.add_shard(recipients(3))
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    lying = queue_of(exim).messages()
    log = RecallLog(job.path / "ledgers")
    log.add(Recall(Step.ASKED, "0000.p1.e1.ledger", row, message.queue_id, 1, "x") for row, message in enumerate(lying))
    queue_of(exim).remove(lying[:1])  # and there its predecessor was killed, before it could read the log
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    assert [recall.queue_id for recall in recalled(job)] == [lying[0].queue_id]
    assert len(exim.queued()) == 2


def test_what_an_operator_removed_by_hand_after_a_delivery_is_not_called_recalled(exim: Exim, tmp_path: Path) -> None:
    job = job_for(exim, tmp_path / "job")
    job.add_shard(recipients(2))
    job.control()
    assert job.run() == ExitCode.DONE, job.log()
    delivered, lying = queue_of(exim).messages()
    with exim.log.open("a") as file:  # killed between the receiver's 250 and its own journal, Exim has it twice
        file.write(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}.000 [9] {delivered.queue_id} => a@b.example R=onward T=onward\n"
        )
    job.control(Control.STOP)
    assert job.run() == ExitCode.DONE, job.log()
    assert [recall.queue_id for recall in recalled(job)] == [lying.queue_id]


def test_the_queue_is_listed_for_the_centre_without_addresses(exim: Exim, tmp_path: Path) -> None:
    people = recipients(4)
    job = job_for(exim, tmp_path / "job")
    job.add_shard(people)
    job.control(complete=False)
    agent = job.start()
    until(lambda: job.status().queued == 4 if (job.path / "status.json").exists() else False, agent, job)
    listing = QueueListing.load(job.path / "ledgers" / "queue.json")
    assert {message.message_key for message in listing.messages} == {person.message_key.hex() for person in people}
    assert "person" not in (job.path / "ledgers" / "queue.json").read_text()
    job.control()
    assert agent.wait(30) == ExitCode.DONE, job.log()


class SlowSink:
    """A receiver that greets only when it is told to, then takes everything."""

    def __init__(self) -> None:
        import socket
        import threading

        self.greeted, self.go_on = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "SlowSink":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go_on.set()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            self.greeted.set()
            self.go_on.wait(60)
            connection.sendall(b"220 slow.test\r\n")
            in_data = False
            for line in lines:
                if in_data and line != b".\r\n":
                    continue
                if line[:4].upper() == b"DATA":
                    in_data = True
                    connection.sendall(b"354 go on\r\n")
                elif line[:4].upper() == b"QUIT":
                    connection.sendall(b"221 bye\r\n")
                    return
                else:
                    in_data = False
                    connection.sendall(b"250 ok\r\n")
