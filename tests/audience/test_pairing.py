"""People of two sides are paired by their whole hash, wherever their first bits meet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience.pairing import by_person, parts_of, who_is_alone
from mailer_lib.audience.people_files import People, PeopleWriter

FEW = st.sampled_from([0, 1, 2, 1 << 40, (1 << 40) + 1, 1 << 63, (1 << 64) - 1])


@given(st.lists(st.tuples(FEW, FEW), max_size=60))
def test_rows_of_one_person_come_together(rows: list[tuple[int, int]]) -> None:
    hashes = np.array(rows, np.uint64).reshape(-1, 2)
    order, starts = by_person(hashes)
    assert sorted(order.tolist()) == list(range(len(rows)))
    found = [{rows[row] for row in part} for part in np.split(order, starts[1:])] if rows else []
    assert all(len(who) == 1 for who in found)
    assert len(found) == len(set(rows))


def files(folder: Path, hashes: "np.ndarray[tuple[int, int], np.dtype[np.uint64]]", shards: int) -> list[People]:
    """As a snapshot of so many shards writes them."""
    folder.mkdir()
    with PeopleWriter(folder) as writer:
        for part in np.array_split(hashes, shards):
            column = pa.array([row.astype(">u8").tobytes() for row in part], pa.binary(16))
            ids, provider = pa.array(part[:, 1].astype(np.int64)), pa.array([f"p{row[0] % 3}" for row in part])
            writer.add(pa.table({"address_hash": column, "contact_id": ids, "provider": provider}))
        entries = writer.entries()
    return [People.open(folder / entry.path) for entry in entries]


def test_a_hundred_thousand_people_are_paired_over_many_ranges(tmp_path: Path) -> None:
    """Two files a side and two ranges: more than a snapshot of a test has."""
    random = np.random.default_rng(3)
    everybody = random.integers(0, 1 << 62, (400_000, 2), np.uint64) * np.array([4, 1], np.uint64)
    first, second = everybody[:300_000], random.permutation(everybody[100_000:])
    sides = files(tmp_path / "1", first, 60), files(tmp_path / "2", second, 7)
    assert [len(side) for side in sides] == [5, 4] and len(list(parts_of([*sides[0], *sides[1]], 1 << 19))) == 2
    counts, (removed, added) = who_is_alone(*sides)
    assert counts == (300_000, 300_000)
    for found, expected in ((removed, everybody[:100_000]), (added, everybody[300_000:])):
        order = np.argsort(expected[:, 0])
        mine = np.argsort(found.people[:, 0])
        assert np.array_equal(found.people[mine], expected[order])
        assert np.array_equal(found.contact_ids[mine], expected[order, 1].astype(np.int64))
        told = [found.names[place] for place in found.providers[mine].tolist()]
        assert told == [f"p{half % 3}" for half in expected[order, 0].tolist()]
