"""Columns of ``contacts`` that the database computes from ``attributes``, with an index: made and dropped at run time.

They aren't in ``schema.py``: which there are is for an installation to say (``contacts.attributes.index``), and they
hold nothing of their own, so backups and comparisons leave them out (``is_generated``). They are VIRTUAL on both
databases: an ALTER TABLE that adds one rewrites nothing, only the index is built.

The expression is the one that criteria use without the column, so both mean the same, byte by byte.
"""

import re
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    column,
    inspect,
    literal_column,
)

from mailer_lib.database.json_values import json_boolean, json_number, json_path, json_text
from mailer_lib.database.schema import contacts
from mailer_lib.terms import AttributeType

PREFIX = "attr_"
INDEX_PREFIX = "ix_attr_"
MAX_KEY = 56  # a name has at most 64 characters on MariaDB
LOCK_WAIT_S = 10
_KEY = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_KEY - 1}}}")
_BYTEWISE = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
# Of a long text the first characters are enough; InnoDB's keys have 3,072 bytes, 4 to a character.
_KEY_CHARACTERS = 191

# By type: what reads the value, the column's type on SQLite and on MariaDB. A list of texts has no one value.
_COLUMNS: dict[AttributeType, tuple[Any, str, str]] = {
    AttributeType.TEXT: (json_text, "TEXT", f"VARCHAR(1000) {_BYTEWISE}"),
    AttributeType.ENUM: (json_text, "TEXT", f"VARCHAR(200) {_BYTEWISE}"),
    AttributeType.DATE: (json_text, "TEXT", f"VARCHAR(10) {_BYTEWISE}"),
    AttributeType.NUMBER: (json_number, "REAL", "DOUBLE"),
    AttributeType.BOOLEAN: (json_boolean, "INTEGER", "TINYINT"),
}


def can_be_indexed(key: str, type_: AttributeType) -> bool:
    return type_ in _COLUMNS and _KEY.fullmatch(key) is not None


def generated_column(key: str, type_: AttributeType) -> ColumnElement[Any]:
    """The column of an indexed attribute, in the place of what computes it."""
    reader, _, _ = _COLUMNS[type_]
    return literal_column(f"contacts.{_name(key)}", reader.type)


def existing(connection: Connection) -> frozenset[str]:
    """Keys of the attributes that have a column now."""
    names = (each["name"] for each in inspect(connection).get_columns(contacts.name))
    return frozenset(name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))


def add(connection: Connection, key: str, type_: AttributeType) -> None:
    """Make column and index, or what of them is missing.

    On MariaDB it commits by itself, lets others write meanwhile, and waits at most ``LOCK_WAIT_S`` for whoever reads
    contacts in a long transaction: behind a waiting ALTER TABLE everybody waits.
    """
    reader, sqlite_type, mysql_type = _COLUMNS[type_]
    sqlite = connection.dialect.name == "sqlite"
    _wait_shortly(connection)
    if key not in existing(connection):
        value = reader(column("attributes"), json_path(key)).compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        kind = sqlite_type if sqlite else mysql_type
        connection.exec_driver_sql(
            f"ALTER TABLE contacts ADD COLUMN {_name(key)} {kind} GENERATED ALWAYS AS ({value}) VIRTUAL"
        )
    indexes = {each["name"] for each in inspect(connection).get_indexes(contacts.name)}
    if f"{INDEX_PREFIX}{key}" not in indexes:
        part = f"({_KEY_CHARACTERS})" if not sqlite and type_ == AttributeType.TEXT else ""
        connection.exec_driver_sql(f"CREATE INDEX {INDEX_PREFIX}{key} ON contacts ({_name(key)}{part})")


def drop(connection: Connection, key: str) -> None:
    """Remove index and column, or what of them is there."""
    _wait_shortly(connection)
    on = "" if connection.dialect.name == "sqlite" else " ON contacts"
    indexes = {each["name"] for each in inspect(connection).get_indexes(contacts.name)}
    if f"{INDEX_PREFIX}{key}" in indexes:
        connection.exec_driver_sql(f"DROP INDEX {INDEX_PREFIX}{key}{on}")
    if key in existing(connection):
        connection.exec_driver_sql(f"ALTER TABLE contacts DROP COLUMN {_name(key)}")


def is_generated(table: str | None, name: str | None) -> bool:
    """A column or an index that this module made."""
    return table == contacts.name and name is not None and name.startswith((PREFIX, INDEX_PREFIX))


def _name(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise ValueError(f"{key!r} can't name a generated column")
    return f"{PREFIX}{key}"


def _wait_shortly(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {LOCK_WAIT_S}")
