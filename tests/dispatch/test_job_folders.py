"""Job folders go when their send is long over, here and behind SSH; what is needed or not understood stays."""

import fcntl
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, dispatch_servers, sends
from mailer_lib.dispatch.housekeeping import keep_house
from mailer_lib.terms import SendState, ServerState
from tests.dispatch.test_ssh_channel import over_ssh
from tests.dispatch.world import World
from tests.sshd import Sshd

LONG_AGO, LATELY = timedelta(days=15), timedelta(days=13)


def made(root: Path, *jobs: str) -> None:
    for job in jobs:
        folder = root / job
        (folder / "ledgers").mkdir(parents=True)
        (folder / "ledgers" / "0000.jsonl").write_text("x")


def there(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*/*"))


@pytest.fixture
def world(sqlite_world: World) -> World:
    """Sends 1: long over; 2: over lately; 3: running since long ago; 4: stopped long ago, and executed again."""
    for edition, state, ago in (
        ("1", SendState.FINISHED, LONG_AGO), ("2", SendState.FINISHED, LATELY), ("3", SendState.RUNNING, LONG_AGO),
        ("4", SendState.STOPPED, LONG_AGO),
    ):  # fmt: skip
        sqlite_world.send(edition=edition, state=state, finished_at=now() - ago, claim=None)
    with write(sqlite_world.engine) as connection:
        connection.execute(update(sends).where(sends.c.edition == "4").values(claim="airflow:again"))
    return sqlite_world


def test_a_folder_goes_when_its_send_is_long_over(world: World) -> None:
    jobs = world.settings.jobs_dir
    made(jobs, *(f"spring-sale/{edition}/local-1.0" for edition in "1234"), "spring-sale/1/local-2.0", "a/b/c")
    done = keep_house(world.engine, world.settings, actor="ann")
    assert there(jobs) == ["a/b/c", *(f"spring-sale/{edition}/local-1.0" for edition in "234")]
    assert not (jobs / "spring-sale" / "1").exists()
    assert done.sentences()[:2] == [
        "this machine: 2 job folders removed (spring-sale/1/local-1.0, spring-sale/1/local-2.0)",
        "this machine: job folders of no send that is known: a/b/c",
    ]
    assert keep_house(world.engine, world.settings, actor="ann").folders[0].removed == ()
    with read(world.engine) as connection:
        said = connection.scalars(select(audit_log.c.detail).where(audit_log.c.action == "job-folders.remove")).all()
    assert said == [{"folders": ["spring-sale/1/local-1.0", "spring-sale/1/local-2.0"]}]


def test_neither_an_agent_nor_a_server_that_is_to_be_reconciled_loses_its_folder(world: World) -> None:
    jobs = world.settings.jobs_dir
    made(jobs, "spring-sale/1/local-1.0", "spring-sale/1/local-2.0")
    with write(world.engine) as connection:
        lost = dispatch_servers.c.name == "local-2"
        connection.execute(update(dispatch_servers).where(lost).values(unreconciled=True))
    with (jobs / "spring-sale/1/local-1.0/agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (trouble,) = keep_house(world.engine, world.settings, actor="ann").troubles
    assert "an agent works in" in trouble
    assert len(there(jobs)) == 2


def test_folders_behind_ssh_go_too_and_a_server_that_is_away_is_asked_next_time(world: World, sshd: Sshd) -> None:
    jobs = over_ssh(world, sshd)
    made(jobs, "spring-sale/1/local-1.0", "spring-sale/2/local-1.0", "x/y/z")
    sshd.stop()
    assert keep_house(world.engine, world.settings, actor="ann").troubles
    sshd.start()
    done = keep_house(world.engine, world.settings, actor="ann")
    assert (done.troubles, done.folders[1].removed) == ((), ("spring-sale/1/local-1.0",))
    assert done.folders[1].strange == ("x/y/z",)
    assert there(jobs) == ["spring-sale/2/local-1.0", "x/y/z"]


def test_a_server_that_is_retired_or_given_up_is_not_asked(world: World, sshd: Sshd) -> None:
    over_ssh(world, sshd)
    sshd.stop()
    for state in (ServerState.RETIRED, ServerState.FENCED):
        with write(world.engine) as connection:
            mine = dispatch_servers.c.name == "local-1"
            connection.execute(update(dispatch_servers).where(mine).values(state=state))
        assert keep_house(world.engine, world.settings, actor="ann").troubles == ()
