"""Several machines build one snapshot through a store on S3: each has a work folder of its own, and keeps nothing."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine, select

from mailer_lib.agent.ledger import Final, Header, encode
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience import sharing, snapshot
from mailer_lib.audience.assembly import assemble
from mailer_lib.audience.plan import SnapshotError, SnapshotPlan, load_plan
from mailer_lib.audience.snapshot import build_range, plan_snapshot, publish
from mailer_lib.audience.verify import verify
from mailer_lib.database.schema import shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.store import S3Path, arrow_source, store
from mailer_lib.terms import Outcome
from tests.audience.world import ON_THE_LIST, World, rule

pytestmark = [pytest.mark.s3, pytest.mark.parametrize("_store", ["s3"], indirect=True)]
PEOPLE = 60


@pytest.fixture
def shared(engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """Sixty people in three ranges, and one who is left out."""
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 3)
    world = World.make(engine, settings)
    world.add_many(PEOPLE, lambda n: {"address": f"p{n}@example.org"})
    world.add("pending@example.org", state="pending")
    return world


def machine(world: World, folder: Path) -> Settings:
    """Another machine: the same database, keys and store, and an empty home."""
    keys = {"identity_key": world.settings.identity().secret.hex()}
    made = Settings(home=folder, storage_secret_key=world.settings.storage_secret_key, **keys)
    assert made.bucket == world.settings.bucket and made.storage != world.settings.storage
    return made


def planned(world: World, settings: Settings, send_id: int) -> SnapshotPlan:
    return plan_snapshot(world.engine, settings, send_id, rules=ON_THE_LIST, list_id=world.newsletter)


def test_people_whom_a_plan_froze_for_what_they_did_go_with_it(shared: World, tmp_path: Path) -> None:
    """Events are known to the machine that plans alone; ledgers are in the store."""
    (sent_to, *_), (folder,) = first_send(shared), [row.path for row in shared.fetch(select(snapshots))]
    rows = {who.contact_id: row for row, who in read_shard(store(shared.settings) / folder / shard_of(shared))}
    ledger = [Header("j", 0, 1, 1, 0), Final(rows[sent_to], Outcome.INJECTED, 250, "", "", "1.1", 0, "other", 1, "")]
    path = store(shared.settings) / folder / "ledgers" / "0000.p1.e1.ledger"
    path.write_bytes(b"".join(encode(record) for record in ledger))
    rules = rule("behaviour.sent", "notNull", {"campaign": "spring-sale"})
    plan = plan_snapshot(shared.engine, shared.settings, shared.add_send("2"), rules=rules, list_id=shared.newsletter)
    assert plan.matching == 1
    for index in range(len(plan.ranges)):
        build_range(shared.engine, machine(shared, tmp_path / str(index)), plan, index)
    made = publish(shared.engine, machine(shared, tmp_path / "last"), plan)
    assert made.counts.frozen == 1
    assert not [name for name in in_store(shared) if "behaviour" in name]


def first_send(world: World) -> list[int]:
    """Published for everybody; the ids of those who are in it."""
    plan = planned(world, world.settings, world.add_send("1"))
    snapshot.build(world.engine, world.settings, plan)
    (row,) = world.fetch(select(snapshots))
    return [who.contact_id for _, who in read_shard(store(world.settings) / row.path / shard_of(world))]


def shard_of(world: World) -> str:
    ((path,),) = world.fetch(select(shards.c.path))
    return str(path)


def kept_by(settings: Settings) -> list[str]:
    """Files below a machine's work folder, but for locks and plans, which hold no person."""
    files = (path for path in settings.storage.rglob("*") if path.is_file())
    return [str(p) for p in files if p.name != "plan.json" and not p.name.endswith(".lock")]


def in_store(world: World) -> list[str]:
    root = store(world.settings)
    assert isinstance(root, S3Path)
    return [path.relative_to(root).as_posix() for path in root.files()]


def published(world: World) -> S3Path:
    (row,) = world.fetch(select(snapshots))
    assert row.state == "published"
    folder = store(world.settings) / row.path
    assert isinstance(folder, S3Path)
    return folder


