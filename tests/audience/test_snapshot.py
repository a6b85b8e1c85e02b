"""A snapshot: who matched stands in exactly one place, with what the message needs, whatever happens meanwhile."""

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import insert, select, update

from mailer_lib.audience import assembly, catalogue, counts, criteria, manifest, ranges, sampling, snapshot
from mailer_lib.audience.criteria import rules_sha256
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import ControlGroup, Exclude
from mailer_lib.audience.rules import CriteriaError
from mailer_lib.audience.sharing import published_path
from mailer_lib.audience.snapshot import (
    SnapshotError,
    SnapshotPlan,
    build,
    build_range,
    build_seed_snapshot,
    load_plan,
    plan_snapshot,
    publish,
)
from mailer_lib.audience.verify import verify
from mailer_lib.contacts import consent
from mailer_lib.database import bulk_read
from mailer_lib.database.engine import write
from mailer_lib.database.schema import contacts, seed_addresses, shards, snapshots, subscriptions
from mailer_lib.identity import message_key
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.recipient import Recipient
from mailer_lib.shard.store import StorePath, arrow_source, store
from mailer_lib.terms import ExclusionReason, ShardState, SuppressionReason
from tests.audience.world import EVERYBODY, LONG_AGO, ON_THE_LIST, World, rule

R = ExclusionReason


def planned(world: World, send_id: int, **more: Any) -> SnapshotPlan:
    arguments = {"rules": ON_THE_LIST, "list_id": world.newsletter} | more
    return plan_snapshot(world.engine, world.settings, send_id, **arguments)


def built(
    world: World, send_id: int, already: frozenset[bytes] = frozenset(), **more: Any
) -> tuple[Manifest, StorePath]:
    plan = planned(world, send_id, **more)
    return build(world.engine, world.settings, plan, already), folder_of(world, plan)


def folder_of(world: World, plan: SnapshotPlan) -> StorePath:
    """Where the published snapshot lies, in a folder or on S3."""
    path = published_path(world.engine, plan)
    assert path is not None
    return store(world.settings) / path


def recipients(folder: StorePath) -> dict[str, Recipient]:
    found: dict[str, Recipient] = {}
    for entry in manifest.load(folder).shards:
        for _, recipient in read_shard(folder / entry.path):
            assert recipient.address not in found
            found[recipient.address] = recipient
    return found


def excluded(folder: StorePath) -> dict[int, ExclusionReason]:
    found: dict[int, ExclusionReason] = {}
    for entry in manifest.load(folder).excluded:
        for row in pq.read_table(arrow_source(folder / entry.path)).to_pylist():
            assert row["contact_id"] not in found
            found[row["contact_id"]] = ExclusionReason(row["reasons"])
    return found


def many_more(world: World) -> None:
    world.add_many(50, lambda n: {"address": f"later{n}@example.org", "attributes": {"points": 200}})


def many(world: World, count: int = 300) -> None:
    domains = ("gmail.com", "gmail.com", "outlook.com", "example.org")
    world.add_many(count, lambda n: {"address": f"p{n}@{domains[n % 4]}", "attributes": {"points": n}})


def test_relative_dates_samples_and_other_criteria_are_frozen_with_the_plan(world: World) -> None:
    """Whatever changes between plan and ranges, each range and retry asks what the plan asked."""
    many(world)
    with write(world.engine) as connection:
        known = catalogue.load(connection)
        criteria.save(connection, known, "high", rule("attribute.points", ">=", 100), actor="ann")
    tree = {
        "combinator": "and",
        "rules": [*rule("criteria", "=", "high")["rules"], *rule("created_at", "beforeLastDays", 1)["rules"]],
        "sample": {"count": 50, "seed": "spring"},
    }
    plan = planned(world, world.add_send(), rules=tree)
    with write(world.engine) as connection:
        with sampling.picking(connection, world.settings, tree, catalogue.load(connection), now=plan.as_of) as expected:
            ids = set(connection.scalars(select(contacts.c.id).where(expected)))
        criteria.save(connection, known, "high", rule("attribute.points", "<", 100), actor="bob")
    many_more(world)
    assert load_plan(plan.path(world.settings)) == plan
    made = build(world.engine, world.settings, plan)
    folder = folder_of(world, plan)
    assert {recipient.contact_id for recipient in recipients(folder).values()} == ids
    assert (made.counts.frozen, plan.matching) == (50, 50)
    assert made.criteria.references == {"high": rule("attribute.points", ">=", 100)}
    assert verify(folder) == []


