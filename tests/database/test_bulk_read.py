"""Rows read in packed blocks are what the driver would have handed out one by one."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, insert, select

from mailer_lib.audience.catalogue import attribute_field
from mailer_lib.audience.expressions import field_expression
from mailer_lib.database import bulk_read
from mailer_lib.database.bulk_read import BlockError, read_blocks, read_those
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import contacts
from mailer_lib.terms import AttributeType

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
        pa.field("address", pa.string(), nullable=False),
        pa.field("name", pa.string()),
        pa.field("points", pa.float64()),
        pa.field("city", pa.string()),
        pa.field("vip", pa.bool_()),
        pa.field("born", pa.string()),
        pa.field("likes", pa.string()),
    ]
)
STATEMENT = select(
    contacts.c.id,
    contacts.c.address_hash,
    contacts.c.address_given,
    contacts.c.family_name,
    *(
        field_expression(attribute_field(key, kind)).label(key)
        for key, kind in [
            ("points", AttributeType.NUMBER),
            ("city", AttributeType.TEXT),
            ("vip", AttributeType.BOOLEAN),
            ("born", AttributeType.DATE),
            ("likes", AttributeType.TEXT_LIST),
        ]
    ),
)
ODD = ["", " ", "\t", "\n", "\r\n", "\\", "\\N", "NULL", "'", '"', ",", "\x1f", "\x00", "ÿþ", "😀", "Zoë", "þ", "\x7f"]
texts = st.one_of(
    st.sampled_from(ODD),
    st.lists(st.sampled_from(ODD), max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "points": st.one_of(st.none(), st.floats(-1e300, 1e300, allow_subnormal=False), st.integers(-(2**52), 2**52)),
        "city": st.one_of(st.none(), texts),
        "vip": st.one_of(st.none(), st.booleans()),
        "born": st.one_of(st.none(), st.dates().map(str)),
        "likes": st.one_of(st.none(), st.lists(texts, max_size=3)),
    },
)
people = st.lists(
    st.tuples(st.binary(min_size=16, max_size=16), texts, st.one_of(st.none(), texts), attributes), max_size=8
)


def add(engine: Engine, rows: list[tuple[bytes, str, str | None, dict[str, Any]]], step: int = 1) -> None:
    """In place of whoever was there."""
    with write(engine) as connection:
        connection.execute(delete(contacts))
        for number, (address_hash, given_, name, values) in enumerate({row[0]: row for row in rows}.values()):
            row = {"id": 1 + number * step, "address_hash": address_hash, "address_given": given_, "family_name": name}
            fixed = {"address": f"{number}@x.org", "domain": "x.org", "provider": "other", "created_at": NOW}
            connection.execute(insert(contacts).values(**row, **fixed, updated_at=NOW, attributes=values))


def blocks(engine: Engine, first: int = 1, last: int = 1_000_000) -> list[dict[str, Any]]:
    with read(engine) as connection:
        found = read_blocks(connection, STATEMENT, SCHEMA, contacts.c.id, first=first, last=last)
        return [
            row for block in found for row in block.take(pa.array(range(block.num_rows)).to_numpy()).to_pylist()
        ]  # fmt: skip


def one_by_one(engine: Engine) -> list[dict[str, Any]]:
    with read(engine) as connection:
        rows = connection.execute(STATEMENT.order_by(contacts.c.id)).all()
    made = [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]
    return [row | {"vip": None if row["vip"] is None else bool(row["vip"])} for row in made]


@given(people=people)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_hold_what_the_driver_reads(engine: Engine, people: list[Any]) -> None:
    add(engine, people)
    assert sorted(blocks(engine), key=lambda row: row["id"]) == one_by_one(engine)


def test_a_column_and_chosen_rows_of_a_block(engine: Engine) -> None:
    add(engine, [(bytes([n]) * 16, f"p{n}", None, {"points": n}) for n in range(5)])
    with read(engine) as connection:
        (block,) = read_blocks(connection, STATEMENT, SCHEMA, contacts.c.id, first=1, last=5)
    assert block.column("address").to_pylist() == [f"p{n}" for n in range(5)]
    chosen = block.take(pa.array([3, 1]).to_numpy())
    assert chosen.schema == SCHEMA
    assert [(row["id"], row["points"], row["name"]) for row in chosen.to_pylist()] == [(4, 3.0, None), (2, 1.0, None)]
    assert block.select(["points", "id"]).take(pa.array([3, 1]).to_numpy()).equals(chosen.select(["points", "id"]))


def test_only_the_ids_asked_for(engine: Engine) -> None:
    add(engine, [(bytes([n]) * 16, f"p{n}", None, {}) for n in range(9)], step=10)
    assert [row["id"] for row in blocks(engine, 11, 41)] == [11, 21, 31, 41]
    assert blocks(engine, 2, 10) == []
    assert blocks(engine, 5, 4) == []


def test_ids_far_apart_cost_few_statements(sqlite_engine: Engine) -> None:
    add(sqlite_engine, [(bytes([n]) * 16, f"p{n}", None, {}) for n in range(3)], step=100_000)
    assert len(blocks(sqlite_engine)) == 3


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_read, "MAX_BLOCK_BYTES", 2000)


@pytest.mark.mariadb
@pytest.mark.parametrize("_database", ["mariadb"], indirect=True)
def test_a_block_that_the_database_cuts_off_is_read_in_parts(settings: Any, small_blocks: None) -> None:
    from mailer_lib.database.engine import open_engine

    engine = open_engine(settings.url)
    add(engine, [(bytes([n]) * 16, "x" * 300, None, {}) for n in range(20)])
    assert len(blocks(engine)) == 20
    add(engine, [(bytes(16), "x" * 300, None, {"city": "y" * 3000})])
    with pytest.raises(BlockError, match=r"the row with .*id 1 is larger than 2000 bytes"):
        blocks(engine)
    engine.dispose()


def test_nulls_are_counted_not_lost(engine: Engine) -> None:
    add(engine, [(bytes([n]) * 16, f"p{n}", None if n % 2 else "", {}) for n in range(6)])
    with read(engine) as connection:
        empty = connection.execute(select(func.count()).where(contacts.c.family_name == "")).scalar_one()
    assert [row["name"] for row in blocks(engine)].count("") == empty == 3


def test_rows_are_read_by_their_ids_however_many_and_wherever_they_lie(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_read, "ROWS_OF_IDS", 3)
    add(engine, [(bytes([n]) * 16, ODD[n], None, {}) for n in range(10)], step=1000)
    wanted = pa.schema([SCHEMA.field("id"), SCHEMA.field("address")])
    asked = [1, 7, 1001, 3001, 4001, 9001, 10_001, 99_999]
    with read(engine) as connection:
        statement = select(contacts.c.id, contacts.c.address_given)
        blocks = list(read_those(connection, statement, wanted, contacts.c.id, asked))
        found = {
            key: text
            for block in blocks
            for key, text in zip(block.column("id").to_pylist(), block.column("address").to_pylist(), strict=True)
        }
        assert list(read_those(connection, statement, wanted, contacts.c.id, [])) == []
    assert found == {1: ODD[0], 1001: ODD[1], 3001: ODD[3], 4001: ODD[4], 9001: ODD[9]}