def test_planned_read_and_published_on_four_machines(shared: World, tmp_path: Path) -> None:
    world, send_id = shared, shared.add_send()
    planner, *readers, publisher = [machine(world, tmp_path / name) for name in ("a", "b", "c", "d")]
    plan = planned(world, planner, send_id)
    named = sharing.shared_folder(plan, planner) / "plan.json"
    for index, settings in ((0, readers[0]), (1, readers[1]), (2, readers[0])):
        assert load_plan(named) == plan
        read = build_range(world.engine, settings, load_plan(named), index)
        assert build_range(world.engine, readers[1], plan, index) == read, "it isn't read again"
    made = publish(world.engine, publisher, plan)
    assert (made.counts.frozen, made.counts.excluded) == (PEOPLE, 1)
    folder = published(world)
    assert verify(folder) == []
    assert publish(world.engine, planner, plan) == made
    assert build_range(world.engine, readers[0], plan, 0) == made.ranges[0]
    found = [who.address for entry in made.shards for _, who in read_shard(folder / entry.path)]
    assert sorted(found) == sorted(f"p{n}@example.org" for n in range(PEOPLE))
    assert [kept_by(settings) for settings in (planner, *readers, publisher)] == [[]] * 4
    assert planned(world, readers[0], send_id) == plan, "the phase has unsettled rows"


def test_a_plan_that_was_discarded_is_built_by_nobody(shared: World, tmp_path: Path) -> None:
    world, send_id = shared, shared.add_send()
    one, other = machine(world, tmp_path / "a"), machine(world, tmp_path / "b")
    stale = planned(world, one, send_id)
    build_range(world.engine, other, stale, 0)
    world.add("late@example.org")
    fresh = plan_snapshot(
        world.engine, one, send_id, rules=ON_THE_LIST, list_id=world.newsletter, criteria_name="another"
    )
    assert fresh != stale
    with pytest.raises(SnapshotError, match=r"this plan .* was discarded"):
        build_range(world.engine, other, stale, 1)
    assert planned_again(world, other, send_id) == fresh
    for index in range(len(fresh.ranges)):
        build_range(world.engine, other, fresh, index)
    assert publish(world.engine, one, fresh).counts.frozen == PEOPLE + 1
    assert verify(published(world)) == []


def planned_again(world: World, settings: Settings, send_id: int) -> SnapshotPlan:
    return plan_snapshot(
        world.engine, settings, send_id, rules=ON_THE_LIST, list_id=world.newsletter, criteria_name="another"
    )


def test_a_publication_that_was_killed_or_came_second_leaves_nothing(shared: World, tmp_path: Path) -> None:
    """Its files are in the store under a name of their own, and no row of the database leads there."""
    world, send_id = shared, shared.add_send()
    one, other = machine(world, tmp_path / "a"), machine(world, tmp_path / "b")
    plan = planned(world, one, send_id)
    for index in range(len(plan.ranges)):
        build_range(world.engine, one, plan, index)
    sharing.take_ranges(one, plan)
    left = assemble(one, plan, frozenset())
    plan.folder(one).rename(plan.published_folder(one))
    lost = sharing.give_snapshot(one, plan, left)  # and here it is killed, before the database knows
    assert any(name.startswith(f"{lost}/") for name in in_store(world))
    made = publish(world.engine, other, plan)
    folder = published(world)
    assert verify(folder) == []
    assert manifests.load(folder) == made != left
    assert not any(name.startswith(f"{lost}/") for name in in_store(world))
    assert publish(world.engine, one, plan) == made
    assert kept_by(one) == kept_by(other) == []


def test_a_damaged_object_is_named(shared: World, tmp_path: Path) -> None:
    world, send_id = shared, shared.add_send()
    one = machine(world, tmp_path / "a")
    plan = planned(world, one, send_id)
    for index in range(len(plan.ranges)):
        build_range(world.engine, one, plan, index)
    run = next(iter(sharing.shared_folder(plan, one).glob("ranges/0001/*/rows.arrow")))
    whole = run.read_bytes()
    run.write_bytes(whole[:-9] + b"corrupted")
    with pytest.raises(SnapshotError, match=rf"{run} is missing or damaged; remove {run.parent}/ and build it again"):
        publish(world.engine, one, plan)
    run.parent.remove_all()
    with pytest.raises(SnapshotError, match=r"range 1 of the snapshot of .* isn't built yet"):
        publish(world.engine, one, plan)
    build_range(world.engine, one, plan, 1)
    made = publish(world.engine, one, plan)
    shard = published(world) / made.shards[0].path
    assert pq.read_table(arrow_source(shard)).num_rows == PEOPLE
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    (problem,) = [text for text in verify(published(world)) if made.shards[0].path in text]
    assert problem.endswith("the checksum isn't the manifest's; the file was changed")