@pytest.mark.parametrize(("first", "through", "planned_for"), [(0, 2, 15), (20, 49, 1), (100, 299, 200)])
def test_a_large_plan_is_made_for_an_estimate_and_freezes_everybody(
    world: World, monkeypatch: pytest.MonkeyPatch, first: int, through: int, planned_for: int
) -> None:
    """Six blocks of ten ids are counted, of 300: the first, the last, and every 58th."""
    monkeypatch.setattr(counts, "SAMPLED_IDS", 60)
    monkeypatch.setattr(counts, "SAMPLED_BLOCKS", 6)
    many(world)
    among = [*rule("attribute.points", ">=", first)["rules"], *rule("attribute.points", "<=", through)["rules"]]
    plan = planned(world, world.add_send(), rules={"combinator": "and", "rules": among})
    assert plan.matching == planned_for
    made = build(world.engine, world.settings, plan)
    assert made.counts.matching == through - first + 1
    assert verify(folder_of(world, plan)) == []


def test_criteria_that_changed_make_another_plan(world: World) -> None:
    many(world, 20)
    send_id = world.add_send()
    with write(world.engine) as connection:
        known = catalogue.load(connection)
        criteria.save(connection, known, "high", rule("attribute.points", ">=", 10), actor="ann")
    first = planned(world, send_id, rules=rule("criteria", "=", "high"))
    assert planned(world, send_id, rules=rule("criteria", "=", "high")) == first
    with write(world.engine) as connection:
        criteria.save(connection, known, "high", rule("attribute.points", ">=", 15), actor="ann")
    second = planned(world, send_id, rules=rule("criteria", "=", "high"))
    assert (first.matching, second.matching) == (10, 5)
    assert first.inputs.rules_sha256 != second.inputs.rules_sha256


def test_a_campaign_leaves_out_lists_criteria_and_its_control_group(world: World) -> None:
    """All reasons that hold are told, whether the plan or the ranges are made before criteria change."""
    many(world, 120)
    ids = world.fetch(select(contacts.c.id).order_by(contacts.c.id))
    offers = [
        {"contact_id": ids[n].id, "list_id": world.lists["offers"], "state": state, "updated_at": LONG_AGO}
        for n, state in [(0, "confirmed"), (1, "pending"), (2, "unsubscribed"), (119, "confirmed")]
    ]
    with write(world.engine) as connection:
        connection.execute(insert(subscriptions), offers)
        known = catalogue.load(connection)
        criteria.save(connection, known, "high", rule("attribute.points", ">=", 110), actor="ann")
        known = catalogue.load(connection)
        criteria.save(connection, known, "highest", rule("criteria", "=", "high"), actor="ann")
    control = ControlGroup(percent=25, seed="spring-sale")
    exclude = Exclude(lists=("offers",), criteria=("highest",), control_group=control)
    plan = planned(world, world.add_send(), exclude=exclude)
    with write(world.engine) as connection:
        criteria.save(connection, known, "high", rule("attribute.points", "<", 0), actor="bob")
    made = build(world.engine, world.settings, plan)
    folder = folder_of(world, plan)

    def point(n: int) -> int:
        address = f"p{n}@{('gmail.com', 'gmail.com', 'outlook.com', 'example.org')[n % 4]}"
        return hashlib.sha256(b"control:spring-sale" + world.hash_of(address)).digest()[0]

    expected = {
        ids[n].id: (R.EXCLUDED_LIST if n in {0, 1} or n >= 110 else R(0)) | (R.CONTROL_GROUP if point(n) < 64 else R(0))
        for n in range(120)
    }
    assert excluded(folder) == {contact_id: mask for contact_id, mask in expected.items() if mask}
    assert set(made.exclude.references) == {"high", "highest"}
    assert verify(folder) == []


