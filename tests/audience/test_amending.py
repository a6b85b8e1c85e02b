"""People are blanked in a published snapshot: no row moves, nobody else changes, a kill changes nothing either."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert, select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.amending import ERASED, EXPIRED, amend
from mailer_lib.audience.files import sha256_of
from mailer_lib.audience.manifest import approval_digest
from mailer_lib.audience.people_files import people_table
from mailer_lib.audience.sharing import published_path
from mailer_lib.audience.snapshot import build, plan_snapshot
from mailer_lib.audience.verify import verify
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import leases, sends, shards, snapshots
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.recipient import Recipient
from mailer_lib.shard.store import StorePath, arrow_source, store
from mailer_lib.terms import ExclusionReason, LeaseState, ShardState
from tests.audience.world import ON_THE_LIST, World

ROOT = Path(__file__).parents[2]
LEA = "lea@private.example"


def frozen(world: World, edition: str = "1") -> tuple[int, StorePath]:
    """(snapshot id, folder): forty people and Lea in a shard, Max excluded."""
    send_id = world.add_send(edition)
    arguments = {"rules": ON_THE_LIST, "list_id": world.newsletter, "attributes": ["city"]}
    plan = plan_snapshot(world.engine, world.settings, send_id, **arguments)
    build(world.engine, world.settings, plan)
    ((snapshot_id,),) = world.fetch(select(snapshots.c.id).where(snapshots.c.send_id == send_id))
    path = published_path(world.engine, plan)
    assert path is not None
    return snapshot_id, store(world.settings) / path


@pytest.fixture
def peopled(world: World) -> World:
    world.add_many(40, lambda n: {"address": f"p{n}@example.org", "attributes": {"city": f"town {n}"}})
    world.add(LEA, given_name="Lea", locale="de", timezone="Europe/Vienna", attributes={"city": "Linz"})
    world.add("max@example.org", state="pending")
    return world


def rows_of(folder: StorePath) -> list[tuple[str, int, Recipient]]:
    """(shard's folder, row, recipient)"""
    manifest = manifests.load(folder)
    return [(str(Path(e.path).parent), row, who) for e in manifest.shards for row, who in read_shard(folder / e.path)]


def stored_sha256(world: World, snapshot_id: int) -> str:
    ((stored,),) = world.fetch(select(snapshots.c.manifest_sha256).where(snapshots.c.id == snapshot_id))
    return str(stored)


def is_sound(world: World, snapshot_id: int, folder: StorePath) -> bool:
    """Files, manifest and database tell the same, and no file is left over."""
    query = select(shards.c.path, shards.c.sha256).where(shards.c.snapshot_id == snapshot_id).order_by(shards.c.number)
    listed = [(entry.path, entry.sha256) for entry in manifests.load(folder).shards]
    assert [tuple(row) for row in world.fetch(query)] == listed
    assert sha256_of(folder / "manifest.json") == stored_sha256(world, snapshot_id)
    assert not (folder / "manifest.next.json").exists()
    return verify(folder) == []


@pytest.mark.usefixtures("any_store")
def test_a_person_is_blanked_in_place_and_nobody_else_changes(peopled: World) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    before, published = rows_of(folder), manifests.load(folder)
    done = amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED)
    assert (done.rows, done.files, done.waiting) == (1, 2, ())  # a shard and a people file
    assert is_sound(world, snapshot_id, folder)
    blank = {"contact_id": 0, "address": "", "domain": "", "given_name": None, "locale": None, "timezone": None}
    expected = [
        (shard, row, replace(who, **blank, attributes={}) if who.address == LEA else who) for shard, row, who in before
    ]
    assert rows_of(folder) == expected
    amendments = manifests.load(folder).amendments
    assert [amendment.was.path.split("/")[0] for amendment in amendments] == ["shard=0000", "people"]
    for amendment in amendments:
        (old,) = [entry for entry in published.files if entry.path == amendment.was.path]
        assert (amendment.was.sha256, amendment.why, amendment.rows) == (old.sha256, "erased", 1)
        assert amendment.sha256 == sha256_of(folder / amendment.path) != old.sha256
    assert manifests.load(folder).blanked == 1
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            assert not path.is_file() or b"lea@" not in path.read_bytes()


def test_an_excluded_person_keeps_a_row_that_says_only_that_they_were_erased(peopled: World) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    assert amend(world.engine, world.settings, snapshot_id, [world.hash_of("max@example.org")], ERASED).rows == 1
    assert is_sound(world, snapshot_id, folder)
    (row,) = [
        row for e in manifests.load(folder).excluded for row in pq.read_table(arrow_source(folder / e.path)).to_pylist()
    ]
    assert (row["contact_id"], row["reasons"]) == (0, ExclusionReason.ERASED)


@pytest.mark.usefixtures("any_store")
def test_the_people_file_has_lost_the_contact_too(peopled: World) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    ids = {who.address_hash: 0 if who.address == LEA else who.contact_id for _, _, who in rows_of(folder)}
    amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED)
    (entry,) = manifests.load(folder).people
    found = people_table(folder / entry.path).to_pylist()
    assert {row["address_hash"]: row["contact_id"] for row in found} == ids
    assert entry.path == "people/0000.1.arrow" and verify(folder) == []


