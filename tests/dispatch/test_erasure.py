"""Erased before, while and after a send: nothing reaches the person, nobody else notices, the books balance."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.contacts.consent import lift
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, dispatch_servers, sends, snapshots
from mailer_lib.dispatch import control
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.erasure import erase, expire, finish
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import hand_back, settle_lease
from mailer_lib.dispatch.slot import SlotState, run_slot
from mailer_lib.dispatch.steps import close_step
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.store import store
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import ChannelKind, Outcome, SendState
from tests.dispatch.ledgers import final, intents, leased, write_ledger
from tests.dispatch.real import Running, equip, job_folder, ready_send, received
from tests.dispatch.world import World

P1 = "P1@outlook.example"


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


@pytest.fixture(autouse=True)
def no_agent_stays(settings: object) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "mailer_lib.agent" in command and str(getattr(settings, "home", "")) in " ".join(command):
            process.kill()


def addresses(world: World, phase: int = 1) -> list[str]:
    """In the order of the rows."""
    folder = store(world.settings) / f"snapshots/{world.campaign}/1/{phase}"
    return [who.address for e in manifests.load(folder).shards for _, who in read_shard(folder / e.path)]


def finished(world: World, rows: int = 4) -> int:
    """A send whose rows were all injected, by hand-written ledger."""
    send_id = world.send(state=SendState.RUNNING)
    world.publish(send_id, [rows])
    lease = leased(world, send_id)
    write_ledger(world, lease, [*intents(world, lease, range(rows)), *(final(row) for row in range(rows))])
    with write(world.engine) as connection:
        connection.execute(update(sends).values(state=SendState.FINISHED))
    return send_id


@pytest.mark.usefixtures("any_store")
def test_erased_after_a_send_and_the_books_still_balance(world: World) -> None:
    send_id = finished(world)
    before = balance(world.engine, world.settings, send_id)
    done = erase(world.engine, world.settings, P1, actor="ann")
    assert [(str(snapshot), amended.rows) for snapshot, amended in done.amended] == [("spring-sale#1 phase 1", 1)]
    assert not done.waiting and not done.problems
    assert "dispatch server local-1: mail queue and log of its MTA (spring-sale#1)" in done.elsewhere
    assert addresses(world) == ["p0@gmail.example", "", "p2@yahoo.example", "p3@other.example"]
    assert balance(world.engine, world.settings, send_id) == before
    root = store(world.settings)
    for path in [*world.settings.home.rglob("*"), *([] if isinstance(root, Path) else root.files())]:
        assert not path.is_file() or b"p1@outlook" not in path.read_bytes().lower()
    with read(world.engine) as connection:
        said = connection.execute(select(audit_log.c.action, audit_log.c.object, audit_log.c.detail)).all()
    assert [row.action for row in said] == ["contacts.erase", "contacts.erase.files"]
    assert "p1@" not in repr(said).lower()


def test_the_job_folder_on_a_dispatch_server_is_named_with_when_it_goes(sqlite_world: World) -> None:
    world = sqlite_world
    finished(world)
    over = now()
    with write(world.engine) as connection:
        connection.execute(update(sends).values(finished_at=over))
        connection.execute(
            update(dispatch_servers)
            .where(dispatch_servers.c.name == "local-1")
            .values(channel=ChannelKind.SSH, host="192.0.2.7")
        )
    where = "job folder /var/lib/mailfleet/jobs/spring-sale/1/local-1.0 on dispatch server local-1 (spring-sale#1)"
    goes = f"its shards are removed when its slot is through, the folder on {over + timedelta(days=14):%Y-%m-%d}"
    assert f"{where}: {goes}" in erase(world.engine, world.settings, P1, actor="ann").elsewhere
    with write(world.engine) as connection:
        connection.execute(update(dispatch_servers).values(unreconciled=True))
    said = erase(world.engine, world.settings, "p2@yahoo.example", actor="ann").elsewhere
    assert f"{where}: it was given up; emptied when it is reconciled" in said
    nobody = erase(world.engine, world.settings, "nobody@yahoo.example", actor="ann").elsewhere
    assert not any(sentence.startswith("job folder") for sentence in nobody)


def test_rejected_rows_go_too_and_the_file_stays_private(sqlite_world: World) -> None:
    folder = sqlite_world.settings.storage / "rejects"
    folder.mkdir()
    file = folder / "people.csv"
    file.write_text(
        "E-Mail,rejected_line,rejected_column,rejected_reason,rejected_raw\r\nP1@outlook.example,2,x,y,\r\n"
    )
    assert erase(sqlite_world.engine, sqlite_world.settings, P1, actor="ann").rejects == 1
    assert "outlook" not in file.read_text() and file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_snapshot_is_named_and_the_others_are_done(sqlite_world: World) -> None:
    world = sqlite_world
    finished(world)
    other = world.send(edition="2")
    path = world.publish(other, [4])
    (world.settings.storage / path / "shard=0000" / "part-0.parquet").write_bytes(b"x")
    done = erase(world.engine, world.settings, P1, actor="ann")
    assert len(done.amended) == 1
    (problem,) = done.problems
    assert problem.startswith("spring-sale#2 phase 1: ")


def test_erased_between_freezing_and_sending(world: World, sink: SinkProcess) -> None:
    equip(world, sink)
    send_id = ready_send(world, [6])
    assert erase(world.engine, world.settings, P1, actor="ann").waiting == ()
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.SUPPRESSED], books.balanced) == (5, 1, True)
    assert received(sink) == 5


def test_a_blanked_row_can_not_be_sent_even_when_they_came_back(sqlite_world: World, sink: SinkProcess) -> None:
    """Their new consent is for what is frozen from now on: this row holds no address any more."""
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [6])
    erase(world.engine, world.settings, P1, actor="ann")
    with write(world.engine) as connection:
        lift(connection, address_hash=world.settings.identity().address_hash(P1.lower()), by="ann")
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.FAILED], books.balanced) == (5, 1, True)


@pytest.mark.usefixtures("any_store")
def test_erased_while_a_server_sends_the_shard_and_blanked_when_the_send_is_closed(
    sqlite_world: World, sink: SinkProcess
) -> None:
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [60], pace_per_s=10.0)
    slot = Running(world, send_id, world.slot())
    slot.until(lambda said: said.settled > 0)
    last = "p59@other.example"
    done = erase(world.engine, world.settings, last, actor="ann")
    assert len(done.waiting) == 1 and done.waiting[0].startswith("spring-sale#1 phase 1, shard 0: ")
    assert any(sentence.startswith("job folder jobs/spring-sale/1/local-1.0") for sentence in done.elsewhere)
    assert addresses(world)[59] == last, "the copy in the job folder must stay what was granted"
    control.set_pace(world.engine, "spring-sale#1", None, "ann")
    assert slot.report().state is SlotState.DONE
    with write(world.engine) as connection:
        connection.execute(update(sends).values(claim="c", claimed_at=now()))
    assert close_step(world.engine, world.settings, send_id, "c")["state"] == "finished"
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.INJECTED], books[Outcome.SUPPRESSED], books.balanced) == (59, 1, True)
    assert addresses(world)[59] == "" and addresses(world).count("") == 1


def test_a_server_that_had_the_shard_before_gets_the_blanked_file(sqlite_world: World, sink: SinkProcess) -> None:
    """Its old copy has the same rows, but neither the checksum nor the name that the next lease grants."""
    world = sqlite_world
    equip(world, sink)
    send_id = ready_send(world, [60])
    lease = leased(world, send_id, through=2)
    folder = job_folder(world, world.slot())
    (folder / "shards").mkdir(parents=True)
    source = world.settings.storage / lease.snapshot_path / lease.shard_path
    (folder / "shards" / "0000.p1.parquet").write_bytes(source.read_bytes())
    lease = write_ledger(world, lease, [*intents(world, lease, range(2)), final(0), final(1)], settle=False)
    hand_back(world.engine, lease)
    assert len(erase(world.engine, world.settings, "p9@outlook.example", actor="ann").waiting) == 1
    KeptLedger(store(world.settings), lease).finish()
    settle_lease(world.engine, lease.id)
    assert finish(world.engine, world.settings, actor="ann").waiting == ()
    assert addresses(world)[9] == ""
    assert run_slot(world.engine, world.settings, send_id, world.slot()).state is SlotState.DONE
    books = balance(world.engine, world.settings, send_id)
    assert (books[Outcome.SUPPRESSED], books[Outcome.INJECTED], books.balanced) == (1, 59, True)


def test_finish_leaves_what_was_frozen_after_they_came_back(sqlite_world: World) -> None:
    world = sqlite_world
    erase(world.engine, world.settings, P1, actor="ann")
    finished(world)
    assert finish(world.engine, world.settings, actor="ann").amended == ()
    assert addresses(world)[1] == "p1@outlook.example"


@pytest.mark.usefixtures("any_store")
def test_old_snapshots_expire_when_their_send_is_over(world: World) -> None:
    send_id = finished(world)
    before = balance(world.engine, world.settings, send_id)
    year = timedelta(days=365)

    def expired(*, dry_run: bool) -> list[tuple[str, int]]:
        done = expire(world.engine, world.settings, older_than=year, actor="ann", dry_run=dry_run)
        return [(str(snapshot), amended.rows) for snapshot, amended in done.expired]

    assert expired(dry_run=False) == [], "too young"
    with write(world.engine) as connection:
        connection.execute(update(snapshots).values(published_at=now() - 2 * year))
    assert expired(dry_run=True) == [("spring-sale#1 phase 1", 0)]
    assert addresses(world).count("") == 0
    assert expired(dry_run=False) == [("spring-sale#1 phase 1", 4)]
    assert addresses(world) == [""] * 4
    assert expired(dry_run=True) == []
    assert balance(world.engine, world.settings, send_id) == before


def test_a_send_that_isnt_over_does_not_expire(sqlite_world: World) -> None:
    world = sqlite_world
    finished(world)
    with write(world.engine) as connection:
        connection.execute(update(snapshots).values(published_at=now() - timedelta(days=9)))
        connection.execute(update(sends).values(state=SendState.RUNNING))
    done = expire(world.engine, world.settings, older_than=timedelta(days=1), actor="ann", dry_run=False)
    assert done.expired == () and [str(snapshot) for snapshot in done.running] == ["spring-sale#1 phase 1"]
