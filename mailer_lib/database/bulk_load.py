"""Many new rows at a time, by columns: LOAD DATA LOCAL INFILE on MySQL and MariaDB, prepared tuples on SQLite.

LOAD DATA spares the client escaping each value (docs/decisions/0204). It reads from a
file in memory that has no name, so that no address lies on a disk. A server may refuse it (``local_infile``): then, and
where rows collide with those of another writer, the statements of ``bulk`` do the work.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from mailer_lib.database import bulk
from mailer_lib.database.engine import open_engine

# "not allowed" as MariaDB, MySQL and both client libraries number it
_REFUSED = frozenset({1148, 3948, 3950, 2068, 4166})
_NO_LOAD = "mailfleet_no_load_data"
_BINARY = frozenset({"address_hash"})
_NULL = "\0"  # stands for NULL until backslashes are doubled; no value can hold it


class BulkLoadError(RuntimeError):
    """The database took fewer rows than it was given."""


@contextmanager
def loading(engine: Engine) -> Iterator[Engine]:
    """An engine that may send files, for as long as an import runs.

    Others may not: a server that isn't what it seems could ask such a client for any file.
    """
    if engine.dialect.name == "sqlite":
        yield engine
        return
    own = open_engine(engine.url.render_as_string(hide_password=False), local_infile=True)
    try:
        yield own
    finally:
        own.dispose()


def load_refused(connection: Connection) -> bool:
    """Whether the server refused LOAD DATA LOCAL on this connection."""
    return bool(connection.info.get(_NO_LOAD))


def add_contacts(connection: Connection, columns: Mapping[str, Any]) -> range | None:
    """New contacts. ``columns``: for each of ``bulk.CONTACT_COLUMNS`` a list, or one value for all rows.

    Whom another writer has added meanwhile is updated, as ``bulk.upsert_contacts`` does. Returns the contacts' ids in
    the order of the rows, when the database gave consecutive ones; None: somebody has to look.
    """
    if load(connection, "contacts", columns):
        return _consecutive_ids(connection, columns["address_hash"])
    bulk.upsert_contacts(connection, _rows(bulk.CONTACT_COLUMNS, columns))
    return None


def _consecutive_ids(connection: Connection, hashes: Sequence[bytes]) -> range | None:
    """Ids of the rows just loaded. They grow with the rows; so if the last one is as far from the first as there are
    rows between, nobody else's came in between (``innodb_autoinc_lock_mode``, ``auto_increment_increment``).
    """
    ends = dict.fromkeys((hashes[0], hashes[-1]), 0)
    marks = ", ".join(["%s"] * len(ends))
    found = connection.exec_driver_sql(
        f"SELECT address_hash, id FROM contacts WHERE address_hash IN ({marks})",  # noqa: S608  only marks
        tuple(ends),
    )
    ends.update((key, contact_id) for key, contact_id in found)
    first, last = ends[hashes[0]], ends[hashes[-1]]
    return range(first, last + 1) if first and last - first == len(hashes) - 1 else None


def add_subscriptions(connection: Connection, columns: Mapping[str, Any]) -> None:
    """New subscriptions, likewise (``bulk.SUBSCRIPTION_COLUMNS``)."""
    if not load(connection, "subscriptions", columns):
        bulk.upsert_subscriptions(connection, _rows(bulk.SUBSCRIPTION_COLUMNS, columns))


def add_consent_events(connection: Connection, columns: Mapping[str, Any]) -> None:
    """Evidence, appended (``bulk.CONSENT_COLUMNS``).

    Raises:
        BulkLoadError: not all of it was taken; the transaction must be rolled back.
    """
    loaded = load(connection, "consent_events", columns)
    if loaded is None:
        bulk.insert_consent_events(connection, _rows(bulk.CONSENT_COLUMNS, columns))
    elif not loaded:
        raise BulkLoadError("the database didn't take all evidence of consent; nothing of this batch is stored")


def _rows(names: Sequence[str], columns: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return list(zip(*(c if isinstance(c := columns[name], list) else repeat(c) for name in names), strict=False))


def load(connection: Connection, table: str, columns: Mapping[str, Any]) -> bool | None:
    """Insert rows; whether all of them were inserted. None: nothing was tried, other statements must do it.

    ``columns``: for each column a list, or one value for all rows.
    """
    if connection.dialect.name == "sqlite" or load_refused(connection) or not hasattr(os, "memfd_create"):
        return None
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    count = len(next(iter(lists.values())))
    text = _as_text(lists, count)
    if text is None:
        return None
    constants = {name: value for name, value in columns.items() if name not in lists}
    names = ", ".join(f"@{name}" if name in _BINARY else name for name in lists)
    sets = [f"{name} = UNHEX(@{name})" for name in lists if name in _BINARY] + [f"{name} = %s" for name in constants]
    setting = f"SET {', '.join(sets)}" if sets else ""
    descriptor = os.memfd_create(f"mailfleet-{table}", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text)
        result = connection.exec_driver_sql(
            f"LOAD DATA LOCAL INFILE '/proc/self/fd/{descriptor}' INTO TABLE {table} CHARACTER SET utf8mb4 "
            rf"FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY '\n' ({names}) {setting}",
            tuple(constants.values()),
        )
    except DBAPIError as error:
        if error.orig is None or not error.orig.args or error.orig.args[0] not in _REFUSED:
            raise
        connection.info[_NO_LOAD] = True
        return None
    finally:
        os.close(descriptor)
    driver: Any = connection.connection.dbapi_connection
    return result.rowcount == count and driver.warning_count() == 0


def _as_text(lists: Mapping[str, list[Any]], count: int) -> bytes | None:
    """The rows as LOAD DATA reads them; None when a value holds a tab or a line break."""
    columns = [_texts(column, binary=name in _BINARY) for name, column in lists.items()]
    text = "\n".join(map("\t".join, zip(*columns, strict=True))) + "\n"
    if text.count("\t") != count * (len(columns) - 1) or text.count("\n") != count:
        return None
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    return text.replace(_NULL, "\\N").encode()


def _texts(column: list[Any], *, binary: bool) -> list[str]:
    if binary:
        return [value.hex() for value in column]
    if isinstance(column[0], int):
        return list(map(str, column))
    return [_NULL if value is None else value for value in column] if None in column else column
