"""A lock by name that holds between machines, for work that no row's guard can protect.

MariaDB has one (GET_LOCK), which goes with the connection that took it. SQLite serves one machine: there a lock on a
file is enough, and the caller takes that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text


@contextmanager
def named_lock(engine: Engine, name: str, wait_s: int) -> Iterator[bool]:
    """Hold it on a connection of its own, so that it outlives the transactions inside.

    ``name`` is the server's, for all its databases: at most 64 characters. Yields whether it was got within ``wait_s``
    (whole seconds); always true on SQLite, where there is no such lock.
    """
    if engine.dialect.name == "sqlite":
        yield True
        return
    with engine.connect() as connection:
        got = connection.execute(text("SELECT GET_LOCK(:name, :wait)"), {"name": name, "wait": wait_s}).scalar() == 1
        try:
            yield got
        finally:
            if got:
                connection.execute(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
