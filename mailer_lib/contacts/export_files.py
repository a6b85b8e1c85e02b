"""Writing a file of contacts: CSV, JSON Lines (both plain or gzip) or Parquet, by its name.

It holds personal data: mode 0600. It has its name only when it is whole.
"""

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, cast

from mailer_lib.contacts.formats import FileFormat, format_of

_ROW_GROUP = 50_000


class ExportError(ValueError):
    """The file can't be written; the sentence says why."""


def write_file(path: Path, header: list[str], rows: Iterable[list[str]]) -> int:
    """Write ``rows`` of texts below ``header``; returns how many.

    Raises:
        ExportError: there is a file of that name.
        OSError: it can't be written.
    """
    if path.exists():
        raise ExportError(f"{path} exists already; remove it, or choose another name")
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if format_of(path) is FileFormat.PARQUET:
                count = _write_parquet(file, header, rows)
            else:
                count = _write_text(file, path, header, rows)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _write_text(file: IO[bytes], path: Path, header: list[str], rows: Iterable[list[str]]) -> int:
    with ExitStack() as stack:
        target = file
        if path.suffix.lower() == ".gz":
            target = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", mtime=0)))
        text = io.TextIOWrapper(target, "utf-8", newline="")
        count = 0
        if format_of(path) is FileFormat.JSON_LINES:
            for row in rows:
                count += 1
                record = {name: value or None for name, value in zip(header, row, strict=True)}
                text.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(header)
            for row in rows:
                count += 1
                writer.writerow(row)
        text.flush()
        text.detach()
    return count


def _write_parquet(file: IO[bytes], header: list[str], rows: Iterable[list[str]]) -> int:
    """All columns are texts: what an import reads is what was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in header])
    count, iterator = 0, iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(islice(iterator, _ROW_GROUP)):
            count += len(group)
            columns = [[value or None for value in column] for column in zip(*group, strict=True)]
            writer.write_table(pa.Table.from_arrays([pa.array(c, pa.string()) for c in columns], schema=schema))
    return count
