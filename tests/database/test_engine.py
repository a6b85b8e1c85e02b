"""What every connection of an engine can rely on."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import text

from mailer_lib.database import engine as module
from mailer_lib.database.engine import open_engine, read, write

PROCESSES = 8


def test_many_may_open_a_new_sqlite_file_at_once(tmp_path: Path) -> None:
    """One of six such rounds failed with "database is locked" when the switch to WAL wasn't tried again."""
    for number in range(40):
        together = Barrier(PROCESSES)

        def mode(
            _: int, url: str = f"sqlite:///{tmp_path / str(number)}.db", together: Barrier = together
        ) -> str | None:
            engine = open_engine(url)
            together.wait()
            try:
                with read(engine) as connection:
                    return connection.scalar(text("PRAGMA journal_mode"))
            finally:
                engine.dispose()

        with ThreadPoolExecutor(PROCESSES) as pool:
            assert list(pool.map(mode, range(PROCESSES))) == ["wal"] * PROCESSES


def test_threads_of_a_process_write_to_sqlite_in_turn_however_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 50)
    engine = open_engine(f"sqlite:///{tmp_path / 'one.db'}")
    with write(engine) as connection:
        connection.execute(text("CREATE TABLE turns (writer INTEGER)"))

    def work(writer: int) -> None:
        with write(engine) as connection:
            connection.execute(text("INSERT INTO turns VALUES (:writer)"), {"writer": writer})
            time.sleep(0.02)

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(work, range(40)))
    with read(engine) as connection:
        assert connection.scalar(text("SELECT COUNT(DISTINCT writer) FROM turns")) == 40
    engine.dispose()
