"""Fast paths that differ by dialect, and nothing else: many rows at a time, straight to the driver.

Rows are tuples in the order that each function names. Times are text as the database stores them (``moment_text``), so
that no layer converts a value twice.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

_DEADLOCK, _LOCK_WAIT = 1213, 1205  # InnoDB: this transaction was rolled back; begin again


def moment_text(moment: datetime | None) -> str | None:
    """A time as both databases store it in a ``UtcDateTime`` column: UTC, to the microsecond, without zone."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def is_deadlock(error: BaseException) -> bool:
    """Whether InnoDB chose this transaction to yield to another: running it again is the cure."""
    original = getattr(error, "orig", None)
    code = original.args[0] if original is not None and original.args else None
    return isinstance(error, OperationalError) and code in (_DEADLOCK, _LOCK_WAIT)


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _upsert(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    key: str,
    changes: Sequence[tuple[str, str]],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Insert, or on a conflict in ``key`` set ``changes``: (column, expression) with ``{new}``/``{old}`` for a column.

    MySQL evaluates the changes from left to right and sees what the ones before have set; SQLite sees the old row.
    Put a column after every other whose expression reads it.
    """
    if not rows:
        return
    sqlite = _is_sqlite(connection)
    marks = ", ".join(["?" if sqlite else "%s"] * len(columns))

    def expression(column: str, text: str) -> str:
        if sqlite:
            return text.replace("{new}", "excluded").replace("{old}", table)
        # VALUES() is what MySQL 8 and MariaDB both have; MySQL's row alias is unknown to MariaDB
        out = text.replace("{old}", table)
        for name in columns:
            out = out.replace(f"{{new}}.{name}", f"VALUES({name})")
        return out

    sets = ", ".join(f"{column} = {expression(column, text)}" for column, text in changes)
    head = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
    tail = f" ON CONFLICT ({key}) DO UPDATE SET {sets}" if sqlite else f" ON DUPLICATE KEY UPDATE {sets}"
    connection.exec_driver_sql(head + tail, list(rows))


CONTACT_COLUMNS = (
    "address_given", "address", "address_hash", "domain", "provider", "given_name", "family_name", "locale", "timezone",
    "attributes", "state", "created_at", "updated_at",
)  # fmt: skip


def upsert_contacts(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``CONTACT_COLUMNS``; a contact with that address gets everything but state and creation time."""
    kept = {"address", "address_hash", "domain", "state", "created_at"}
    changes = [(column, f"{{new}}.{column}") for column in CONTACT_COLUMNS if column not in kept]
    _upsert(connection, "contacts", CONTACT_COLUMNS, "address", changes, rows)


SUBSCRIPTION_COLUMNS = (
    "contact_id", "list_id", "state", "source", "confirmed_at", "unsubscribed_at", "updated_at",
)  # fmt: skip

# Between this import's look and its write the person may have left: a refusal that isn't older than the consent stays.
# (On SQLite the transaction is exclusive; on InnoDB this is what closes the gap.)
_LEFT_MEANWHILE = (
    "{old}.state = 'unsubscribed' AND {new}.state <> 'unsubscribed' AND {old}.unsubscribed_at IS NOT NULL "
    "AND ({new}.confirmed_at IS NULL OR {old}.unsubscribed_at >= {new}.confirmed_at)"
)


def upsert_subscriptions(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``SUBSCRIPTION_COLUMNS``. The source of an existing subscription stays; times only move forward."""
    later = "CASE WHEN {new}.@ IS NULL OR {old}.@ >= {new}.@ THEN {old}.@ ELSE {new}.@ END"
    changes = [
        ("updated_at", "{new}.updated_at"),
        ("state", f"CASE WHEN {_LEFT_MEANWHILE} THEN {{old}}.state ELSE {{new}}.state END"),
        ("confirmed_at", later.replace("@", "confirmed_at")),
        ("unsubscribed_at", later.replace("@", "unsubscribed_at")),
    ]
    _upsert(connection, "subscriptions", SUBSCRIPTION_COLUMNS, "contact_id, list_id", changes, rows)


CONSENT_COLUMNS = (
    "address_hash", "list_id", "action", "occurred_at", "recorded_at", "method", "source", "wording", "ip",
)  # fmt: skip


def insert_consent_events(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Rows of ``CONSENT_COLUMNS``, appended."""
    if not rows:
        return
    marks = ", ".join(["?" if _is_sqlite(connection) else "%s"] * len(CONSENT_COLUMNS))
    connection.exec_driver_sql(
        f"INSERT INTO consent_events ({', '.join(CONSENT_COLUMNS)}) VALUES ({marks})", list(rows)
    )
