"""A write transaction that is run again when InnoDB chose it to yield to another one.

Two writers that take row locks in another order deadlock now and then; the database rolls one of them back, and running
it again is the cure (MySQL manual, "Deadlocks in InnoDB"). SQLite's writers queue up instead.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from mailer_lib.database.engine import write

T = TypeVar("T")

ATTEMPTS = 6
_DEADLOCK, _LOCK_WAIT = 1213, 1205
_NO_AUTOINC = 1467  # a deadlock too: about the counter, which LOAD DATA locks for the whole statement


def is_deadlock(error: BaseException) -> bool:
    """Whether running the transaction again is the cure."""
    original = getattr(error, "orig", None)
    code = original.args[0] if original is not None and original.args else None
    return isinstance(error, OperationalError) and code in (_DEADLOCK, _LOCK_WAIT, _NO_AUTOINC)


def write_again(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run ``work`` in a write transaction, up to ``ATTEMPTS`` times. It must do nothing but database work.

    Raises:
        OperationalError: any other trouble, or a deadlock at the last attempt.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            with write(engine) as connection:
                return work(connection)
        except OperationalError as error:
            if not is_deadlock(error):
                raise
            time.sleep(random.random() * 0.02 * attempt)  # so that the same two don't meet again
    with write(engine) as connection:
        return work(connection)
