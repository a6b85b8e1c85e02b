"""The disk of a dispatch server fills up in mid-run, for real: a file system of two megabytes."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits
from mailer_lib.sink.process import start
from mailer_lib.terms import Outcome
from tests.support_agent import JobBuilder, message_ids, recipients, sink_server

ROWS = 400


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "mailfleet-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.fault
def test_an_agent_whose_disk_is_full_stops_and_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    with start(tmp_path) as sink:
        job = JobBuilder(small_disk / "job", sink_server(sink.port, sink.mainlog)).write()
        job.add_shard(recipients(ROWS))
        job.control(limits=Limits(per_s=400))
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        with filler.open("r+b") as file:
            file.truncate(filler.stat().st_size - 16 * 4096)  # room for some of the ledger
        ended = job.run()
        half = len(message_ids(sink.maildir))
        assert ended == ExitCode.FAILED, job.log()
        assert "No space left on device; free some room, then start again" in job.log()
        assert 0 < half < ROWS

        filler.unlink()
        assert job.run() == ExitCode.DONE, job.log()
        received = Counter(message_ids(sink.maildir))
    assert received.most_common(1)[0][1] == 1
    assert Counter(job.outcomes().values()) == {Outcome.INJECTED: ROWS}
    assert set(received) == job.injected_keys()
