"""Every row of the central database as lines of JSON, and back: into either database, whichever it came from.

A logical dump, because it is consistent without a server's help (one read transaction sees one moment), restores into
SQLite and MySQL alike, and needs no program of the same version (docs/decisions/0102-one-backup-format.md). One gzipped
file a table: the first line names the columns, each further line is a row. Bytes are hex, times ISO 8601 in UTC.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, DateTime, Engine, LargeBinary, MetaData, Table, insert, select
from sqlalchemy.types import TypeEngine, _Binary

from mailer_lib.database import migrate
from mailer_lib.database.engine import snapshot, write
from mailer_lib.database.schema import UtcDateTime, metadata

_BATCH = 2000
_SUFFIX = ".jsonl.gz"


class DumpError(ValueError):
    """A dump can't be made or read; the sentence says what to do."""


def dump(engine: Engine, folder: Path, on_rows: Callable[[int], None]) -> dict[str, int]:
    """Write every table below ``folder``; returns the rows of each. ``on_rows`` hears how many were written so far.

    Raises:
        MigrationError: the tables aren't those of this release.
    """
    migrate.require_current(engine)
    rows: dict[str, int] = {}
    with snapshot(engine) as connection:
        for table in metadata.sorted_tables:
            rows[table.name] = 0
            columns = list(table.columns)
            encoders = [_encoder(column.type) for column in columns]
            with gzip.open(folder / f"{table.name}{_SUFFIX}", "wt", compresslevel=3, encoding="utf-8") as file:
                file.write(json.dumps([column.name for column in columns]) + "\n")
                for partition in connection.execute(select(table)).partitions(_BATCH):
                    for row in partition:
                        values = [
                            None if value is None else encode(value)
                            for encode, value in zip(encoders, row, strict=True)
                        ]
                        file.write(json.dumps(values, ensure_ascii=False) + "\n")
                    rows[table.name] += len(partition)
                    on_rows(sum(rows.values()))
    return rows


def load(
    engine: Engine,
    folder: Path,
    revision: str,
    on_rows: Callable[[int], None],
    finish: Callable[[Connection], None] = lambda connection: None,
) -> dict[str, int]:
    """Read what ``dump`` wrote at ``revision`` into an empty database, then bring it to this release's tables.

    ``finish`` runs in the transaction of the rows, at ``revision``. Returns the rows of each table.

    Raises:
        DumpError: a file is damaged.
        MigrationError: the dump is newer than this release.
    """
    migrate.upgrade(engine, revision)
    rows: dict[str, int] = {}
    with write(engine) as connection:
        for table in _tables(connection):
            path = folder / f"{table.name}{_SUFFIX}"
            if not path.exists():
                continue
            rows[table.name] = 0
            for batch in _batches(path, table):
                connection.execute(insert(table), batch)
                rows[table.name] += len(batch)
                on_rows(sum(rows.values()))
        finish(connection)
    migrate.upgrade(engine)
    return rows


def _tables(connection: Connection) -> list[Table]:
    """The tables as they stand at the dump's revision; our column types where this release still has the column."""
    found = MetaData()
    found.reflect(connection)
    for table in found.tables.values():
        ours = metadata.tables.get(table.name)
        for column in table.columns:
            if ours is not None and column.name in ours.columns:
                column.type = ours.columns[column.name].type
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def _batches(path: Path, table: Table) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            names: list[str] = json.loads(file.readline())
            decoders = [_decoder(table.columns[name].type) for name in names]
            number = 1
            for line in file:
                number += 1
                values = json.loads(line)
                batch.append(
                    {
                        name: None if value is None else decode(value)
                        for name, decode, value in zip(names, decoders, values, strict=True)
                    }
                )
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise DumpError(
            f"{path.name}, line {number or 1}: damaged ({type(error).__name__}); use another backup"
        ) from None
    if batch:
        yield batch


def _encoder(kind: TypeEngine[Any]) -> Callable[[Any], Any]:
    if isinstance(kind, LargeBinary | _Binary):
        return bytes.hex
    if isinstance(kind, UtcDateTime | DateTime):
        return lambda moment: moment.astimezone(UTC).isoformat()
    return lambda value: value


def _decoder(kind: TypeEngine[Any]) -> Callable[[Any], Any]:
    if isinstance(kind, LargeBinary | _Binary):
        return bytes.fromhex
    if isinstance(kind, UtcDateTime):
        return datetime.fromisoformat
    if isinstance(kind, DateTime):  # a column that this release no longer has
        return lambda text: datetime.fromisoformat(text).replace(tzinfo=None)
    return lambda value: value
