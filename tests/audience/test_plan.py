"""How a snapshot is cut up."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience.plan import (
    MAX_RANGES,
    SnapshotError,
    check_weights,
    edition_folder,
    id_ranges,
    load_plan,
    range_count,
    shard_count,
    used_attributes,
)
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType


@pytest.mark.parametrize(
    ("matching", "ranges"), [(0, 0), (1, 1), (1250, 1), (20_000, 4), (1_000_000, 29), (50_000_000, 200), (10**10, 1024)]
)
def test_ranges_grow_slowly_and_never_past_what_airflow_maps(matching: int, ranges: int) -> None:
    assert range_count(matching) == ranges <= MAX_RANGES


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.integers(1, 300))
def test_ranges_lie_end_to_end(first: int, width: int, count: int) -> None:
    last = first + width
    ranges = id_ranges(first, last, count)
    assert ranges[0].first == first and ranges[-1].last == last
    assert all(a.last + 1 == b.first for a, b in pairwise(ranges))
    assert [r.index for r in ranges] == list(range(len(ranges))) and len(ranges) <= count
    widths = {r.last - r.first + 1 for r in ranges}
    assert max(widths) - min(widths) <= 1 and min(widths) >= 1


def test_without_contacts_there_is_nothing_to_cut() -> None:
    assert id_ranges(1, 0, 4) == () == id_ranges(5, 9, 0)


@pytest.mark.parametrize(
    ("matching", "rows", "shards"), [(0, 2000, 1), (2000, 2000, 1), (2001, 2000, 2), (20000, 2000, 10)]
)
def test_shards(matching: int, rows: int, shards: int) -> None:
    assert shard_count(matching, rows) == shards


@pytest.mark.parametrize("weights", [(), (0,), (1, -1), (1,) * 128])
def test_wrong_weights(weights: tuple[int, ...]) -> None:
    with pytest.raises(SnapshotError, match="weights"):
        check_weights(weights)


def test_an_attribute_that_nobody_declared() -> None:
    with pytest.raises(SnapshotError, match="teir"):
        used_attributes(["tier", "teir"], {"tier": AttributeType.TEXT})


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "/etc"])
def test_names_that_would_leave_the_snapshot_store(settings: Settings, name: str) -> None:
    with pytest.raises(SnapshotError, match="folder"):
        edition_folder(settings, name, "1")
    with pytest.raises(SnapshotError, match="folder"):
        edition_folder(settings, "spring-sale", name)


def test_a_plan_that_is_gone_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no such plan"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(SnapshotError, match=r"plan\.json"):
        load_plan(tmp_path / "plan.json")
