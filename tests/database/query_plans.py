"""What a database says about how it finds the rows of a statement, in the same words for both."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event

_BATCH = "mailfleet_people"  # bulk_lookup.py
_VERBS = ("SELECT", "UPDATE", "DELETE", "WITH")


@dataclass(frozen=True)
class Access:
    """One table (or its alias) of one statement. ``index`` None: every row is read."""

    table: str
    index: str | None


@dataclass(frozen=True)
class Statement:
    text: str
    parameters: Any


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """The statements that find rows, on every engine: an import on MariaDB has one of its own."""
    found: list[Statement] = []

    def note(_c: Any, _cursor: Any, text: str, parameters: Any, _context: Any, executemany: bool) -> None:
        if text.lstrip().upper().startswith(_VERBS):
            found.append(Statement(text, parameters[0] if executemany else parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def accesses(connection: Connection, statement: Statement) -> list[Access]:
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.text}", statement.parameters).all()
        return [access for row in rows if (access := _sqlite(str(row[3]).split())) is not None]
    if _BATCH in statement.text:  # what an import asks about lay in there, and an empty table has no plan
        columns = "(address_hash BINARY(16) NOT NULL) ENGINE=MEMORY"
        connection.exec_driver_sql(f"CREATE OR REPLACE TEMPORARY TABLE {_BATCH} {columns}")
        connection.exec_driver_sql(f"INSERT INTO {_BATCH} SELECT address_hash FROM contacts LIMIT 50")
    found = connection.exec_driver_sql(f"EXPLAIN {statement.text}", statement.parameters).mappings()
    return [Access(row["table"], _mariadb(row["type"], row["key"])) for row in found if row["table"] and row["type"]]


def _sqlite(words: Sequence[str]) -> Access | None:
    """``SEARCH contacts USING INDEX name (…)``, ``SEARCH x USING INTEGER PRIMARY KEY (…)``, ``SCAN contacts …``."""
    if not words or words[0] not in {"SEARCH", "SCAN"}:
        return None
    if words[0] == "SCAN":
        return Access(words[1], None)
    if "PRIMARY" in words:
        return Access(words[1], "PRIMARY")
    return Access(words[1], words[words.index("INDEX") + 1] if "INDEX" in words else "")


def _mariadb(kind: str, key: str | None) -> str | None:
    return None if kind in {"ALL", "index"} else key or ""
