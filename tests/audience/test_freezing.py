"""From people selected to frozen rows."""

from itertools import groupby

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience.freezing import FrozenShard, freeze, interleave, variant_of
from mailer_lib.audience.ranges import people_schema
from mailer_lib.identity import IdentityKey, message_key
from mailer_lib.shard.files import shard_schema
from mailer_lib.terms import ExclusionReason

KEY = IdentityKey(b"k" * 32)
SEND_KEY = KEY.send_key("spring-sale", "1")


def people(*rows: tuple[int, str, str]) -> pa.Table:
    """(contact id, address, provider)."""
    columns = [
        [contact_id for contact_id, _, _ in rows],
        [KEY.address_hash(address) for _, address, _ in rows],
        [address for _, address, _ in rows],
        [address.rpartition("@")[2] for _, address, _ in rows],
        [provider for _, _, provider in rows],
        *[[None] * len(rows)] * 4,
    ]
    schema = people_schema({})
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def frozen(
    table: pa.Table, *, barred: dict[bytes, ExclusionReason] | None = None, already: frozenset[bytes] = frozenset()
) -> FrozenShard:
    return freeze(table, shard_schema(), send_key=SEND_KEY, weights=(1,), barred=barred or {}, already=already)


def dropped(shard: FrozenShard) -> list[tuple[int, int]]:
    return sorted(zip(shard.dropped["contact_id"].to_pylist(), shard.dropped["reasons"].to_pylist(), strict=True))


def test_a_row_gets_its_message_key_and_keeps_the_rest() -> None:
    shard = frozen(people((1, "a@x.org", "other")))
    (row,) = shard.rows.to_pylist()
    assert row["message_key"] == message_key(SEND_KEY, KEY.address_hash("a@x.org"))
    assert (row["contact_id"], row["address"], row["variant"]) == (1, "a@x.org", 0)
    assert shard.rows.schema == shard_schema()
    assert shard.dropped.num_rows == 0


def test_two_contacts_with_one_address_are_one_recipient() -> None:
    shard = frozen(people((7, "a@x.org", "other"), (3, "a@x.org", "other"), (5, "a@x.org", "other")))
    assert shard.rows["contact_id"].to_pylist() == [3]
    assert dropped(shard) == [(5, ExclusionReason.DUPLICATE), (7, ExclusionReason.DUPLICATE)]


def test_who_was_sent_this_edition_already_is_left_out() -> None:
    sent = message_key(SEND_KEY, KEY.address_hash("a@x.org"))
    shard = frozen(people((1, "a@x.org", "other"), (2, "b@x.org", "other")), already=frozenset({sent}))
    assert shard.rows["contact_id"].to_pylist() == [2]
    assert dropped(shard) == [(1, ExclusionReason.ALREADY_SENT)]


def test_who_was_barred_under_another_contact_is_barred() -> None:
    shard = frozen(people((1, "a@x.org", "other")), barred={KEY.address_hash("a@x.org"): ExclusionReason.UNSUBSCRIBED})
    assert shard.rows.num_rows == 0
    assert dropped(shard) == [(1, ExclusionReason.UNSUBSCRIBED)]


def test_the_order_of_reading_makes_no_difference() -> None:
    rows = [(n, f"p{n}@x.org", ("gmail", "outlook", "other")[n % 3]) for n in range(50)]
    assert frozen(people(*rows)).rows.equals(frozen(people(*reversed(rows))).rows)


@given(st.lists(st.sampled_from(["gmail"] * 7 + ["outlook", "yahoo", "other"]), max_size=200))
def test_interleaving_is_an_order_that_spreads_each_provider_evenly(providers: list[str]) -> None:
    order = interleave(providers)
    assert sorted(order) == list(range(len(providers)))
    mixed = [providers[n] for n in order]
    for provider in set(providers):
        share = providers.count(provider) / len(providers)
        for end in range(len(mixed) + 1):  # at every point about its share has come
            assert abs(mixed[:end].count(provider) - share * end) <= len(set(providers))
    others = len(providers) - providers.count("gmail")
    longest = max((len(list(run)) for name, run in groupby(mixed) if name == "gmail"), default=0)
    assert longest <= providers.count("gmail") / (others + 1) * 2 + 3 or others == 0


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_a_variant_without_weight_gets_nobody(key: bytes, weights: list[int]) -> None:
    bounds = [sum(weights[: n + 1]) for n in range(len(weights))]
    chosen = variant_of(key, bounds)
    assert weights[chosen] > 0
    assert chosen == variant_of(key, bounds)


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (1, 2, 3)])
def test_variants_get_their_share(weights: tuple[int, ...]) -> None:
    bounds = [sum(weights[: n + 1]) for n in range(len(weights))]
    keys = [message_key(SEND_KEY, KEY.address_hash(str(n))) for n in range(4000)]
    chosen = [variant_of(key, bounds) for key in keys]
    for variant, weight in enumerate(weights):
        assert abs(chosen.count(variant) / 4000 - weight / sum(weights)) < 0.04  # five standard deviations
