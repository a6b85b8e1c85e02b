"""Who came and who went between two frozen audiences, and why, compared with the files read in plain Python."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.amending import ERASED, amend
from mailer_lib.audience.difference import Absence, Difference, Side, compare
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.audience.published import published
from mailer_lib.audience.snapshot import build, plan_snapshot
from mailer_lib.contacts import consent
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import contacts, shards, subscriptions
from mailer_lib.shard.files import read_shard
from mailer_lib.terms import ShardState, SuppressionReason
from tests.audience.world import ON_THE_LIST, World, rule

R = SuppressionReason


def freeze(world: World, edition: str, rules: Any = ON_THE_LIST, send_id: int | None = None) -> int:
    made = world.add_send(edition) if send_id is None else send_id
    plan = plan_snapshot(world.engine, world.settings, made, rules=rules, list_id=world.newsletter)
    build(world.engine, world.settings, plan)
    return made


def side(world: World, edition: str, phase: int | None = None) -> Side:
    with read(world.engine) as connection:
        phases = published(connection, world.settings, "spring-sale", edition)
    return Side.of([p for p in phases if phase in {None, p.phase}], one_phase=phase is not None)


def difference(
    world: World, first: str, second: str, people: Path | None = None, addresses: bool = False
) -> Difference:
    sides = [side(world, *_named(ref)) for ref in (first, second)]
    with read(world.engine) as connection:
        return compare(connection, *sides, people=people, addresses=addresses)


def _named(ref: str) -> tuple[str, int | None]:
    edition, _, phase = ref.partition("@")
    return edition, int(phase) if phase else None


def suppress(world: World, address: str) -> None:
    with write(world.engine) as connection:
        consent.suppress(connection, address_hash=world.hash_of(address), reason=R.MANUAL, source="ann", at=now())


def lift(world: World, address: str) -> None:
    with write(world.engine) as connection:
        consent.lift(connection, address_hash=world.hash_of(address), by="ann")


def set_points(world: World, address: str, points: int) -> None:
    with write(world.engine) as connection:
        connection.execute(
            update(contacts)
            .where(contacts.c.address_hash == world.hash_of(address))
            .values(attributes={"points": points})
        )


SIX = rule("attribute.points", ">=", 6)


@pytest.fixture
def month(world: World) -> World:
    """Between the editions 1 and 2 everything happens that can happen."""
    for name in ("stays", "barred", "drops", "goes"):
        world.add(f"{name}@gmail.com", attributes={"points": 6})
    world.add("unbarred@example.org", attributes={"points": 6})
    world.add("rises@example.org", attributes={"points": 5})
    suppress(world, "unbarred@example.org")
    freeze(world, "1", SIX)
    suppress(world, "barred@gmail.com")
    lift(world, "unbarred@example.org")
    set_points(world, "drops@gmail.com", 1)
    set_points(world, "rises@example.org", 9)
    with write(world.engine) as connection:
        connection.execute(delete(contacts).where(contacts.c.address == "goes@gmail.com"))
    world.add("new@example.org", attributes={"points": 7})
    freeze(world, "2", SIX)
    return world


def test_every_cause_is_told(month: World) -> None:
    found = difference(month, "1", "2")
    assert (found.first, found.second) == ("spring-sale#1", "spring-sale#2")
    assert (found.first_people, found.second_people, found.stayed) == (4, 4, 1)
    assert found.removed.by_absence == {Absence.BARRED: 1, Absence.NO_MATCH: 1, Absence.GONE: 1}
    assert found.removed.by_reason == {"suppressed-address": 1}
    assert found.added.by_absence == {Absence.BARRED: 1, Absence.NO_MATCH: 1, Absence.NO_CONTACT_YET: 1}
    assert (found.removed.by_provider, found.added.by_provider) == ({"gmail": 3}, {"other": 3})


def test_backwards_it_is_the_same_people(month: World) -> None:
    """Of the older one nobody can have gone; who is new in the newer wasn't a contact yet."""
    found = difference(month, "2", "1")
    assert found.removed.by_absence == {Absence.BARRED: 1, Absence.NO_MATCH: 1, Absence.NO_CONTACT_YET: 1}
    assert found.added.by_absence == {Absence.BARRED: 1, Absence.NO_MATCH: 1, Absence.GONE: 1}


def test_with_itself_nothing_has_changed(month: World) -> None:
    found = difference(month, "1", "1")
    assert (found.added.people, found.removed.people, found.stayed) == (0, 0, 4)


