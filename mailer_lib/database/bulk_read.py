"""Many rows out of the database as Arrow columns, without a Python object for any of them.

The database packs a few thousand rows into one value: field, 0xFE, field, 0xFE … NULL is 0xFF. UTF-8 knows neither
byte, so nothing is escaped and nothing can be mistaken, whatever people are called. numpy finds the marks, Arrow casts
the columns. For a row of 13 columns that is 0.2 µs of the driver's time where a tuple of fields costs 1.9
(docs/decisions/0306).
"""

import binascii
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    LargeBinary,
    Select,
    bindparam,
    column,
    func,
    select,
    table,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from mailer_lib.database import bulk_stage

MARK, NULL = 0xFE, 0xFF
FIRST_IDS = 16_384
MAX_IDS = 65_536
BLOCK_BYTES = 2 << 20  # aimed at; chosen, not tuned
ROWS_OF_IDS = 20_000  # of a few short columns: a MB
MAX_BLOCK_BYTES = 16 << 20  # MariaDB's max_allowed_packet, unless somebody changed it


_IDS = "mailfleet_read_ids"
_FIRST, _LAST = "block_first_id", "block_last_id"


class BlockError(RuntimeError):
    """Rows can't be packed; the sentence says which, and what to do."""


class _packed(FunctionElement[bytes]):  # noqa: N801  SQL functions are written in lower case
    """All rows of a group as one value; the arguments have no NULL."""

    inherit_cache = True
    name = "packed"
    type = LargeBinary()


class _bytes(FunctionElement[bytes]):  # noqa: N801
    """A text's bytes."""

    inherit_cache = True
    name = "bytes"
    type = LargeBinary()


class _digits(FunctionElement[bytes]):  # noqa: N801
    """A double, in as many digits as give the same double again."""

    inherit_cache = True
    name = "digits"
    type = LargeBinary()


class _or_null(FunctionElement[bytes]):  # noqa: N801
    inherit_cache = True
    name = "or_null"
    type = LargeBinary()


@compiles(_packed)
def _packed_mysql(element: _packed, compiler: SQLCompiler, **kw: Any) -> str:
    fields = ", 0xFE, ".join(compiler.process(clause, **kw) for clause in element.clauses)
    return f"GROUP_CONCAT(CONCAT({fields}) SEPARATOR 0xFE)"


@compiles(_packed, "sqlite")
def _packed_sqlite(element: _packed, compiler: SQLCompiler, **kw: Any) -> str:
    fields = " || x'FE' || ".join(f"({compiler.process(clause, **kw)})" for clause in element.clauses)
    return f"CAST(group_concat({fields}, x'FE') AS BLOB)"


@compiles(_bytes)
def _bytes_mysql(element: _bytes, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS BINARY)"  # else 0xFF would be converted to utf8mb4


