"""SIGKILL of the agent at 30 moments of a send of 5,000: nobody forgotten, nobody mailed twice, every doubt settled.

Separate processes, the shipped command, real signals. What was received is counted from the Maildir alone.
"""

import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits
from mailer_lib.sink.process import start
from mailer_lib.terms import Outcome
from tests.support import times
from tests.support_agent import JobBuilder, message_ids, recipients, sink_server

ROWS = 5_000
SHARDS = 5
KILLS = times(12, 30)
PER_S = 600.0  # spreads the send over the kills
# The MTA takes its time after the last dot, so that messages are on their way at any moment
SLOW = """
domains:
  slow.example: {slow: {after_dot_ms: 25}}
  vanishing.example: {vanish: {share: 0.01}}
"""


@pytest.mark.e2e
@pytest.mark.fault
@pytest.mark.timeout(240)
def test_kills_lose_nobody_and_mail_nobody_twice(tmp_path: Path) -> None:
    moments = random.Random(20261124)
    with start(tmp_path, name="mx", rules=SLOW) as sink:
        job = JobBuilder(tmp_path / "job", sink_server(sink.port, sink.mainlog, connections=8)).write()
        everybody = recipients(ROWS, lambda row: ("slow", "other", "vanishing")[row % 3])
        for first in range(0, ROWS, ROWS // SHARDS):
            job.add_shard(everybody[first : first + ROWS // SHARDS])
        job.control(limits=Limits(per_s=PER_S))

        doubts = 0
        for kill in range(KILLS):
            agent = job.start()
            target = (kill + 1) * ROWS * 0.9 / KILLS  # settled rows at which this kill strikes
            _wait_for(job, agent, target)
            time.sleep(moments.random() * 0.05)
            agent.send_signal(signal.SIGKILL)
            assert agent.wait() == -signal.SIGKILL, job.log()
            doubts += sum(len(state.in_doubt) for state in job.states().values())

        job.control()  # the rest at full speed
        assert job.run() == ExitCode.DONE, job.log()

        states = job.states()
        received = Counter(message_ids(sink.maildir))
        outcomes = Counter(job.outcomes().values())
        verdicts = Counter(line.rpartition(": ")[2] for line in job.log().splitlines() if " message " in line)
        print(f"{KILLS} kills, {doubts} rows in doubt, verdicts {dict(verdicts)}, outcomes {dict(outcomes)}")
        assert doubts >= KILLS
        assert verdicts["Injected"] and verdicts["NotInjected"]  # both kinds were met
        assert not any(state.in_doubt for state in states.values())
        assert max(state.incarnation for state in states.values()) == KILLS + 1
        assert outcomes == {Outcome.INJECTED: ROWS}
        assert [key for key, times in received.items() if times > 1] == []
        assert set(received) == job.injected_keys()
        assert set(received) == {person.message_key.hex() for person in everybody}


def _settled(job: JobBuilder) -> int:
    """Outcome lines in the ledgers; counted as bytes, so that the test itself costs little."""
    return sum(path.read_bytes().count(b"\nO\t") for path in (job.path / "ledgers").glob("*.ledger"))


def _wait_for(job: JobBuilder, agent: "subprocess.Popen[bytes]", target: float) -> None:
    deadline = time.monotonic() + 60
    while _settled(job) < target and agent.poll() is None:
        assert time.monotonic() < deadline, "the agent makes no progress"
        time.sleep(0.01)