def test_people_are_written_without_addresses_unless_asked_for(month: World, tmp_path: Path) -> None:
    difference(month, "1", "2", tmp_path / "moved.csv")
    text = (tmp_path / "moved.csv").read_text()
    assert "@" not in text and (tmp_path / "moved.csv").stat().st_mode & 0o777 == 0o600
    rows = list(csv.DictReader(text.splitlines()))
    told = {(row["change"], row["absence"], row["reasons"]) for row in rows}
    assert ("removed", "barred", "suppressed-address") in told and ("added", "no-contact-yet", "") in told
    assert month.hash_of("new@example.org").hex() in {row["address_hash"] for row in rows}

    difference(month, "1", "2", tmp_path / "moved.parquet", addresses=True)
    people = {row["absence"] + row["change"]: row for row in pq.read_table(tmp_path / "moved.parquet").to_pylist()}
    assert people["no-matchremoved"]["address"] == "drops@gmail.com"
    assert people["goneremoved"]["address"] is None
    assert sorted(p.name for p in tmp_path.iterdir() if "moved" in p.name) == ["moved.csv", "moved.parquet"]


def test_an_erased_person_has_neither_cause_nor_address(month: World, tmp_path: Path) -> None:
    address_hash = month.hash_of("drops@gmail.com")
    (first,) = side(month, "1").phases
    amend(month.engine, month.settings, first[0].id, [address_hash], ERASED)
    found = difference(month, "1", "2", tmp_path / "moved.csv", addresses=True)
    assert found.removed.by_absence == {Absence.BARRED: 1, Absence.ERASED: 1, Absence.GONE: 1}
    assert "drops" not in (tmp_path / "moved.csv").read_text()


def test_phases_are_compared_together_or_one(world: World) -> None:
    world.add("one@example.org")
    send_id = freeze(world, "1")
    with write(world.engine) as connection:
        connection.execute(update(shards).values(state=ShardState.SETTLED))
    world.add("two@example.org")
    key_of_one = next(read_shard(_only_file(world, "1", 1)))[1].message_key
    plan = plan_snapshot(world.engine, world.settings, send_id, rules=ON_THE_LIST, list_id=world.newsletter)
    build(world.engine, world.settings, plan, {key_of_one})
    freeze(world, "2")
    together = difference(world, "1", "2")
    assert (together.first, together.first_people, together.added.people, together.removed.people) == (
        ("spring-sale#1", 2, 0, 0)
    )
    single = difference(world, "1@2", "2")
    assert (single.first, single.first_people) == ("spring-sale#1@2", 1)
    assert single.added.by_absence == {Absence.BARRED: 1}  # by having got it in phase 1


def _only_file(world: World, edition: str, phase: int) -> Path:
    ((snapshot, manifest),) = side(world, edition, phase).phases
    return snapshot.folder / manifest.shards[0].path


@pytest.mark.parametrize(("first", "second"), [("none", "all"), ("all", "none"), ("none", "none")])
def test_an_empty_audience_is_compared_too(world: World, first: str, second: str) -> None:
    world.add("one@example.org")
    freeze(world, "all")
    freeze(world, "none", rule("attribute.points", ">", 1))
    found = difference(world, first, second)
    assert (found.added.people, found.removed.people) == (int(second == "all"), int(first == "all"))


def test_files_that_are_not_there_are_a_sentence(month: World, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"ends in \.csv or \.parquet"):
        difference(month, "1", "2", tmp_path / "moved.xlsx")
    ((snapshot, manifest),) = side(month, "1").phases
    for name in (manifest.excluded[0].path, manifest.people[0].path):
        (snapshot.folder / name).unlink()
        with pytest.raises(SnapshotError, match="can't be read"):
            difference(month, "1", "2")


states = st.sampled_from(["confirmed", "unsubscribed", None])


@given(before=st.lists(states, min_size=1, max_size=10), after=st.lists(states, min_size=1, max_size=10))
@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_finds_whom_reading_both_finds(world: World, before: list[str | None], after: list[str | None]) -> None:
    editions = [f"{now():%H%M%S%f}", ""]
    with write(world.engine) as connection:
        connection.execute(delete(subscriptions))
        connection.execute(delete(contacts))
    people = [world.add(f"p{n}@example.org", state=state) for n, state in enumerate(before)]
    freeze(world, editions[0])
    for n, state in enumerate(after):
        if n >= len(people):
            world.add(f"p{n}@example.org", state=state)
            continue
        mine = subscriptions.c.contact_id == people[n]
        with write(world.engine) as connection:
            if state is None:
                connection.execute(delete(subscriptions).where(mine))
            else:
                connection.execute(update(subscriptions).where(mine).values(state=state))
    editions[1] = f"{now():%H%M%S%f}"
    freeze(world, editions[1])
    first, second = (_hashes(world, edition) for edition in editions)
    found = difference(world, *editions)
    assert (found.removed.people, found.added.people) == (len(first - second), len(second - first))
    assert found.stayed == len(first & second)


def _hashes(world: World, edition: str) -> set[bytes]:
    ((snapshot, _),) = side(world, edition).phases
    entries = manifests.load(snapshot.folder).shards
    return {who.address_hash for entry in entries for _, who in read_shard(snapshot.folder / entry.path)}


def test_counts_are_plain_data(month: World) -> None:
    from dataclasses import asdict

    told = json.loads(json.dumps(asdict(difference(month, "1", "2"))))
    assert told["removed"]["by_absence"] == {"barred": 1, "gone": 1, "no-match": 1}
