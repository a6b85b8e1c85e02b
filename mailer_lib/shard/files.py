"""Shard files: one Parquet file of frozen recipients, written by the snapshot, read by agents and reports.

pyarrow only, so that an agent can read them. A row's place in the file is its identity in leases and ledgers.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX, SHARD_COLUMNS, Recipient
from mailer_lib.shard.store import S3Path, StorePath, arrow_source
from mailer_lib.terms import AttributeType

_Read = TypeVar("_Read")
_READ_ROWS = 1024
_ARROW_TYPES: Mapping[str, pa.DataType] = {
    "int64": pa.int64(),
    "int8": pa.int8(),
    "string": pa.string(),
    "fixed_size_binary[16]": pa.binary(16),
}
_ATTRIBUTE_TYPES: Mapping[AttributeType, pa.DataType] = {
    AttributeType.TEXT: pa.string(),
    AttributeType.NUMBER: pa.float64(),
    AttributeType.BOOLEAN: pa.bool_(),
    AttributeType.DATE: pa.string(),
    AttributeType.ENUM: pa.string(),
    AttributeType.TEXT_LIST: pa.list_(pa.string()),
}
_REQUIRED = frozenset({"contact_id", "message_key", "address_hash", "address", "domain", "provider", "variant"})
_BASE = len(SHARD_COLUMNS)
_UNIQUE = frozenset({"contact_id", "message_key", "address_hash", "address"})


class ShardError(ValueError):
    """A shard file can't be used; the sentence names the file and the column."""


def shard_schema(attributes: Mapping[str, AttributeType] | None = None) -> pa.Schema:
    """The columns of a shard whose template uses ``attributes`` (type by key); sorted by key."""
    fields = [pa.field(name, _ARROW_TYPES[type_], nullable=name not in _REQUIRED) for name, type_ in SHARD_COLUMNS]
    for key, type_ in sorted((attributes or {}).items()):
        fields.append(pa.field(f"{ATTRIBUTE_PREFIX}{key}", _ATTRIBUTE_TYPES[type_]))
    return pa.schema(fields)


def write_shard(path: StorePath, table: pa.Table) -> str:
    """Write one file (zstd), durable. Returns its SHA-256, hex.

    Raises:
        ShardError: the table isn't a shard's.
    """
    check_schema(table.schema, path)
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return write_parquet(path, table)


def write_parquet(path: StorePath, table: pa.Table) -> str:
    """Any table as one zstd Parquet file, durable. Returns its SHA-256, hex."""
    sink = pa.BufferOutputStream()
    names = table.schema.names
    # Dictionaries and statistics of columns that hold every value once cost a third of the time, and 12 % of the size.
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[name for name in names if name not in _UNIQUE],  # type: ignore[arg-type]
        write_statistics=[name for name in names if name == "contact_id"],
    )
    return write_durably(path, sink.getvalue())


def write_durably(path: StorePath, data: pa.Buffer) -> str:
    """A file under a name that nobody reads yet. Returns its SHA-256, hex."""
    if isinstance(path, S3Path):
        path.write_bytes(data)
    else:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def shard_table(path: StorePath) -> pa.Table:
    """The whole file.

    Raises:
        ShardError: it can't be read, or isn't a shard.
    """
    with _open(path) as file:
        return _checked(path, file.read)


def read_shard(path: StorePath, start: int = 0) -> Iterator[tuple[int, Recipient]]:
    """(row, recipient) from row ``start`` on, in the file's order.

    Raises:
        ShardError: it can't be read, or isn't a shard.
    """
    with _open(path) as file:
        keys = [name.removeprefix(ATTRIBUTE_PREFIX) for name in file.schema_arrow.names[_BASE:]]
        batches = file.iter_batches(batch_size=_READ_ROWS)
        first = 0
        while (batch := _checked(path, lambda: next(batches, None))) is not None:
            skip = min(max(start - first, 0), batch.num_rows)
            yield from _recipients(batch.slice(skip), keys, first + skip)
            first += batch.num_rows


def recipients(table: pa.Table, start: int, count: int) -> list[Recipient]:
    """Rows [start, start + count) of what ``shard_table`` returned, as far as there are any."""
    keys = [name.removeprefix(ATTRIBUTE_PREFIX) for name in table.schema.names[_BASE:]]
    batches = table.slice(start, count).to_batches()
    return [recipient for batch in batches for _, recipient in _recipients(batch, keys, 0)]


def check_schema(schema: pa.Schema, path: StorePath) -> None:
    """Raises:
    ShardError: a column is missing, in another place, of another type, or none of ours.
    """
    for place, expected in enumerate(shard_schema()):
        found = schema.field(place) if place < len(schema) else None
        if found is None or found.name != expected.name:
            name = "nothing" if found is None else f'"{found.name}"'
            raise ShardError(f'{path}: column {place + 1} must be "{expected.name}", not {name}')
        if found.type != expected.type:
            raise ShardError(f'{path}: column "{found.name}" must be {expected.type}, not {found.type}')
    for found in list(schema)[_BASE:]:
        if not found.name.startswith(ATTRIBUTE_PREFIX):
            raise ShardError(f'{path}: column "{found.name}" is neither a shard\'s nor an attribute')
        if found.type not in _ATTRIBUTE_TYPES.values():
            raise ShardError(f'{path}: column "{found.name}" can\'t be {found.type}')


def _recipients(batch: pa.RecordBatch, keys: list[str], first: int) -> Iterator[tuple[int, Recipient]]:
    columns = [column.to_pylist() for column in batch.columns]
    base = zip(*columns[:_BASE], strict=True)
    if not keys:
        for row, values in enumerate(base, first):
            yield row, Recipient(*values)
        return
    for row, (values, extra) in enumerate(zip(base, zip(*columns[_BASE:], strict=True), strict=True), first):
        yield row, Recipient(*(*values, {k: v for k, v in zip(keys, extra, strict=True) if v is not None}))


def _open(path: StorePath) -> pq.ParquetFile:
    file = _checked(path, lambda: pq.ParquetFile(arrow_source(path)))
    try:
        check_schema(file.schema_arrow, path)
    except ShardError:
        file.close()
        raise
    return file


def _checked(path: StorePath, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such shard file") from None
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: can't be read as Parquet: {error}") from None