def test_doing_it_again_changes_nothing(peopled: World) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED)
    bytes_before = (folder / "manifest.json").read_bytes()
    assert amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED).files == 0
    assert amend(world.engine, world.settings, snapshot_id, [world.hash_of("who@example.org")], ERASED).files == 0
    assert (folder / "manifest.json").read_bytes() == bytes_before


@pytest.mark.usefixtures("any_store")
def test_one_after_another_and_then_all_expired(peopled: World) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    for address in (LEA, "p1@example.org"):
        amend(world.engine, world.settings, snapshot_id, [world.hash_of(address)], ERASED)
        assert is_sound(world, snapshot_id, folder)
    done = amend(world.engine, world.settings, snapshot_id, None, EXPIRED)
    assert done.rows == 41 - 2 + 1  # the excluded one too
    assert is_sound(world, snapshot_id, folder)
    assert {who.address for _, _, who in rows_of(folder)} == {""}
    assert len({who.message_key for _, _, who in rows_of(folder)}) == 41


def lease(world: World, snapshot_id: int, *, shard_state: ShardState) -> int:
    """A live lease of every shard of the snapshot. Returns how many."""
    found = world.fetch(select(shards.c.id, shards.c.send_id).where(shards.c.snapshot_id == snapshot_id))
    with write(world.engine) as connection:
        for shard_id, send_id in found:
            row = {"shard_id": shard_id, "send_id": send_id, "epoch": 1, "state": LeaseState.ACTIVE, "first_row": 0}
            connection.execute(insert(leases).values(**row, granted_through=5, created_at=now()))
        connection.execute(update(shards).where(shards.c.snapshot_id == snapshot_id).values(state=shard_state))
    return len(found)


@pytest.mark.parametrize("state", [ShardState.LEASED, ShardState.OPEN], ids=["leased", "handed back, still settling"])
def test_a_shard_that_a_server_works_on_waits(peopled: World, state: ShardState) -> None:
    world = peopled
    snapshot_id, folder = frozen(world)
    assert lease(world, snapshot_id, shard_state=state) == 1
    before = rows_of(folder)
    people = [world.hash_of(LEA)]
    left = amend(world.engine, world.settings, snapshot_id, people, ERASED)
    assert (left.rows, left.waiting) == (0, (0,))
    assert rows_of(folder) == before and is_sound(world, snapshot_id, folder)
    assert amend(world.engine, world.settings, snapshot_id, [world.hash_of("who@example.org")], ERASED).waiting == ()
    with write(world.engine) as connection:
        connection.execute(update(leases).values(state=LeaseState.SETTLED))
        connection.execute(update(shards).values(state=ShardState.SETTLED))
    done = amend(world.engine, world.settings, snapshot_id, people, ERASED)
    assert (done.rows, done.waiting) == (1, ())
    assert is_sound(world, snapshot_id, folder)


def test_an_approval_covers_the_snapshot_without_them(peopled: World) -> None:
    world = peopled
    snapshot_id, _ = frozen(world)
    given = approval_digest("c" * 64, stored_sha256(world, snapshot_id))
    with write(world.engine) as connection:
        connection.execute(update(sends).values(content_hash="c" * 64, approval_digest=given))
    amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED)
    ((kept,),) = world.fetch(select(sends.c.approval_digest))
    assert kept == approval_digest("c" * 64, stored_sha256(world, snapshot_id)) != given


def test_verify_wants_the_amendments_to_lead_to_the_file_that_is_there(sqlite_world: World) -> None:
    world = sqlite_world
    world.add(LEA)
    snapshot_id, folder = frozen(world)
    amend(world.engine, world.settings, snapshot_id, [world.hash_of(LEA)], ERASED)
    manifest = manifests.load(folder)
    shard, people = manifest.amendments
    forged = manifest.model_copy(update={"amendments": (shard.model_copy(update={"sha256": "0" * 64}), people)})
    (folder / "manifest.json").write_bytes(forged.dump())
    assert any("isn't the one that its last amendment left" in problem for problem in verify(folder))


def test_a_manifest_without_amendments_has_the_bytes_that_it_always_had(sqlite_world: World) -> None:
    sqlite_world.add(LEA)
    _, folder = frozen(sqlite_world)
    assert b"amendments" not in (folder / "manifest.json").read_bytes()


@pytest.mark.fault
@pytest.mark.usefixtures("any_store")
def test_killed_before_every_durable_effect_and_run_again(peopled: World) -> None:
    world = peopled
    made = [frozen(world, str(n)) for n in range(16)]
    command = [sys.executable, "-m", "tests.audience.amend_driver", world.hash_of(LEA).hex()]
    ids = [str(snapshot_id) for snapshot_id, _ in made]
    run = subprocess.run([*command, *ids], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    assert len(ends) == 16 and sum(end != 0 for end in ends) >= 5 and ends[-1] == 0, "each effect had its kill"
    for snapshot_id, folder in made:
        assert is_sound(world, snapshot_id, folder)
        assert LEA not in {who.address for _, _, who in rows_of(folder)}
        assert len(manifests.load(folder).amendments) == 2