@compiles(_bytes, "sqlite")
def _bytes_sqlite(element: _bytes, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(_digits)
def _digits_mysql(element: _digits, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(_digits, "sqlite")
def _digits_sqlite(element: _digits, compiler: SQLCompiler, **kw: Any) -> str:
    # 17 digits of SQLite 3.40 gave another double in 147 of 100,000 cases, 18 in none
    value = compiler.process(element.clauses, **kw)
    return f"CASE WHEN {value} IS NOT NULL THEN printf('%!.20g', {value}) END"


@compiles(_or_null)
def _or_null_mysql(element: _or_null, compiler: SQLCompiler, **kw: Any) -> str:
    return f"IFNULL({compiler.process(element.clauses, **kw)}, 0xFF)"


@compiles(_or_null, "sqlite")
def _or_null_sqlite(element: _or_null, compiler: SQLCompiler, **kw: Any) -> str:
    return f"ifnull({compiler.process(element.clauses, **kw)}, x'FF')"


class Block:
    """Some rows, still as fields of text: a column, or rows of all columns, are made when they are asked for."""

    def __init__(
        self, schema: pa.Schema, fields: "pa.Array[Any]", missing: NDArray[np.bool_], names: Sequence[str] | None = None
    ) -> None:
        """``names``: of the columns of ``schema`` that ``take`` makes; all without it."""
        self._schema, self._fields, self._missing = schema, fields, missing
        self._names = schema.names if names is None else names
        self.num_rows = len(fields) // len(schema)

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def column(self, name: str) -> "pa.Array[Any]":
        place = self._schema.get_field_index(name)
        return self._column(place, np.arange(place, len(self._fields), len(self._schema)))

    def select(self, names: Sequence[str]) -> "Block":
        """With these columns only."""
        return Block(self._schema, self._fields, self._missing, names)

    def take(self, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """These rows, in this order."""
        first = rows * len(self._schema)
        places = [self._schema.get_field_index(name) for name in self._names]
        columns = [self._column(place, first + place) for place in places]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema([self._schema.field(place) for place in places]))

    def _column(self, place: int, fields: NDArray[np.int64]) -> "pa.Array[Any]":
        return _column(self._fields.take(fields), self._schema.field(place), self._missing[fields])


def read_blocks(
    connection: Connection,
    statement: Select[Any],
    schema: pa.Schema,
    id_column: ColumnElement[int],
    *,
    first: int,
    last: int,
) -> Iterator[Block]:
    """Rows of ``statement`` with ``first <= id_column <= last``, a block at a time, in no order.

    Args:
        statement: selects the columns of ``schema``, in its order; no GROUP BY, ORDER BY or LIMIT.
        schema: int64, int32, double, bool (read from 0 and 1), string, and binary(16). A field that says so isn't NULL.
        id_column: an integer that an index leads to.

    Raises:
        BlockError: one row is larger than what the database hands out at once.
    """
    ends = (bindparam(_FIRST, type_=BigInteger), bindparam(_LAST, type_=BigInteger))
    statement = _packing(statement, schema).where(id_column.between(*ends))
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"SET SESSION group_concat_max_len = {MAX_BLOCK_BYTES}")
    ids = FIRST_IDS
    while first <= last:
        end = min(first + ids - 1, last)
        rows, block = connection.execute(statement, {_FIRST: first, _LAST: end}).one()
        table = _unpacked(block, rows, schema) if rows else None
        if rows and table is None:  # cut off by one of the database's limits
            if end == first:
                raise BlockError(
                    f"the row with {id_column} {first} is larger than {MAX_BLOCK_BYTES} bytes, or than the database's "
                    "max_allowed_packet"
                )
            ids = (end - first + 1) // 2
            continue
        size = len(block) if rows else 0
        first = end + 1
        if size > 2 * BLOCK_BYTES:
            ids = max(1, ids // 2)
        elif size < BLOCK_BYTES:
            ids = min(MAX_IDS, ids * 2)
        if table is not None:
            yield table


def read_those(
    connection: Connection, statement: Select[Any], schema: pa.Schema, id_column: ColumnElement[int], ids: Sequence[int]
) -> Iterator[Block]:
    """Likewise rows of these ids, which are all different; ids without a row are left out."""
    statement = _packing(statement, schema).where(id_column.in_(select(column("contact_id")).select_from(table(_IDS))))
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"SET SESSION group_concat_max_len = {MAX_BLOCK_BYTES}")
    for first in range(0, len(ids), ROWS_OF_IDS):
        bulk_stage.create(connection, _IDS)
        bulk_stage.fill(connection, _IDS, ids[first : first + ROWS_OF_IDS])
        rows, packed = connection.execute(statement).one()
        bulk_stage.drop(connection, _IDS)
        block = _unpacked(packed, rows, schema) if rows else None
        if rows and block is None:
            raise BlockError(f"{ROWS_OF_IDS} rows are larger than the database's max_allowed_packet; raise it to 16M")
        if block is not None:
            yield block


def _packing(statement: Select[Any], schema: pa.Schema) -> Select[Any]:
    fields = [_field(column, field) for column, field in zip(statement.selected_columns, schema, strict=True)]
    columns: list[Any] = [func.count(), _packed(*fields)]
    return statement.with_only_columns(*columns)


def _field(column: ColumnElement[Any], field: "pa.Field[Any]") -> ColumnElement[Any]:
    value: ColumnElement[Any] = column.element if hasattr(column, "element") and hasattr(column, "name") else column
    if pa.types.is_string(field.type):
        value = _bytes(value)
    elif pa.types.is_fixed_size_binary(field.type):
        value = func.hex(value)
    elif pa.types.is_floating(field.type):
        value = _digits(value)
    return _or_null(value) if field.nullable else value


def _unpacked(block: bytes | None, rows: int, schema: pa.Schema) -> Block | None:
    """``rows`` packed rows; None when the block was cut off."""
    packed = block or b""
    raw = np.frombuffer(packed, np.uint8)
    ends = np.append(np.flatnonzero(raw == MARK), len(raw))
    if len(ends) != rows * len(schema):
        return None
    lengths = np.diff(ends, prepend=-1) - 1
    missing = (lengths == 1) & (raw[np.maximum(ends - 1, 0)] == NULL)
    lengths[missing] = 0
    offsets = np.zeros(len(ends) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    text = pa.py_buffer(packed.translate(None, bytes((MARK, NULL))))
    return Block(
        schema, pa.Array.from_buffers(pa.string(), len(ends), [None, pa.py_buffer(offsets.data), text]), missing
    )


def _column(values: "pa.Array[Any]", field: "pa.Field[Any]", missing: NDArray[np.bool_]) -> "pa.Array[Any]":
    if missing.any():
        bitmap = pa.py_buffer(np.packbits(~missing, bitorder="little").data)
        _, offsets, data = values.buffers()
        values = pa.Array.from_buffers(pa.string(), len(values), [bitmap, offsets, data])
    if pa.types.is_fixed_size_binary(field.type):
        hexadecimal = values.buffers()[2]
        packed = binascii.unhexlify(memoryview(hexadecimal or b"")[: 2 * field.type.byte_width * len(values)])
        return pa.Array.from_buffers(field.type, len(values), [None, pa.py_buffer(packed)])
    if pa.types.is_boolean(field.type):
        return values.cast(pa.int8()).cast(pa.bool_())
    return values.cast(field.type)
