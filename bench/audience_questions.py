"""Questions about published snapshots: `why`, `diff` and `profile` at 3 million recipients, each below a second.

    python -m bench.audience_questions [--rows 3000000]

Measured in this process with the files in the operating system's cache, as the second of several askings is; the
libraries are loaded, but DuckDB starts anew each time. What a Python process takes to start is a figure of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine

from bench import questions_world as made_up
from bench.figures import Figures
from mailer_lib.audience.difference import Side, compare
from mailer_lib.audience.profile import profile
from mailer_lib.audience.published import find_published
from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.migrate import upgrade
from mailer_lib.dispatch.why import why
from mailer_lib.settings import Settings, make_key

ROWS = 3_000_000
BAR_S = 1.0
TIMES = 5


def run(figures: Figures, url: str, people: int) -> None:
    """``people`` doesn't matter: the bar is for 3 million recipients."""
    with tempfile.TemporaryDirectory() as home:
        measure(figures, Settings(home=Path(home), database_url=SecretStr(url)), ROWS)


def measure(figures: Figures, settings: Settings, rows: int) -> None:
    for name in ("identity", "token"):
        make_key(settings.keys_dir / f"{name}.key")
    engine = open_engine(settings.url)
    upgrade(engine)
    expected = made_up.build(engine, settings, rows)
    ask(figures, engine, settings, rows, expected)
    engine.dispose()


def ask(figures: Figures, engine: Engine, settings: Settings, rows: int, expected: made_up.Expected) -> None:
    figures.note("questions_rows", rows, f"recipients in shards of {settings.shard_rows}, twice")

    def why_of(address: str) -> Callable[[], Any]:
        return lambda: why(engine, settings, address, campaign=made_up.CAMPAIGN, edition="1", actor="bench")

    def diff() -> Any:
        with read(engine) as connection:
            sides = [
                Side.of([find_published(connection, settings, made_up.CAMPAIGN, edition)], one_phase=False)
                for edition in ("1", "2")
            ]
            return compare(connection, *sides)

    found = timed(figures, "why_selected", why_of(made_up.KNOWN))
    assert found.phases[0].frozen is not None
    found = timed(figures, "why_stranger", why_of(made_up.STRANGER))
    assert found.phases[0].frozen is None
    found = timed(figures, "diff", diff)
    assert (found.removed.people, found.added.people) == (expected.removed, expected.added), found
    figures.note("diff_removed", str(dict(found.removed.by_absence)).replace(" ", ""))
    figures.note("diff_added", str(dict(found.added.by_absence)).replace(" ", ""))
    with read(engine) as connection:
        snapshot = find_published(connection, settings, made_up.CAMPAIGN, "1")
    found = timed(figures, "profile", lambda: profile(snapshot))
    assert found.people == sum(n for column in found.columns if column.name == "provider" for _, n in column.values)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mailer_lib.dispatch.why, duckdb"], check=True)
    figures.note("start_of_a_process", time.perf_counter() - started, "s, libraries loaded; beside the above")


def timed(figures: Figures, name: str, question: Callable[[], Any]) -> Any:
    """Median of several askings; the first one warms the cache and isn't counted."""
    answer = question()
    walls, cpus = [], []
    for _ in range(TIMES):
        wall, cpu = time.perf_counter(), time.process_time()
        answer = question()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    figures.at_most(f"{name}_wall", statistics.median(walls), "s", BAR_S)
    figures.note(f"{name}_cpu", statistics.median(cpus), "CPU s")
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description="Questions about snapshots.")
    parser.add_argument("--rows", type=int, default=ROWS)
    figures = Figures()
    with tempfile.TemporaryDirectory() as home:
        measure(figures, Settings(home=Path(home)), parser.parse_args().rows)
    return figures.exit_status()


if __name__ == "__main__":
    sys.exit(main())