def test_whom_to_leave_out_must_exist(sqlite_world: World) -> None:
    with pytest.raises(SnapshotError, match='list "ofers", which doesn\'t exist; did you mean "offers"'):
        planned(sqlite_world, sqlite_world.add_send(), exclude=Exclude(lists=("ofers",)))
    with pytest.raises(SnapshotError, match='no criteria "high"'):
        planned(sqlite_world, sqlite_world.add_send("2"), exclude=Exclude(criteria=("high",)))


def test_lists_of_texts_reach_the_shards(world: World) -> None:
    world.add("a@example.org", attributes={"interests": ["snow", "Zoë's"], "grade": "Größe"})
    world.add("b@example.org", attributes={"interests": None})
    _, folder = built(world, world.add_send(), attributes=["interests", "grade"])
    found = recipients(folder)
    assert found["a@example.org"].attributes == {"interests": ["snow", "Zoë's"], "grade": "Größe"}
    assert found["b@example.org"].attributes == {}


# --- what it holds ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_store")
def test_everybody_who_matched_is_frozen_or_excluded_with_every_reason(world: World) -> None:
    world.add("Ann.Lee@Bücher.example", given_name="Ann", locale="de", attributes={"tier": "gold", "points": 7})
    pending = world.add("pending@example.org", state="pending")
    left = world.add("left@example.org", state="unsubscribed")
    world.add("elsewhere@example.org", state=None)
    barred = world.add("barred@example.org")
    with write(world.engine) as connection:
        address_hash = world.hash_of("barred@example.org")
        reason = SuppressionReason.HARD_BOUNCE
        consent.suppress(connection, address_hash=address_hash, reason=reason, source="test", at=LONG_AGO)
    made, folder = built(world, world.add_send(), attributes=["tier", "points", "vip", "customer_since"])
    (recipient,) = recipients(folder).values()
    assert recipient.address == "Ann.Lee@xn--bcher-kva.example"
    assert (recipient.given_name, recipient.locale, recipient.family_name) == ("Ann", "de", None)
    assert recipient.attributes == {"tier": "gold", "points": 7.0}
    assert recipient.address_hash == world.hash_of("ann.lee@bücher.example")
    send_key = world.settings.identity().send_key("spring-sale", "1")
    assert recipient.message_key == message_key(send_key, recipient.address_hash)
    assert excluded(folder) == {
        pending: R.UNCONFIRMED,
        left: R.UNSUBSCRIBED,
        barred: R.BOUNCED | R.SUPPRESSED_ADDRESS,
    }
    assert made.counts.by_reason == {"unconfirmed": 1, "unsubscribed": 1, "bounced": 1, "suppressed-address": 1}
    assert (made.counts.matching, made.counts.frozen, made.counts.excluded) == (4, 1, 3)
    assert verify(folder) == []


def test_every_type_of_attribute_keeps_its_type(world: World) -> None:
    values = {"tier": "silver é😀", "points": 2.5, "vip": False, "customer_since": "2024-02-29"}
    world.add("a@example.org", attributes={**values, "city": "unused"})
    world.add("b@example.org", attributes={"vip": True, "points": None})
    _, folder = built(world, world.add_send(), attributes=sorted(values))
    found = recipients(folder)
    assert found["a@example.org"].attributes == values
    assert found["b@example.org"].attributes == {"vip": True}


