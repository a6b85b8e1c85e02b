"""Kills on the way into a real Exim: of the agent, of every process of Exim, of both. Nobody is forgotten, nothing is
handed over twice (two queue ids for one Message-ID), and nothing has to be called unknown.

Exim keeps what it took (no delivery), so its spool is the truth. ``MAILFLEET_THOROUGH=1`` for 100 kills.
"""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits, SmtpServer
from mailer_lib.terms import MtaKind, Outcome
from tests.mta.exim import Exim
from tests.support import times
from tests.support_agent import JobBuilder, recipients

KILLS = times(10, 100)
ROWS_A_KILL = 60
SHARD_ROWS = 600
PER_S = 200.0  # spreads the send over the kills


def in_doubt(job: JobBuilder) -> int:
    return sum(len(state.in_doubt) for state in job.states().values())


@pytest.mark.e2e
@pytest.mark.fault
@pytest.mark.timeout(30 + 12 * KILLS)
def test_kills_of_agent_and_exim_lose_nobody_and_hand_nothing_over_twice(tmp_path: Path) -> None:
    moments = random.Random(20261124)
    rows = KILLS * ROWS_A_KILL
    with Exim(tmp_path / "mta") as exim:
        smtp = SmtpServer(
            host="127.0.0.1",
            port=exim.port,
            helo_name="agent.example",
            connections=8,
            mta=MtaKind.EXIM,
            mta_log=str(exim.log),
            mta_spool=str(exim.spool),
        )
        job = JobBuilder(tmp_path / "job", smtp).write(retry_first_s=0.2)
        everybody = recipients(rows)
        for first in range(0, rows, SHARD_ROWS):
            job.add_shard(everybody[first : first + SHARD_ROWS])
        job.control(limits=Limits(per_s=PER_S))

        kinds: Counter[str] = Counter()
        kills_in_doubt = doubts = 0
        agent = job.start()
        for kill in range(KILLS):
            target = (kill + 1) * rows * 0.9 / KILLS
            deadline = time.monotonic() + 60
            while _settled(job) < target:
                assert agent.poll() is None, job.log()
                assert time.monotonic() < deadline, f"no progress: {job.status()}"
                time.sleep(0.005)
            time.sleep(moments.random() * 0.05)
            aimed = time.monotonic() + 0.5  # else too many hit nothing: at this pace few messages are on their way
            while not in_doubt(job) and time.monotonic() < aimed:
                pass
            kind = ("agent", "exim", "both")[kill % 3]
            kinds[kind] += 1
            if kind == "both" and moments.random() < 0.5:
                exim.kill()
                agent.send_signal(signal.SIGKILL)
            else:
                if kind != "exim":
                    agent.send_signal(signal.SIGKILL)
                if kind != "agent":
                    exim.kill()
            if kind == "exim":
                left = in_doubt(job)  # read at once: the agent settles them by itself
            else:
                assert agent.wait() == -signal.SIGKILL, job.log()
                left = in_doubt(job)
            doubts += left
            kills_in_doubt += left > 0
            if kind != "agent":
                exim.start()
            if kind != "exim":
                agent = job.start()
        job.control()  # the rest at full speed
        assert agent.wait(120) == ExitCode.DONE, job.log()

        outcomes = Counter(job.outcomes().values())
        queued = exim.queued()
        verdicts = Counter(line.rpartition(": ")[2] for line in job.log().splitlines() if " message " in line)
        print(f"kills {dict(kinds)}, {kills_in_doubt} left rows in doubt ({doubts} rows), verdicts {dict(verdicts)}")
        assert outcomes == {Outcome.INJECTED: rows}
        assert [key for key, times in queued.items() if times > 1] == []
        assert set(queued) == {person.message_key.hex() for person in everybody}
        assert not any(state.in_doubt for state in job.states().values())
        assert kills_in_doubt >= KILLS // 2
        assert verdicts["Injected"]
        assert not exim.panics


def _settled(job: JobBuilder) -> int:
    return sum(path.read_bytes().count(b"\nO\t") for path in (job.path / "ledgers").glob("*.ledger"))
