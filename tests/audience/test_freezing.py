"""From people selected to frozen rows."""

from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.audience.freezing import FrozenShard, by_person, freeze, interleave, variants_of
from mailer_lib.audience.plan import MAX_WEIGHTS
from mailer_lib.identity import IdentityKey, message_key, message_keys
from mailer_lib.shard.files import shard_schema
from mailer_lib.terms import ExclusionReason

KEY = IdentityKey(b"k" * 32)
SEND_KEY = KEY.send_key("spring-sale", "1")


def people(*rows: tuple[int, str, str]) -> pa.Table:
    """(contact id, address, provider)."""
    hashes = [KEY.address_hash(address) for _, address, _ in rows]
    columns: list[list[Any]] = [
        [contact_id for contact_id, _, _ in rows],
        message_keys(SEND_KEY, hashes),
        hashes,
        [address for _, address, _ in rows],
        [address.rpartition("@")[2] for _, address, _ in rows],
        [provider for _, _, provider in rows],
        [0] * len(rows),
        *[[None] * len(rows)] * 4,
    ]
    schema = shard_schema()
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def frozen(
    table: pa.Table, *, barred: dict[bytes, ExclusionReason] | None = None, already: frozenset[bytes] = frozenset()
) -> FrozenShard:
    everybody = by_person(table, np.zeros(table.num_rows, np.uint32))
    return freeze(table, everybody, barred=barred or {}, already=already)


def dropped(shard: FrozenShard) -> list[tuple[int, int]]:
    return sorted(zip(shard.dropped["contact_id"].to_pylist(), shard.dropped["reasons"].to_pylist(), strict=True))


def test_a_row_stays_as_it_is() -> None:
    person = people((1, "a@x.org", "other"))
    shard = frozen(person)
    assert shard.rows.equals(person)
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


DOMAINS = {"gmail.com": "gmail", "outlook.com": "outlook", "hotmail.com": "outlook", "x.org": "other", "y.org": "other"}


def interleaved(domains: list[str]) -> list[int]:
    """The order of rows with these domains."""
    column = pa.chunked_array([pa.array(domains, pa.string())])
    providers = pa.chunked_array([pa.array([DOMAINS.get(d, "other") for d in domains], pa.string())])
    salt = np.frombuffer(b"".join(KEY.address_hash(str(n))[:8] for n in range(len(domains))), np.uint64)
    return [int(n) for n in interleave(providers, column, salt)]


@given(st.lists(st.sampled_from([*["gmail.com"] * 5, *DOMAINS]), max_size=200))
def test_interleaving_is_an_order_that_spreads_each_provider_evenly(domains: list[str]) -> None:
    order = interleaved(domains)
    assert sorted(order) == list(range(len(domains)))
    providers = [DOMAINS[d] for d in domains]
    mixed = [providers[n] for n in order]
    for provider in set(providers):
        share = providers.count(provider) / len(providers)
        for end in range(len(mixed) + 1):  # at every point about its share has come
            assert abs(mixed[:end].count(provider) - share * end) <= len(set(providers))
    others = len(providers) - providers.count("gmail")
    longest = max((len(list(run)) for name, run in groupby(mixed) if name == "gmail"), default=0)
    assert longest <= providers.count("gmail") / (others + 1) * 2 + 3 or others == 0


@given(st.lists(st.sampled_from([*["x.org"] * 5, *DOMAINS]), max_size=200))
def test_interleaving_spreads_each_domain_too(domains: list[str]) -> None:
    mixed = [domains[n] for n in interleaved(domains)]
    for domain in set(domains):
        share = domains.count(domain) / len(domains)
        for end in range(len(mixed) + 1):
            assert abs(mixed[:end].count(domain) - share * end) <= 2 * len(DOMAINS)


def test_domains_with_one_row_do_not_meet_in_the_middle() -> None:
    domains = [*["x.org"] * 300, *[f"firm{n}.example" for n in range(300)]]
    mixed = [domains[n] for n in interleaved(domains)]
    for start in range(0, 600, 100):
        assert 25 <= mixed[start : start + 100].count("x.org") <= 75


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
def test_a_variant_without_weight_gets_nobody(key: bytes, weights: list[int]) -> None:
    bounds = [sum(weights[: n + 1]) for n in range(len(weights))]
    (chosen,) = variants_of(key, bounds)
    assert weights[chosen] > 0


@given(
    st.lists(st.binary(min_size=16, max_size=16), max_size=20),
    st.lists(st.integers(0, MAX_WEIGHTS // 6), min_size=1, max_size=5).filter(any),
)
def test_the_variant_is_where_the_key_falls_among_the_weights(keys: list[bytes], weights: list[int]) -> None:
    bounds = [sum(weights[: n + 1]) for n in range(len(weights))]
    points = [int.from_bytes(key[:8], "big") * bounds[-1] >> 64 for key in keys]
    expected = [next(n for n, bound in enumerate(bounds) if point < bound) for point in points]
    assert variants_of(b"".join(keys), bounds).tolist() == expected


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (1, 2, 3)])
def test_variants_get_their_share(weights: tuple[int, ...]) -> None:
    bounds = [sum(weights[: n + 1]) for n in range(len(weights))]
    keys = message_keys(SEND_KEY, (KEY.address_hash(str(n)) for n in range(4000)))
    chosen = variants_of(b"".join(keys), bounds).tolist()
    for variant, weight in enumerate(weights):
        assert abs(chosen.count(variant) / 4000 - weight / sum(weights)) < 0.04  # five standard deviations