@pytest.mark.usefixtures("any_store")
def test_the_manifest_tells_all(world: World) -> None:
    many(world)
    send_id = world.add_send()
    rules = rule("attribute.points", ">=", 100)
    made, folder = built(world, send_id, rules=rules, weights=(1, 2), criteria_name="spenders", attributes=["points"])
    told = json.loads((folder / "manifest.json").read_bytes())
    assert (told["campaign"], told["edition"], told["phase"], told["send_id"]) == ("spring-sale", "1", 1, send_id)
    assert told["criteria"] == {
        "source": "criteria",
        "name": "spenders",
        "rules": rules,
        "references": {},
        "sha256": rules_sha256(rules),
    }
    assert sum(told["counts"]["by_provider"].values()) == sum(told["counts"]["by_variant"]) == 200
    assert told["counts"]["by_provider"]["gmail"] == 100
    assert all(told["counts"]["by_variant"])
    assert sum(r["matched"] for r in told["ranges"]) == 200
    assert told["columns"][-1] == {"name": "attribute.points", "type": "double"}
    assert manifest.load(folder) == made


@pytest.mark.usefixtures("any_store")
def test_the_database_knows_the_snapshot_and_its_shards(world: World) -> None:
    many(world)
    send_id = world.add_send()
    made, folder = built(world, send_id)
    (row,) = world.fetch(select(snapshots))
    assert (row.send_id, row.phase, row.state, row.frozen, row.excluded) == (send_id, 1, "published", 300, 0)
    assert store(world.settings) / row.path == folder
    assert row.manifest_sha256 == manifest.sha256(made)
    known = world.fetch(select(shards).order_by(shards.c.number))
    assert [(s.number, s.path, s.rows, s.sha256) for s in known] == [
        (e.number, e.path, e.rows, e.sha256) for e in made.shards
    ]
    assert {(s.state, s.epoch, s.next_row, s.snapshot_id) for s in known} == {("open", 0, 0, row.id)}
    assert not (folder / "ranges").exists()


