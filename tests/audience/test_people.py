"""A block of rows becomes what each row would have become by itself."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailer_lib.audience.people import BARRED_SCHEMA, Freezing, split
from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.identity import IdentityKey, message_key
from mailer_lib.terms import AttributeType, ExclusionReason

SEND_KEY = IdentityKey(b"k" * 32).send_key("spring-sale", "1")
ATTRIBUTES = {"likes": AttributeType.TEXT_LIST, "points": AttributeType.NUMBER, "vip": AttributeType.BOOLEAN}
FREEZING = Freezing(ATTRIBUTES, shards=3, send_key=SEND_KEY, weights=(1, 0, 2))
DOMAINS = [
    "x.org", "X.ORG", "Bücher.example", "xn--bcher-kva.example", "a.b.c-d.io", "1.2.3.4", "x.4all", "x", "-x.org",
    "x-.org", "a" * 63 + ".org", "a" * 64 + ".org", ".".join(["a" * 60] * 5), "x..org", "x.org.", "", "[1.2.3.4]",
    "x_y.org",
]  # fmt: skip
LOCALS = [
    "ann", "Ann.Lee", "o'hara+tag", "müller", "ß", "", ".a", "a.", "a..b", "a b", "a@b", '"a b"', "a" * 64, "a" * 65,
    "ann\n",
]  # fmt: skip
addresses = st.one_of(
    st.builds("{}@{}".format, st.sampled_from(LOCALS), st.sampled_from(DOMAINS)),
    st.from_regex(r"[a-z.+]{1,8}@[a-z0-9.-]{1,12}", fullmatch=True),
    st.builds("{}{}@x.org{}".format, st.sampled_from(["", " ", "\t"]), st.sampled_from(LOCALS), st.sampled_from("\n ")),
    st.text(max_size=10),
)
rows = st.lists(
    st.tuples(
        st.binary(min_size=16, max_size=16),
        addresses,
        st.one_of(st.none(), st.lists(st.text(max_size=4), max_size=3)),
        st.one_of(st.none(), st.floats(allow_nan=False)),
        st.one_of(st.none(), st.booleans()),
        st.sampled_from([0, 0, 0, int(ExclusionReason.UNSUBSCRIBED), 20]),
    ),
    max_size=12,
)
ALL_ODD = [
    (bytes([n]) * 16, f"{local}@{domain}", None, None, None, 0)
    for n, (local, domain) in enumerate([*((local, "x.org") for local in LOCALS), *(("ann", d) for d in DOMAINS)])
]


def block(people: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """As the database hands it out: a list of texts is JSON."""
    columns: dict[str, list[Any]] = {field.name: [] for field in FREEZING.read}
    for number, (address_hash, address, likes, points, vip, reasons) in enumerate(people):
        values = {"contact_id": number, "address_hash": address_hash, "address": address, "reasons": reasons}
        values |= {"domain": "x.org", "provider": "other", "given_name": None, "family_name": "Zoë", "locale": None}
        values |= {"timezone": "", "attribute.likes": None if likes is None else json.dumps(likes)}
        values |= {"attribute.points": points, "attribute.vip": vip}
        for name, column in columns.items():
            column.append(values[name])
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in FREEZING.read], schema=FREEZING.read)


def variant(key: bytes) -> int:
    """One third and two thirds; the one between has no weight."""
    return 0 if int.from_bytes(key[:8], "big") * 3 >> 64 < 1 else 2


@given(rows)
@example(ALL_ODD)
def test_a_block_is_split_as_its_rows_would_be(people: list[tuple[Any, ...]]) -> None:
    expected: list[tuple[Any, ...]] = []
    expected_barred: list[tuple[Any, ...]] = []
    for number, (address_hash, given_, likes, points, vip, mask) in enumerate(people):
        shard, reasons, address = int.from_bytes(address_hash[:4], "big") % 3, mask, given_
        try:
            address = normalise(given_).deliverable
        except AddressError:
            reasons |= int(ExclusionReason.INVALID_ADDRESS)
        if reasons:
            expected_barred.append((shard, number, address_hash, reasons))
            continue
        key = message_key(SEND_KEY, address_hash)
        names = (None, "Zoë", None, "")
        row = (shard, number, key, address_hash, address, "x.org", "other", variant(key), *names, likes, points, vip)
        expected.append(row)
    selected, barred = split(block(people), FREEZING)
    assert (selected.schema, barred.schema) == (FREEZING.selected, BARRED_SCHEMA)
    assert list(zip(*(c.to_pylist() for c in selected.columns), strict=True)) == sorted(expected, key=lambda r: r[:2])
    assert list(zip(*(c.to_pylist() for c in barred.columns), strict=True)) == sorted(expected_barred)


@pytest.mark.parametrize(
    ("given_", "deliverable"),
    [
        ("Ann.Lee@Bücher.Example", "Ann.Lee@xn--bcher-kva.example"),
        ("ANN@X.ORG", "ANN@x.org"),
        (" ann@x.org\n", "ann@x.org"),
    ],
)
def test_an_address_is_made_deliverable(given_: str, deliverable: str) -> None:
    selected, _ = split(block([(bytes(16), given_, None, None, None, 0)]), FREEZING)
    assert selected.column("address").to_pylist() == [deliverable]


def test_who_has_no_address_that_can_be_used_is_barred() -> None:
    _, barred = split(block([(bytes(16), "nobody", None, None, None, 0)]), FREEZING)
    assert barred.column("reasons").to_pylist() == [int(ExclusionReason.INVALID_ADDRESS)]
