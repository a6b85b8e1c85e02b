"""What every connection of an engine can rely on."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from sqlalchemy import text

from mailer_lib.database.engine import open_engine, read

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
