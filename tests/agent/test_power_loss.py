"""The dispatch server loses its power: the end of the ledger is gone, and the machine has booted again.

What a disk would have kept is played by an older, cut copy of the ledger in the place of the newest one, which is worse
than the 0.2 s between two syncs; the new boot by a ``boot_id`` that only the next agent sees (a mount of its own).
"""

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Outcome
from tests.support_agent import JobBuilder, message_ids, recipients, sink_server

ROWS, GRANTED = 400, 300


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path) as process:
        yield process


def begun(tmp_path: Path, sink: SinkProcess) -> JobBuilder:
    job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog)).write()
    job.add_shard(recipients(ROWS), granted_through=GRANTED)
    job.control(limits=Limits(per_s=200), complete=False)
    return job


def wait_for(condition: Callable[[], object], job: JobBuilder) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, job.log()
        time.sleep(0.01)


def all_granted(job: JobBuilder) -> None:
    (grant,) = job.leases
    job.leases[:] = [grant.model_copy(update={"granted_through": ROWS})]
    job.control()


def finished(job: JobBuilder, agent: "subprocess.Popen[bytes]") -> None:
    """The grant that the power loss met is settled, then the rest is sent."""
    wait_for(lambda: len(job.outcomes()) >= GRANTED, job)
    all_granted(job)
    assert agent.wait(60) == ExitCode.DONE, job.log()


@pytest.mark.fault
@pytest.mark.parametrize("seed", range(4))
def test_what_the_disk_lost_is_never_sent_again(tmp_path: Path, sink: SinkProcess, seed: int) -> None:
    moments = random.Random(seed)
    job = begun(tmp_path, sink)
    (grant,) = job.leases
    ledger = job.path / "ledgers" / grant.ledger_name
    agent = job.start(boot_id="boot-a")
    wait_for(lambda: len(job.outcomes()) >= moments.randrange(20, 120), job)
    kept = ledger.read_bytes()
    kept = kept[: len(kept) - moments.randrange(200)]  # the last line may be torn
    time.sleep(0.1 + moments.random() * 0.3)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    assert ledger.stat().st_size > len(kept)
    ledger.write_bytes(kept)

    job.control(limits=Limits(per_s=200), complete=False)
    first = job.start(boot_id="boot-b")
    time.sleep(moments.random() * 0.5)  # it may die once more while it settles
    first.send_signal(signal.SIGKILL)
    first.wait()
    agent = job.start(boot_id="boot-b")
    finished(job, agent)

    received = Counter(message_ids(sink.maildir))
    outcomes = job.outcomes()
    assert len(outcomes) == ROWS
    assert received.most_common(1)[0][1] == 1
    assert job.injected_keys() <= set(received)
    lost = [row for (_, row), outcome in outcomes.items() if outcome is Outcome.UNKNOWN]
    assert set(outcomes.values()) <= {Outcome.INJECTED, Outcome.UNKNOWN}
    assert all(row < GRANTED for row in lost)
    assert received.total() > GRANTED // 20 + ROWS - GRANTED


def test_an_orderly_shutdown_leaves_no_doubt(tmp_path: Path, sink: SinkProcess) -> None:
    job = begun(tmp_path, sink)
    agent = job.start(boot_id="boot-a")
    wait_for(lambda: len(job.outcomes()) >= 50, job)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == ExitCode.TERMINATED
    agent = job.start(boot_id="boot-b")
    finished(job, agent)
    assert Counter(job.outcomes().values()) == {Outcome.INJECTED: ROWS}
    assert Counter(message_ids(sink.maildir)).most_common(1)[0][1] == 1
