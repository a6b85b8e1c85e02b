"""Engines and transactions, the same on both databases.

``read`` and ``write`` are the only ways to a connection. On SQLite a write transaction begins with ``BEGIN IMMEDIATE``:
a reader that upgrades its lock fails at once despite ``busy_timeout``, and several Airflow processes write at once. On
MySQL both run READ COMMITTED, because a slot that polls must see what others committed.
"""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

BUSY_TIMEOUT_MS = 30_000


def open_engine(url: str, *, local_infile: bool = False) -> Engine:
    """An engine for the central database; SQLite files are made, with their folder, on first use.

    ``local_infile`` lets the server ask for files: for imports only (``bulk_load.loading``).
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        parsed,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"charset": "utf8mb4"} | ({"local_infile": 1} if local_infile else {}),
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # a grant must be on disk before it is handed over
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA recursive_triggers=ON")  # REPLACE INTO must not slip past the triggers of consent_events
    cursor.close()
    connection.create_function("mailfleet_sample_point", 2, _sample_point, deterministic=True)


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Two connections that turn a new file into WAL at once block each other, and SQLite then fails at once instead of
    waiting: the lock would have to be upgraded (https://www.sqlite.org/rescode.html#busy). The loser finds WAL on."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _sample_point(seed: str, address_hash: bytes) -> str:
    """``SHA2(CONCAT(seed, address_hash), 256)`` of MySQL, which SQLite lacks (audience.expressions.sample_point)."""
    return hashlib.sha256(seed.encode() + address_hash).hexdigest()


def _begin_sqlite(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("mailfleet_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A transaction for reading."""
    with engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A transaction for reading a lot: all its queries see the same moment, and rows are streamed."""
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect() as opened:
        connection = opened.execution_options(yield_per=2000, **level)
        with connection.begin():
            yield connection


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A short transaction for writing: committed at the end, rolled back by an exception."""
    with (
        _turn(engine),
        engine.connect().execution_options(mailfleet_write=True) as connection,
        connection.begin(),
    ):
        yield connection


_turns: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_turns.clear)  # a thread that isn't in the child may hold one


def _turn(engine: Engine) -> AbstractContextManager[object]:
    """The threads of a process write to an SQLite file one after the other. SQLite itself lets them sleep and try
    again: of fifty slots in one triggerer, some waited for longer than ``BUSY_TIMEOUT_MS`` and failed."""
    if engine.dialect.name != "sqlite" or engine.url.database in (None, ":memory:"):
        return nullcontext()
    return _turns.setdefault(str(engine.url.database), threading.Lock())


def now() -> datetime:
    """This moment, in UTC, as every table wants it."""
    return datetime.now(UTC)
