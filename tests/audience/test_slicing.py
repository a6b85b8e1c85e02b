"""The test slice: the same people whatever the order of work, spread evenly, and apart from the rest."""

import json
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.freezing import interleave
from mailer_lib.audience.plan import Slice
from mailer_lib.audience.slicing import Dealer, seats, threshold
from mailer_lib.audience.verify import verify
from mailer_lib.identity import IdentityKey, message_keys
from mailer_lib.shard.files import shard_schema
from mailer_lib.shard.recipient import REST
from tests.audience.test_snapshot import built, folder_of, many, planned, recipients
from tests.audience.world import World

KEY = IdentityKey(b"k" * 32)


def people(first: int, count: int, edition: str = "1") -> pa.Table:
    """A shard's rows, as publication interleaved them."""
    hashes = [KEY.address_hash(f"p{n}@x.org") for n in range(first, first + count)]
    values = {
        "contact_id": list(range(first, first + count)),
        "message_key": message_keys(KEY.send_key("spring-sale", edition), hashes),
        "address_hash": hashes,
        "address": [f"p{n}@x.org" for n in range(first, first + count)],
        "domain": ["x.org"] * count,
        "provider": [("gmail", "outlook", "other")[n % 3] for n in range(first, first + count)],
        "variant": [0] * count,
        **dict.fromkeys(("given_name", "family_name", "locale", "timezone"), [None] * count),
    }
    return pa.table(values, schema=shard_schema())


def cut(shards: list[pa.Table], through: int, weights: tuple[int, ...]) -> list[tuple[pa.Table, int]]:
    dealer = Dealer(through, weights)
    return [dealer.cut(shard) for shard in shards]


def point(key: bytes) -> int:
    return int.from_bytes(key[8:], "big")


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    share=st.floats(0.01, 0.99),
)
def test_slice_and_rest_share_nobody_and_the_variants_are_dealt_as_their_weights_say(
    sizes: list[int], weights: list[int], share: float
) -> None:
    through = int(share * 2**64)
    shards = [people(100 * n, size) for n, size in enumerate(sizes)]
    tables = cut(shards, through, tuple(weights))
    dealt: Counter[int] = Counter()
    for before, (table, size) in zip(shards, tables, strict=True):
        assert sorted(table["contact_id"].to_pylist()) == before["contact_id"].to_pylist()
        rows = list(zip(table["message_key"].to_pylist(), table["variant"].to_pylist(), strict=True))
        assert all(point(key) <= through and 0 <= variant < len(weights) for key, variant in rows[:size])
        assert all(point(key) > through and variant == REST for key, variant in rows[size:])
        dealt.update(variant for _, variant in rows[:size])
    assert [dealt[n] for n in range(len(weights))] == seats(weights, [0] * len(weights), dealt.total())


@given(variants=st.integers(1, 6), sizes=st.lists(st.integers(0, 50), max_size=8))
def test_with_equal_weights_no_two_variants_differ_by_more_than_one(variants: int, sizes: list[int]) -> None:
    dealt = [0] * variants
    for size in sizes:
        dealt = [a + b for a, b in zip(dealt, seats([1] * variants, dealt, size), strict=True)]
        assert max(dealt) - min(dealt) <= 1
    assert sum(dealt) == sum(sizes)


@given(weights=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=5).filter(any), total=st.integers(0, 2000))
def test_weights_are_met_and_a_variant_without_weight_gets_nobody(weights: list[int], total: int) -> None:
    counts = seats(weights, [0] * len(weights), total)
    assert sum(counts) == total
    for count, weight in zip(counts, weights, strict=True):
        assert (count == 0) if weight == 0 else (abs(count - total * weight / sum(weights)) <= len(weights))


def test_a_percentage_is_the_same_people_whoever_else_is_there() -> None:
    through = threshold(Slice(percent=10), ())
    assert through == int(2**64 * Fraction(1, 10)) - 1
    alone, beside = cut([people(0, 500)], through, (1, 1)), cut([people(0, 2000)], through, (1, 1))
    (few, size), (many_, whole) = alone[0], beside[0]
    assert set(few["contact_id"].to_pylist()[:size]) == {n for n in many_["contact_id"].to_pylist()[:whole] if n < 500}
    assert 150 < whole < 250  # 200 expected


def test_another_edition_tests_on_other_people() -> None:
    through = threshold(Slice(percent=10), ())
    (first, size), (second, other) = (cut([people(0, 2000, edition)], through, (1,))[0] for edition in ("1", "2"))
    both = set(first["contact_id"].to_pylist()[:size]) & set(second["contact_id"].to_pylist()[:other])
    assert len(both) < 50  # 20 expected


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_number_of_people_is_met_exactly_however_they_were_read(pieces: int) -> None:
    keys = b"".join(people(0, 700)["message_key"].to_pylist())
    step = 16 * 700 // pieces
    read = [memoryview(keys)[n : n + step] for n in range(0, len(keys), step)]
    through = threshold(Slice(people=33), read)
    assert sum(point(keys[n : n + 16]) <= through for n in range(0, len(keys), 16)) == 33
    assert threshold(Slice(people=701), read) == 2**64 - 1  # more than there are: everybody


def test_what_an_earlier_phase_drew_stays() -> None:
    assert threshold(Slice(people=33, through="00ff"), ()) == 255


def test_both_parts_stay_interleaved_by_provider() -> None:
    table = people(0, 900)
    spread = table.take(interleave(table["provider"], table["domain"], np.arange(900, dtype=np.uint64)))
    cut_, size = cut([spread], threshold(Slice(percent=30), ()), (1, 1))[0]
    for part in (cut_["provider"].to_pylist()[:size], cut_["provider"].to_pylist()[size:]):
        longest = run = 1
        for before, after in pairwise(part):
            run = run + 1 if before == after else 1
            longest = max(longest, run)
        assert longest < 12  # of 300 to 600


def test_a_published_snapshot_has_the_slice_first_in_each_shard(world: World) -> None:
    many(world)
    made, folder = built(world, world.add_send(), weights=(1, 1), test_slice=Slice(people=41))
    assert made.counts.frozen == 300
    assert (sorted(made.counts.by_variant), made.counts.rest) == ([20, 21], 259)
    assert sum(entry.slice_rows or 0 for entry in made.shards) == 41
    assert Counter(person.variant == REST for person in recipients(folder).values()) == {False: 41, True: 259}
    assert made.test_slice is not None and made.test_slice.through is not None
    assert verify(folder) == []
    assert manifests.sha256(manifests.load(folder)) == manifests.sha256(made)


def test_without_a_slice_the_manifest_is_what_it_was(world: World) -> None:
    world.add("a@example.org")
    plan = planned(world, world.add_send())
    assert plan.inputs.test_slice is None
    _, folder = built(world, plan.send_id)
    said = json.loads((folder / manifests.MANIFEST_FILE).read_bytes())
    assert not {"test_slice", "amendments"} & said.keys()
    assert "slice_rows" not in said["shards"][0] and "rest" not in said["counts"]
    assert folder == folder_of(world, plan)