def test_a_row_lies_in_the_shard_of_its_address_and_providers_are_mixed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(world)
    monkeypatch.setattr(snapshot, "shard_count", lambda matching, rows: 3)
    made, folder = built(world, world.add_send())
    assert [e.number for e in made.shards] == [0, 1, 2]
    for entry in made.shards:
        rows = [r for _, r in read_shard(folder / entry.path)]
        assert {int.from_bytes(r.address_hash[:4], "big") % 3 for r in rows} == {entry.number}
        first_half = [r.provider for r in rows[: len(rows) // 2]]
        assert {"gmail", "outlook"} <= set(first_half)
        assert abs(first_half.count("gmail") / len(first_half) - 0.5) < 0.2


def test_no_shard_passes_the_limit(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    many(sqlite_world)
    monkeypatch.setattr(assembly, "MAX_SHARD_ROWS", 60)
    monkeypatch.setattr(snapshot, "shard_count", lambda matching, rows: 2)
    made, folder = built(sqlite_world, sqlite_world.add_send())
    assert made.shard_count == 8
    assert max(e.rows for e in made.shards) <= 60
    assert len(recipients(folder)) == 300
    assert verify(folder) == []


def test_memory_is_bounded_by_blocks_whatever_the_range(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    many(sqlite_world)
    plain, _ = built(sqlite_world, sqlite_world.add_send("plain"))
    monkeypatch.setattr(bulk_read, "FIRST_IDS", 7)
    monkeypatch.setattr(bulk_read, "MAX_IDS", 7)
    monkeypatch.setattr(ranges, "HELD_BYTES", 1)
    plan = planned(sqlite_world, sqlite_world.add_send())
    build_range(sqlite_world.engine, sqlite_world.settings, plan, 0)
    (path,) = plan.folder(sqlite_world.settings).glob("ranges/0000/rows.arrow")
    assert pa.ipc.open_file(path).num_record_batches == 43  # 300 people
    made = publish(sqlite_world.engine, sqlite_world.settings, plan)
    assert made.counts == plain.counts
    assert [e.rows for e in made.shards] == [e.rows for e in plain.shards]


@pytest.mark.usefixtures("any_store")
def test_nobody_matches(world: World) -> None:
    world.add("a@example.org")
    made, folder = built(world, world.add_send(), rules=rule("locale", "=", "xx"))
    assert (made.counts.matching, made.shards, made.excluded, made.ranges) == (0, (), (), ())
    assert verify(folder) == []


def test_there_are_no_contacts_at_all(world: World) -> None:
    made, _ = built(world, world.add_send(), rules=EVERYBODY)
    assert made.counts.matching == 0


# --- frozen once ------------------------------------------------------------------------------------------------------


@pytest.fixture
def three_ranges(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(snapshot, "range_count", lambda matching: 3)
    yield


def test_who_comes_after_the_plan_is_not_in_it(world: World, three_ranges: None) -> None:
    many(world, 30)
    plan = planned(world, world.add_send())
    build_range(world.engine, world.settings, plan, 0)
    world.add("late@example.org")
    made = build(world.engine, world.settings, plan)
    assert made.counts.frozen == 30
    assert made.max_contact_id == plan.max_contact_id
    assert len(made.ranges) == 3


def test_planning_again_goes_on_with_the_same_plan(world: World, three_ranges: None) -> None:
    many(world, 30)
    send_id = world.add_send()
    plan = planned(world, send_id)
    first = build_range(world.engine, world.settings, plan, 0)
    world.add("late@example.org")
    again = planned(world, send_id)
    assert again == plan == load_plan(plan.path(world.settings))
    assert build_range(world.engine, world.settings, again, 0) == first
    assert len(world.fetch(select(snapshots))) == 1


@pytest.mark.parametrize(
    "other", [{"rules": EVERYBODY}, {"weights": (1, 1)}, {"attributes": ["tier"]}], ids=["rules", "weights", "columns"]
)
def test_other_inputs_make_another_plan(sqlite_world: World, three_ranges: None, other: dict[str, Any]) -> None:
    world = sqlite_world
    many(world, 30)
    send_id = world.add_send()
    plan = planned(world, send_id)
    build_range(world.engine, world.settings, plan, 0)
    world.add("late@example.org")
    again = planned(world, send_id, **other)
    assert again.phase == 1 and again.max_contact_id == plan.max_contact_id + 1
    with pytest.raises(SnapshotError, match="discarded"):
        build_range(world.engine, world.settings, plan, 0)
    with pytest.raises(SnapshotError, match=r"range 0 .* isn't built"):
        publish(world.engine, world.settings, again)
    assert build(world.engine, world.settings, again).counts.frozen == 31


def test_a_plan_of_yesterday_is_made_anew(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    many(sqlite_world, 3)
    send_id = sqlite_world.add_send()
    planned(sqlite_world, send_id)
    sqlite_world.add("late@example.org")
    monkeypatch.setattr(snapshot, "_age", lambda moment: timedelta(hours=25))
    made, _ = built(sqlite_world, send_id)
    assert made.counts.frozen == 4


def test_building_and_publishing_again_change_nothing(world: World) -> None:
    many(world, 30)
    send_id = world.add_send()
    plan = planned(world, send_id)
    made = build(world.engine, world.settings, plan)
    world.add("late@example.org")
    assert build(world.engine, world.settings, plan) == made
    assert build_range(world.engine, world.settings, plan, 0) == made.ranges[0]
    assert len(world.fetch(select(shards))) == len(made.shards)


def test_a_damaged_range_is_noticed(sqlite_world: World) -> None:
    many(sqlite_world, 30)
    plan = planned(sqlite_world, sqlite_world.add_send())
    build_range(sqlite_world.engine, sqlite_world.settings, plan, 0)
    path = plan.folder(sqlite_world.settings) / "ranges" / "0000" / "rows.arrow"
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(SnapshotError, match=r"rows\.arrow is missing or damaged"):
        publish(sqlite_world.engine, sqlite_world.settings, plan)


def settle(world: World, send_id: int) -> None:
    with write(world.engine) as connection:
        connection.execute(update(shards).where(shards.c.send_id == send_id).values(state=ShardState.SETTLED))


@pytest.mark.usefixtures("any_store")
def test_nobody_is_in_two_open_phases(world: World) -> None:
    many(world, 30)
    send_id = world.add_send()
    made, _ = built(world, send_id)
    world.add("late@example.org")
    again = planned(world, send_id, rules=EVERYBODY)
    assert again.phase == 1
    assert load_plan(folder_of(world, again) / "plan.json") == again
    assert build(world.engine, world.settings, again) == made
    settle(world, send_id)
    assert planned(world, send_id).phase == 2


@pytest.mark.usefixtures("any_store")
def test_the_next_phase_leaves_out_who_was_sent(world: World) -> None:
    many(world, 30)
    left = world.add("left@example.org")
    send_id = world.add_send()
    _, first = built(world, send_id)
    settle(world, send_id)
    sent = frozenset(r.message_key for r in recipients(first).values())
    world.add("late@example.org")
    with write(world.engine) as connection:
        mine = subscriptions.c.contact_id == left
        connection.execute(update(subscriptions).where(mine).values(state="unsubscribed"))
    made, second = built(world, send_id, already=sent)
    assert (made.phase, second.name.partition("-")[0]) == (2, "2")
    assert list(recipients(second)) == ["late@example.org"]
    assert made.counts.by_reason == {"already-sent": 31, "unsubscribed": 1}
    assert excluded(second)[left] == R.UNSUBSCRIBED | R.ALREADY_SENT
    assert [row.phase for row in world.fetch(select(snapshots).order_by(snapshots.c.phase))] == [1, 2]
    assert verify(first) == verify(second) == []


def test_another_edition_sends_to_the_same_people_under_other_keys(sqlite_world: World) -> None:
    many(sqlite_world, 30)
    _, one = built(sqlite_world, sqlite_world.add_send("1"))
    _, two = built(sqlite_world, sqlite_world.add_send("2"))
    keys = [{r.message_key for r in recipients(folder).values()} for folder in (one, two)]
    assert len(keys[0]) == len(keys[1]) == 30 and not keys[0] & keys[1]


# --- the database is written to meanwhile -----------------------------------------------------------------------------


def test_one_person_read_twice_in_two_ranges_is_one_recipient(world: World, three_ranges: None) -> None:
    many(world, 30)
    plan = planned(world, world.add_send())
    build_range(world.engine, world.settings, plan, 0)
    first, last = world.fetch(select(contacts.c.id).order_by(contacts.c.id))[::29]
    (moved,) = (row._mapping for row in world.fetch(select(contacts).where(contacts.c.id == first.id)))
    kept = {k: moved[k] for k in ("address", "address_given", "address_hash", "domain", "provider")}
    with write(world.engine) as connection:  # the person of the first contact becomes the last one
        away = {"address": "gone@example.org", "address_hash": world.hash_of("gone@example.org")}
        connection.execute(update(contacts).where(contacts.c.id == first.id).values(away))
        connection.execute(update(contacts).where(contacts.c.id == last.id).values(kept))
    made = build(world.engine, world.settings, plan)
    folder = folder_of(world, plan)
    assert recipients(folder)[moved["address_given"]].contact_id == first.id
    assert excluded(folder) == {last.id: R.DUPLICATE}
    assert made.counts.frozen == 29
    assert verify(folder) == []


@pytest.mark.usefixtures("any_store")
def test_who_is_barred_in_one_range_and_selected_in_another_is_barred(world: World, three_ranges: None) -> None:
    many(world, 30)
    plan = planned(world, world.add_send())
    first, last = world.fetch(select(contacts.c.id).order_by(contacts.c.id))[::29]
    with write(world.engine) as connection:
        mine = subscriptions.c.contact_id == first.id
        connection.execute(update(subscriptions).where(mine).values(state="unsubscribed"))
    build_range(world.engine, world.settings, plan, 0)
    (moved,) = (row._mapping for row in world.fetch(select(contacts).where(contacts.c.id == first.id)))
    kept = {k: moved[k] for k in ("address", "address_given", "address_hash", "domain", "provider")}
    with write(world.engine) as connection:
        away = {"address": "gone@example.org", "address_hash": world.hash_of("gone@example.org")}
        connection.execute(update(contacts).where(contacts.c.id == first.id).values(away))
        connection.execute(update(contacts).where(contacts.c.id == last.id).values(kept))
    build(world.engine, world.settings, plan)
    folder = folder_of(world, plan)
    assert excluded(folder) == {first.id: R.UNSUBSCRIBED, last.id: R.UNSUBSCRIBED}
    assert moved["address_given"] not in recipients(folder)
    assert verify(folder) == []


# --- seeds ------------------------------------------------------------------------------------------------------------


def seed(world: World, *addresses: str) -> None:
    with write(world.engine) as connection:
        for address in addresses:
            row = {"list_name": "team", "address": address, "given_name": "Seed", "created_at": LONG_AGO}
            connection.execute(insert(seed_addresses).values(row))


@pytest.mark.usefixtures("any_store")
def test_a_test_goes_to_the_seed_list_alone(world: World) -> None:
    many(world, 5)
    known = world.add("known@example.org", state=None, given_name="Kim", attributes={"tier": "gold"})
    left = world.add("left@example.org", state="unsubscribed")
    seed(world, "known@example.org", "New.Seed@Bücher.example", "left@example.org", "complained@example.org")
    with write(world.engine) as connection:
        address_hash, reason = world.hash_of("complained@example.org"), SuppressionReason.COMPLAINED
        consent.suppress(connection, address_hash=address_hash, reason=reason, source="test", at=LONG_AGO)
    send_id = world.add_send("test-1.1")
    made = build_seed_snapshot(
        world.engine,
        world.settings,
        send_id,
        seed_list="team",
        list_id=world.newsletter,
        attributes=["tier"],
        weights=(1, 1),
    )
    (row,) = world.fetch(select(snapshots))
    assert row.path.startswith("snapshots/spring-sale/test-1.1/1")
    folder = store(world.settings) / row.path
    found = recipients(folder)
    assert set(found) == {"known@example.org", "New.Seed@xn--bcher-kva.example"}
    assert (found["known@example.org"].contact_id, found["known@example.org"].given_name) == (known, "Kim")
    assert found["known@example.org"].attributes == {"tier": "gold"}
    stranger = found["New.Seed@xn--bcher-kva.example"]
    assert (stranger.contact_id, stranger.given_name, stranger.attributes) == (0, "Seed", {})
    assert excluded(folder) == {0: R.COMPLAINED | R.SUPPRESSED_ADDRESS, left: R.UNSUBSCRIBED}
    assert made.criteria.source == "seeds" and made.criteria.name == "team"
    assert verify(folder) == []


def test_an_empty_seed_list_is_an_error(sqlite_world: World) -> None:
    world = sqlite_world
    with pytest.raises(SnapshotError, match='"team" is empty'):
        build_seed_snapshot(world.engine, world.settings, world.add_send(), seed_list="team", list_id=world.newsletter)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_can_not_be_planned_leaves_nothing_behind(sqlite_world: World) -> None:
    send_id = sqlite_world.add_send()
    with pytest.raises(CriteriaError):
        planned(sqlite_world, send_id, rules=rule("nope", "=", 1))
    with pytest.raises(SnapshotError, match="aren't declared: teir"):
        planned(sqlite_world, send_id, attributes=["teir"])
    with pytest.raises(SnapshotError, match="weights"):
        planned(sqlite_world, send_id, weights=(0, 0))
    with pytest.raises(SnapshotError, match="no send with the id 99"):
        planned(sqlite_world, 99)
    assert sqlite_world.fetch(select(snapshots)) == []
    assert not (sqlite_world.settings.storage / "snapshots").exists()


def test_a_folder_that_the_database_does_not_know_is_not_overwritten(sqlite_world: World) -> None:
    many(sqlite_world, 3)
    folder = sqlite_world.settings.storage / "snapshots" / "spring-sale" / "1" / "1"
    folder.mkdir(parents=True)
    with pytest.raises(SnapshotError, match="older backup"):
        planned(sqlite_world, sqlite_world.add_send())


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_store")
def test_verify_tells_what_was_changed(sqlite_world: World) -> None:
    many(sqlite_world)
    sqlite_world.add("pending@example.org", state="pending")
    made, folder = built(sqlite_world, sqlite_world.add_send())
    shard, barred = folder / made.shards[0].path, folder / made.excluded[0].path
    whole = shard.read_bytes()

    shard.write_bytes(whole + b"x")
    assert any("checksum" in problem and made.shards[0].path in problem for problem in verify(folder))
    shard.unlink()
    assert any("missing" in problem for problem in verify(folder))
    shard.write_bytes(whole)
    assert verify(folder) == []

    (folder / "excluded" / "extra.parquet").write_bytes(barred.read_bytes())
    assert verify(folder) == ["excluded/extra.parquet: the manifest doesn't know this file"]
    (folder / "excluded" / "extra.parquet").unlink()

    barred.unlink()
    assert len(verify(folder)) == 2  # the file, and the sum
    (folder / "manifest.json").unlink()
    assert "no such manifest" in verify(folder)[0]


@pytest.mark.usefixtures("any_store")
def test_verify_finds_somebody_twice_and_somebody_in_and_out(sqlite_world: World) -> None:
    from mailer_lib.audience.freezing import EXCLUDED_SCHEMA
    from mailer_lib.audience.people_files import SCHEMA, people_table, write_people
    from mailer_lib.shard.files import shard_table, write_parquet, write_shard

    many(sqlite_world, 30)
    left = sqlite_world.add("left@example.org", state="pending")
    made, folder = built(sqlite_world, sqlite_world.add_send())
    (entry,) = made.shards
    table = shard_table(folder / entry.path)
    twice = table.take([*range(table.num_rows), 0])
    sums = {"shards": (entry.model_copy(update={"rows": 31, "sha256": write_shard(folder / entry.path, twice)}),)}
    counts = made.counts.model_copy(update={"frozen": 31, "matching": 32})
    forged = made.model_copy(update=sums | {"counts": counts})
    (folder / "manifest.json").write_bytes(forged.dump())
    assert verify(folder) == [
        "people/ holds 30 people who aren't the 31 of the shards",
        "1 message keys stand in more than one row",
    ]

    row = {"contact_id": left, "address_hash": table["address_hash"][0].as_py(), "reasons": int(R.UNCONFIRMED)}
    checksum = write_parquet(folder / made.excluded[0].path, pa.Table.from_pylist([row], schema=EXCLUDED_SCHEMA))
    write_shard(folder / entry.path, table)
    forged = made.model_copy(update={"excluded": (made.excluded[0].model_copy(update={"sha256": checksum}),)})
    (folder / "manifest.json").write_bytes(forged.dump())
    assert verify(folder) == ["1 people are both in a shard and excluded"]

    (listed,) = made.people
    strange = people_table(folder / listed.path).set_column(1, "contact_id", pa.array([left] * 30, pa.int64()))
    checksum = write_people(folder / listed.path, strange.cast(SCHEMA))
    forged = made.model_copy(update={"people": (listed.model_copy(update={"sha256": checksum}),)})
    (folder / "manifest.json").write_bytes(forged.dump())
    assert "people/ has another contact id than the shard for 30 people" in verify(folder)
