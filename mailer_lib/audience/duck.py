"""DuckDB over a snapshot's files: in memory, with what is built in. No extension is ever fetched."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

MEMORY = "2GB"  # of what is joined; more is spilled
THREADS_A_CORE = 2  # thousands of small files are opened, and opening waits


@contextmanager
def over_files() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database that lasts as long as the block."""
    with (
        tempfile.TemporaryDirectory(prefix="mailfleet-duckdb-") as spill,
        duckdb.connect(
            config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        ) as connection,
    ):
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute("SET temp_directory = $spill", {"spill": spill})
        connection.execute(f"SET threads = {THREADS_A_CORE * (os.cpu_count() or 1)}")
        connection.execute("SET preserve_insertion_order = false")
        yield connection
