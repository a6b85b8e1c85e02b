"""Parquet: its columns are the columns; a record's "line" is the number of its row, from 1."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mailer_lib.contacts.json_lines import cell_text
from mailer_lib.contacts.records import BadRecord, Rows, SourceError

_BATCH_ROWS = 2000
_NO_TEXT = "\0"  # stands for a value that has no form of a cell


class ParquetSource:
    """An open file: ``header``, then ``blocks``. Rejects of it are written as CSV."""

    encoding = "utf-8-sig"
    delimiter = ","

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.size = path.stat().st_size
        self._path = path
        try:
            self._parquet = pq.ParquetFile(file, memory_map=False, pre_buffer=False)
        except pa.ArrowException as error:
            raise SourceError(f"{path} is not a Parquet file, or was not copied to its end ({error})") from None
        self.header = [str(name) for name in self._parquet.schema_arrow.names]
        self._rows = 0

    @property
    def bytes_read(self) -> int:
        total = self._parquet.metadata.num_rows
        return self.size * self._rows // total if total else self.size

    def blocks(self) -> Iterator[Rows | BadRecord]:
        """All rows; those without any content are left out.

        Raises:
            SourceError: a part of the file is damaged.
        """
        try:
            for batch in self._parquet.iter_batches(batch_size=_BATCH_ROWS):
                columns = [_texts(column) for column in batch.columns]
                first = self._rows + 1
                self._rows += batch.num_rows
                rows = [list(row) for row in zip(*columns, strict=True)]
                if all(map(any, rows)) and not any(_NO_TEXT in column for column in columns):
                    yield Rows(first, rows)
                else:
                    yield from (self._one(first + n, row) for n, row in enumerate(rows) if any(row))
        except pa.ArrowException as error:
            raise SourceError(f"{self._path} is damaged ({error})") from None

    def _one(self, line: int, row: list[str]) -> Rows | BadRecord:
        if _NO_TEXT not in row:
            return Rows(line, [row])
        column = self.header[row.index(_NO_TEXT)]
        reason = f"{column!r} holds bytes, a structure, a list in a list, or a text with the separator of lists"
        return BadRecord(line, reason, "", [cell.replace(_NO_TEXT, "") for cell in row])


def _texts(column: Any) -> list[str]:
    values = column.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [value or "" for value in values]
    text: Callable[[Any], str | None] = _number if pa.types.is_floating(column.type) else _text
    found = [text(value) for value in values]
    return [_NO_TEXT if value is None else value for value in found]


def _number(value: float | None) -> str:
    """12.0 is written as 12: a column of whole numbers with gaps is stored as floating point by many tools."""
    if value is None or math.isnan(value):
        return ""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{Decimal(repr(value)):f}"


def _text(value: Any) -> str | None:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return None
    if value is None or isinstance(value, str | bool | list):
        return cell_text(value)
    return None if isinstance(value, dict | tuple) else str(value)


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetSource]:
    """Open a Parquet file.

    Raises:
        SourceError: it is no such file, or damaged.
        OSError: it can't be opened.
    """
    with path.open("rb") as file:
        yield ParquetSource(path, file)
