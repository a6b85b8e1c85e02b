"""Fast paths that differ by dialect, and nothing else: many rows at a time, straight to the driver.

Rows are tuples in the order that each function names. Times are text as the database stores them (``moment_text``), so
that no layer converts a value twice.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection


def moment_text(moment: datetime | None) -> str | None:
    """A time as both databases store it in a ``UtcDateTime`` column: UTC, to the microsecond, without zone."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


_SIDE = re.compile(r"\b(new|old)\.(\w+)")


@dataclass(frozen=True)
class _Upsert:
    """Insert rows of ``columns``, or on a conflict in ``key`` set ``changes``.

    A change is (column, expression), where ``new.x`` and ``old.x`` are the two values of a column.

    MySQL evaluates the changes from left to right and sees what the ones before have set; SQLite sees the old row. Put
    a column after every other whose expression reads it.
    """

    table: str
    columns: tuple[str, ...]
    key: str
    changes: tuple[tuple[str, str], ...]

    def run(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            sql = self._sqlite() if connection.dialect.name == "sqlite" else self._mysql()
            connection.exec_driver_sql(sql, list(rows))

    def _sqlite(self) -> str:
        head = f"{_insert(self.table, self.columns, '?')} ON CONFLICT ({self.key}) DO UPDATE SET "
        return head + self._sets("excluded.{}")

    def _mysql(self) -> str:
        # VALUES() is what MySQL 8 and MariaDB both have; MySQL's row alias is unknown to MariaDB
        return f"{_insert(self.table, self.columns, '%s')} ON DUPLICATE KEY UPDATE {self._sets('VALUES({})')}"

    def _sets(self, new: str) -> str:
        def side(match: re.Match[str]) -> str:
            return new.format(match[2]) if match[1] == "new" else f"{self.table}.{match[2]}"

        return ", ".join(f"{column} = {_SIDE.sub(side, text)}" for column, text in self.changes)


def _insert(table: str, columns: Sequence[str], mark: str) -> str:
    """Table and columns are constants of this module; values are bound."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608


CONTACT_COLUMNS = (
    "address_given", "address", "address_hash", "domain", "provider", "given_name", "family_name", "locale", "timezone",
    "attributes", "state", "created_at", "updated_at",
)  # fmt: skip
_ON_NEW_ONLY = frozenset({"address", "address_hash", "domain", "state", "created_at"})
_CONTACTS = _Upsert(
    "contacts",
    CONTACT_COLUMNS,
    "address_hash",
    tuple((c, f"new.{c}") for c in CONTACT_COLUMNS if c not in _ON_NEW_ONLY),
)

SUBSCRIPTION_COLUMNS = (
    "contact_id", "list_id", "state", "source", "confirmed_at", "unsubscribed_at", "updated_at",
)  # fmt: skip
# Between this import's look and its write the person may have left: a refusal that isn't older than the consent stays.
# (On SQLite the transaction is exclusive; on InnoDB this is what closes the gap.)
_LEFT_MEANWHILE = (
    "old.state = 'unsubscribed' AND new.state <> 'unsubscribed' AND old.unsubscribed_at IS NOT NULL "
    "AND (new.confirmed_at IS NULL OR old.unsubscribed_at >= new.confirmed_at)"
)
_LATER = "CASE WHEN new.{0} IS NULL OR old.{0} >= new.{0} THEN old.{0} ELSE new.{0} END"
_SUBSCRIPTIONS = _Upsert(
    "subscriptions",
    SUBSCRIPTION_COLUMNS,
    "contact_id, list_id",
    (
        ("updated_at", "new.updated_at"),
        ("state", f"CASE WHEN {_LEFT_MEANWHILE} THEN old.state ELSE new.state END"),
        ("confirmed_at", _LATER.format("confirmed_at")),
        ("unsubscribed_at", _LATER.format("unsubscribed_at")),
    ),
)

CONSENT_COLUMNS = (
    "address_hash", "list_id", "action", "occurred_at", "recorded_at", "method", "source", "wording", "ip",
)  # fmt: skip


def upsert_contacts(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``CONTACT_COLUMNS``; a contact with that address gets everything but state and creation time."""
    _CONTACTS.run(connection, rows)


def upsert_subscriptions(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``SUBSCRIPTION_COLUMNS``. The source of an existing subscription stays; times only move forward."""
    _SUBSCRIPTIONS.run(connection, rows)


def insert_consent_events(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``CONSENT_COLUMNS``, appended."""
    if rows:
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(_insert("consent_events", CONSENT_COLUMNS, mark), list(rows))
