"""Contact ids into a temporary table, many at once: what criteria are joined with that the database doesn't hold.

The table belongs to the connection and to nobody else; making it writes nothing that others see, ends no transaction,
and needs no write lock on SQLite. On MariaDB the account needs the privilege CREATE TEMPORARY TABLES.
"""

import re
from collections.abc import Sequence

from sqlalchemy import Connection

STAGE_ROWS = 50_000  # of one statement: 0.4 MB of text
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def create(connection: Connection, name: str) -> None:
    """An empty table of one column, ``contact_id``, its primary key; one that was left behind is replaced."""
    drop(connection, name)
    if connection.dialect.name == "sqlite":
        columns, engine = "contact_id INTEGER PRIMARY KEY", ""
    else:
        columns, engine = "contact_id BIGINT NOT NULL PRIMARY KEY", " ENGINE=InnoDB"
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {_checked(name)} ({columns}){engine}")


def fill(connection: Connection, name: str, ids: Sequence[int]) -> None:
    """Add ids that aren't in it, ascending."""
    sqlite = connection.dialect.name == "sqlite"
    items = "json_each(?)" if sqlite else "JSON_TABLE(%s, '$[*]' COLUMNS (value BIGINT PATH '$')) AS listed"
    statement = f"INSERT INTO {_checked(name)} SELECT value FROM {items}"  # noqa: S608  the name is checked
    for first in range(0, len(ids), STAGE_ROWS):
        listed = ",".join(map(str, ids[first : first + STAGE_ROWS]))
        connection.exec_driver_sql(statement, (f"[{listed}]",))


def drop(connection: Connection, name: str) -> None:
    kind = "" if connection.dialect.name == "sqlite" else "TEMPORARY "
    connection.exec_driver_sql(f"DROP {kind}TABLE IF EXISTS {_checked(name)}")


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} can't name a temporary table")
    return name
