"""Shards of one kind: of one clock, of a provider that has a limit; each person still found by their hash."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from sqlalchemy import select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.parting import Parting
from mailer_lib.audience.verify import verify
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import contacts, shards, snapshots
from mailer_lib.shard.files import read_shard
from tests.audience.test_snapshot import built, many
from tests.audience.world import World

AT = datetime(2026, 11, 24, tzinfo=UTC)


def table(*zones: str | None) -> pa.Table:
    return pa.table(
        {"row": list(range(len(zones))), "timezone": pa.array(zones, pa.string()), "provider": ["gmail"] * len(zones)}
    )


def test_zones_whose_clocks_agree_share_a_part_and_rows_stay_in_their_order() -> None:
    rows = table("Europe/Oslo", "Asia/Tokyo", "Europe/Berlin", "Asia/Seoul", "Europe/Oslo")
    found = list(Parting("UTC", (), AT, 8).parts(3, rows, None))
    assert [(part.number, part.zone, part.rows.column("row").to_pylist()) for part in found] == [
        (3, "Europe/Oslo", [0, 2, 4]),
        (11, "Asia/Tokyo", [1, 3]),
    ]


def test_zones_that_change_their_clocks_on_other_days_are_apart() -> None:
    found = list(Parting("UTC", (), AT, 1).parts(0, table("Europe/London", "Africa/Abidjan", "America/New_York"), None))
    assert [part.zone for part in found] == ["Europe/London", "Africa/Abidjan", "America/New_York"]


@pytest.mark.parametrize("zone", [None, "", "Mars/Olympus", "../etc/passwd"])
def test_whose_zone_is_not_known_has_the_windows(zone: str | None) -> None:
    (part,) = Parting("Europe/Oslo", (), AT, 1).parts(0, table(zone, "Europe/Berlin"), None)
    assert (part.zone, part.rows.num_rows) == ("Europe/Oslo", 2)


def test_each_part_has_its_own_test_slice_first() -> None:
    rows = table("Europe/Oslo", "Asia/Tokyo", "Europe/Oslo", "Asia/Tokyo", "Asia/Tokyo")
    assert [part.slice_rows for part in Parting("UTC", (), AT, 1).parts(0, rows, 3)] == [2, 1]


def test_a_band_keeps_its_number_from_shard_to_shard() -> None:
    parting = Parting("UTC", (), AT, 2)
    first = [part.number for part in parting.parts(0, table("Europe/Oslo", "Asia/Tokyo"), None)]
    second = [part.number for part in parting.parts(1, table("Asia/Tokyo", "Asia/Kolkata"), None)]
    assert (first, second) == ([0, 2], [3, 5])


def test_a_published_snapshot_has_shards_of_one_clock_each(world: World) -> None:
    many(world)
    with write(world.engine) as connection:
        for left, zone in enumerate(("Asia/Tokyo", "Europe/Berlin", None)):
            connection.execute(update(contacts).where(contacts.c.id % 3 == left).values(timezone=zone))
    made, folder = built(world, world.add_send(), zones="Europe/Oslo")
    assert made.counts.frozen == sum(entry.rows for entry in made.shards) == 300
    tokyo = [entry for entry in made.shards if entry.zone == "Asia/Tokyo"]
    assert sum(entry.rows for entry in tokyo) == 100
    assert len({entry.zone for entry in made.shards}) == 2  # Berlin's clock is Oslo's
    for entry in made.shards:
        for _, person in read_shard(folder / entry.path):
            assert (person.timezone == "Asia/Tokyo") == (entry in tokyo)
            assert made.shard_of(person.address_hash) == entry.number % made.shard_count
    assert verify(folder) == []
    assert manifests.load(folder) == made
    with read(world.engine) as connection:
        stored = connection.execute(select(shards.c.number, shards.c.zone)).all()
        count = connection.scalar(select(snapshots.c.shard_count))
    assert {tuple(row) for row in stored} == {(entry.number, entry.zone) for entry in made.shards}
    assert count == made.shard_count


def test_a_provider_with_a_limit_has_shards_of_its_own() -> None:
    rows = table(*["Europe/Oslo", "Asia/Tokyo", None] * 2).set_column(
        2, "provider", pa.array(["gmail", "gmx", "web.de", "gmail", "gmail", "gmx"])
    )
    found = list(Parting(None, ["gmail", "yahoo"], AT, 4).parts(1, rows, 2))
    assert [(p.number, p.zone, p.provider, p.rows.column("row").to_pylist(), p.slice_rows) for p in found] == [
        (1, None, "gmail", [0, 3, 4], 1),
        (5, None, None, [1, 2, 5], 1),
    ]
    both = list(Parting("UTC", ["gmail"], AT, 4).parts(1, rows, None))
    assert [(p.zone, p.provider, p.rows.num_rows) for p in both] == [
        ("Europe/Oslo", "gmail", 2),
        ("Asia/Tokyo", "gmail", 1),
        ("Asia/Tokyo", None, 1),
        ("UTC", None, 2),
    ]
