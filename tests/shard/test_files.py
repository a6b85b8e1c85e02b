"""Shard files: what is written is read again; what is no shard is named, with file and column."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.shard.files import ShardError, read_shard, shard_schema, shard_table, write_shard
from mailer_lib.shard.recipient import Recipient
from mailer_lib.terms import AttributeType

ATTRIBUTES = {
    "tier": AttributeType.TEXT,
    "points": AttributeType.NUMBER,
    "vip": AttributeType.BOOLEAN,
    "since": AttributeType.DATE,
    "grade": AttributeType.ENUM,
    "interests": AttributeType.TEXT_LIST,
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
recipients = st.builds(
    Recipient,
    contact_id=st.integers(0, 2**62),
    message_key=st.binary(min_size=16, max_size=16),
    address_hash=st.binary(min_size=16, max_size=16),
    address=texts,
    domain=texts,
    provider=texts,
    variant=st.integers(0, 127),
    given_name=st.none() | texts,
    family_name=st.none() | texts,
    locale=st.none() | texts,
    timezone=st.none() | texts,
    attributes=st.fixed_dictionaries(
        {},
        optional={
            "tier": texts,
            "points": st.floats(allow_nan=False),
            "vip": st.booleans(),
            "since": st.dates().map(str),
            "grade": texts,
            "interests": st.lists(texts, max_size=3),
        },
    ),
)


def table_of(rows: list[Recipient], attributes: dict[str, AttributeType] = ATTRIBUTES) -> pa.Table:
    schema = shard_schema(attributes)

    def value(row: Recipient, name: str) -> Any:
        key = name.removeprefix("attribute.")
        return row.attributes.get(key) if key != name else getattr(row, name)

    return pa.table([pa.array([value(r, f.name) for r in rows], f.type) for f in schema], schema=schema)


def recipient(number: int) -> Recipient:
    return Recipient(number, bytes(16), bytes(16), f"p{number}@example.org", "example.org", "other")


@given(st.lists(recipients, max_size=5), st.integers(0, 6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Recipient], start: int) -> None:
    path = tmp_path_factory.mktemp("shard") / "part-0.parquet"
    write_shard(path, table_of(rows))
    assert list(read_shard(path, start)) == list(enumerate(rows))[start:]


@pytest.mark.parametrize("start", [0, 1, 1023, 1024, 1025, 2499, 2500, 9999])
def test_reading_begins_at_any_row(tmp_path: Path, start: int) -> None:
    path = tmp_path / "part-0.parquet"
    write_shard(path, table_of([recipient(n) for n in range(2500)], {}))
    assert [(row, r.contact_id) for row, r in read_shard(path, start)] == [(n, n) for n in range(start, 2500)]


def test_the_checksum_is_the_files(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "part-0.parquet"
    checksum = write_shard(path, table_of([recipient(1)]))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum


def test_attribute_columns_are_typed_and_sorted() -> None:
    fields = {f.name: str(f.type) for f in list(shard_schema(ATTRIBUTES))[11:]}
    assert fields == {
        "attribute.grade": "string",
        "attribute.interests": "list<item: string>",
        "attribute.points": "double",
        "attribute.since": "string",
        "attribute.tier": "string",
        "attribute.vip": "bool",
    }
    assert list(fields) == sorted(fields)


GOOD = table_of([recipient(1)])


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (GOOD.drop_columns(["message_key"]), 'column 2 must be "message_key", not "address_hash"'),
        (GOOD.select(["contact_id"]), 'column 2 must be "message_key", not nothing'),
        (GOOD.set_column(0, "contact_id", pa.array(["1"])), 'column "contact_id" must be int64, not string'),
        (GOOD.append_column("phone", pa.array(["1"])), 'column "phone" is neither'),
        (GOOD.append_column("attribute.x", pa.array([1], pa.int32())), 'column "attribute.x" can\'t be int32'),
    ],
)
def test_what_is_no_shard_is_named(tmp_path: Path, table: pa.Table, says: str) -> None:
    path = tmp_path / "part-0.parquet"
    with pytest.raises(ShardError, match="part-0") as caught:
        write_shard(path, table)
    assert says in str(caught.value)
    pq.write_table(table, path)
    for use in (shard_table, lambda p: list(read_shard(p))):
        with pytest.raises(ShardError, match="part-0") as caught:
            use(path)
        assert says in str(caught.value)


def test_a_file_that_is_missing_torn_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    with pytest.raises(ShardError, match="no such shard file"):
        shard_table(path)
    write_shard(path, table_of([recipient(n) for n in range(100)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ShardError, match="can't be read"):
        list(read_shard(path))
