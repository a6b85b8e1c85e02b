"""Transactions that a deadlock rolled back are run again."""

import threading

import pytest
from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import OperationalError

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.retry import ATTEMPTS, is_deadlock, write_again
from mailer_lib.database.schema import lists

DEADLOCK = OperationalError("x", None, Exception(1213, "Deadlock found"))


def test_deadlocks_are_told_from_other_troubles() -> None:
    assert is_deadlock(DEADLOCK)
    assert is_deadlock(OperationalError("x", None, Exception(1205, "Lock wait timeout")))
    assert not is_deadlock(OperationalError("x", None, Exception(2006, "gone away")))
    assert not is_deadlock(OperationalError("x", None, Exception("database is locked")))
    assert not is_deadlock(ValueError())


def test_it_gives_up_in_the_end(sqlite_engine: Engine) -> None:
    calls = []

    def work(connection: Connection) -> None:
        calls.append(1)
        raise DEADLOCK

    with pytest.raises(OperationalError):
        write_again(sqlite_engine, work)
    assert len(calls) == ATTEMPTS


def test_other_troubles_are_not_repeated(sqlite_engine: Engine) -> None:
    calls = []

    def work(connection: Connection) -> None:
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_again(sqlite_engine, work)
    assert len(calls) == 1


def test_two_writers_in_opposite_order_both_get_done(engine: Engine) -> None:
    """On InnoDB this deadlocks for certain: each holds its first row until the other has taken its own."""
    with write(engine) as connection:
        for name in ("a", "b"):
            connection.execute(insert(lists).values(name=name, title="", created_at=now()))
    meet = threading.Barrier(2, timeout=5)
    failures: list[BaseException] = []

    def writer(*names: str) -> None:
        def work(connection: Connection) -> None:
            for number, name in enumerate(names):
                connection.execute(update(lists).where(lists.c.name == name).values(title=lists.c.title + names[0]))
                if number == 0 and engine.dialect.name != "sqlite" and not meet.broken:
                    try:
                        meet.wait()
                    except threading.BrokenBarrierError:
                        pass
                    finally:
                        meet.abort()  # only the first meeting is forced

        try:
            write_again(engine, work)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=writer, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with read(engine) as connection:
        assert {"".join(sorted(title)) for title in connection.scalars(select(lists.c.title))} == {"ab"}
