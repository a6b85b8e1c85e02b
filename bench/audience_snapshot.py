"""The snapshot of 60 % of the contacts, against MariaDB's own client and pandas on the identical statement.

12 columns of a contact (three of them attributes) and the exclusion reasons. Each way runs in a process of its own,
imports done before the clock starts, in alternation; medians count. Content is compared with the naive way, row by row:
SQLAlchemy's rows, ``normalise`` and one keyed hash for each.

    python -m bench.audience_snapshot build|pandas …    what the processes run
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Engine, Select, insert, select

from bench import audience_people
from bench.figures import Figures
from bench.private_mariadb import client, server_cpu_s
from mailer_lib.audience import catalogue, manifest
from mailer_lib.audience.freezing import variants_of
from mailer_lib.audience.ranges import people_statement
from mailer_lib.audience.snapshot import SnapshotPlan, build, load_plan, plan_snapshot
from mailer_lib.audience.verify import verify
from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.database.engine import open_engine, read, snapshot, write
from mailer_lib.database.schema import campaigns, contacts, sending_pools, sends
from mailer_lib.identity import message_key
from mailer_lib.settings import Settings, make_key
from mailer_lib.terms import ExclusionReason, SendState

ROUNDS = 3
SHARD_ROWS = 4800  # of 600,000 people makes 125 shards: 64 would pass the 5,000 rows that a shard may have
ATTRIBUTES = ["points", "tier", "vip"]
WEIGHTS = (1, 1)
LONG_AGO = datetime(2025, 3, 1, tzinfo=UTC)

WALL_ONE_BAR, WALL_TWO_BAR, CPU_US_BAR, PANDAS_BAR, PEAK_MB_BAR, GROWTH_BAR = 1.6, 1.3, 4.0, 3.0, 350.0, 1.15


def rules(list_name: str) -> dict[str, Any]:
    return {"combinator": "and", "rules": [{"field": "list", "operator": "=", "value": list_name}]}


# --- what is measured -------------------------------------------------------------------------------------------------


def build_snapshot(url: str, home: Path, send_id: int, list_name: str, processes: int) -> dict[str, Any]:
    """Plan, ranges, publication."""
    settings = Settings(home=home, database_url=url, shard_rows=SHARD_ROWS)
    engine = open_engine(url)
    with read(engine):  # connected, as for the others
        pass
    with _clocked() as spent:
        plan = plan_snapshot(
            engine, settings, send_id, rules=rules(list_name), list_id=1, attributes=ATTRIBUTES, weights=WEIGHTS
        )
        made = build(engine, settings, plan, processes=processes)
    folder = str(plan.published_folder(settings))
    return spent | {"folder": folder, "shards": len(made.shards), "people": made.counts.matching}


def pandas_snapshot(url: str, statement: str, path: Path) -> dict[str, Any]:
    """What one would write first."""
    engine = open_engine(url)
    with read(engine) as connection, _clocked() as spent:
        pd.read_sql(statement.replace("%", "%%"), connection).to_parquet(path, compression="zstd")
    return spent


@contextmanager
def _clocked() -> Iterator[dict[str, Any]]:
    spent: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


# --- running it -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    wall_s: float
    cpu_s: float
    peak_mb: float  # of its largest process
    said: dict[str, Any] = field(default_factory=dict)


def run_process(*arguments: object) -> Run:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.audience_snapshot", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    peaks: dict[int, float] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, over))
    watcher.start()
    said, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} failed")
    answer = json.loads(said)
    return Run(answer["wall_s"], answer["cpu_s"], max(peaks.values()), answer)


def _watch(pid: int, peaks: dict[int, float], over: threading.Event) -> None:
    """The kernel's own high-water mark of each process of the tree, MB, looked at until they are gone."""
    while not over.wait(0.02):
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            continue
        for each in tree:
            try:
                lines = Path(f"/proc/{each.pid}/status").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("VmHWM"):
                    peaks[each.pid] = int(line.split()[1]) / 1024


def raw_client(url: str, statement: str) -> Run:
    command, environment = client(url)
    wall, before = time.perf_counter(), os.times()
    subprocess.run([*command, "--quick", "-e", statement], env=environment, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(time.perf_counter() - wall, cpu, 0)


def add_send(engine: Engine, edition: str) -> int:
    with write(engine) as connection:
        row = {"edition": edition, "mode": "send", "state": SendState.PLANNED, "created_at": LONG_AGO}
        campaign_id = connection.scalar(select(campaigns.c.id))
        if campaign_id is None:
            pool = connection.execute(insert(sending_pools).values(name="bench", created_at=LONG_AGO))
            values = {"name": "bench", "definition": {}, "list_id": 1, "pool_id": pool.inserted_primary_key[0]}
            stamps = {"created_at": LONG_AGO, "updated_at": LONG_AGO, "updated_by": "bench"}
            made = connection.execute(insert(campaigns).values(**values, **stamps))
            campaign_id = made.inserted_primary_key[0]
        made = connection.execute(insert(sends).values(campaign_id=campaign_id, **row))
        return int(made.inserted_primary_key[0])


def statement_of(engine: Engine, plan: SnapshotPlan) -> Select[Any]:
    with read(engine) as connection:
        known = catalogue.load(connection)
    return people_statement(plan, known).where(contacts.c.id.between(1, plan.max_contact_id))


def as_text(engine: Engine, statement: Select[Any]) -> str:
    return str(statement.compile(engine, compile_kwargs={"literal_binds": True})).replace("%%", "%")


# --- the same, the naive way ------------------------------------------------------------------------------------------


def differences(engine: Engine, settings: Settings, plan: SnapshotPlan, folder: Path) -> tuple[int, int]:
    """(people compared, those whose row differs or is missing)."""
    made = manifest.load(folder)
    tables = [pq.read_table(folder / entry.path).append_column("shard", _number(entry)) for entry in made.shards]
    frozen = _by_id(pa.concat_tables(tables))
    excluded = _by_id(pa.concat_tables([pq.read_table(folder / entry.path) for entry in made.excluded]))
    send_key = settings.identity().send_key(plan.campaign, plan.edition)
    compared = different = 0
    with snapshot(engine) as connection:
        for row in connection.execute(statement_of(engine, plan).order_by(contacts.c.id)):
            expected = naive(tuple(row), send_key, made.shard_count)
            compared += 1
            different += next(frozen if len(expected) > 3 else excluded, None) != expected
    return compared, different + sum(1 for _ in frozen) + sum(1 for _ in excluded)


def naive(row: tuple[Any, ...], send_key: bytes, shard_count: int) -> tuple[Any, ...]:
    """A frozen row and its shard, or an excluded one."""
    contact_id, address_hash, given, domain, provider, *rest, reasons = row
    try:
        address = normalise(given).deliverable
    except AddressError:
        reasons |= ExclusionReason.INVALID_ADDRESS
    if reasons:
        return contact_id, address_hash, reasons
    key = message_key(send_key, address_hash)
    variant = int(variants_of(key, list(accumulate(WEIGHTS)))[0])
    names, (points, tier, vip) = rest[:4], rest[4:]
    shard = int.from_bytes(address_hash[:4], "big") % shard_count
    vip = None if vip is None else bool(vip)
    return (contact_id, key, address_hash, address, domain, provider, variant, *names, points, tier, vip, shard)


def _number(entry: manifest.ShardEntry) -> pa.Array:
    return pa.array([entry.number] * entry.rows)


def _by_id(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in table.sort_by("contact_id").to_batches(max_chunksize=10_000):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


# --- the figures ------------------------------------------------------------------------------------------------------


def run(figures: Figures, url: str, people: int) -> None:
    engine = open_engine(url)
    began = time.perf_counter()
    audience_people.fill(engine, people)
    figures.note("snapshot_fill", time.perf_counter() - began, "s to make the people")
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary:
        home = Path(temporary)
        settings = Settings(home=home, database_url=url, shard_rows=SHARD_ROWS)
        for name in ("identity", "token"):
            make_key(settings.keys_dir / f"{name}.key")
        sent = iter(range(1, 1000))

        def ours(processes: int, list_name: str = "newsletter") -> Run:
            return run_process("build", url, home, add_send(engine, str(next(sent))), list_name, processes)

        first = ours(1)
        plan = load_plan(Path(first.said["folder"]) / "plan.json")
        statement = as_text(engine, statement_of(engine, plan))
        ways: dict[str, Callable[[], Run]] = {
            "raw": lambda: raw_client(url, statement),
            "one": lambda: ours(1),
            "two": lambda: ours(2),
            "pandas": lambda: run_process("pandas", url, statement, home / "pandas.parquet"),
        }
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                before = server_cpu_s(url)
                runs[name].append(way())
                runs[name][-1].said["server_cpu_s"] = server_cpu_s(url) - before
        smaller = ours(1, "offers")
        matching = int(first.said["people"])
        _report(figures, matching, runs, smaller)
        compared, different = differences(engine, settings, plan, Path(first.said["folder"]))
        figures.at_least("snapshot_compared", compared, "people with the naive way, row by row", matching)
        figures.at_most("snapshot_different", different, "people", 0)
        figures.at_most("snapshot_problems", len(verify(Path(first.said["folder"]))), "found by verify", 0)
    engine.dispose()


def _report(figures: Figures, people: int, runs: dict[str, list[Run]], smaller: Run) -> None:
    def median(name: str, value: Callable[[Run], float]) -> float:
        return statistics.median(value(each) for each in runs[name])

    wall = {name: median(name, lambda each: each.wall_s) for name in runs}
    figures.note("snapshot_people", people, f"who match, in {runs['one'][0].said['shards']} shards")
    for name, unit in [
        ("raw", "mariadb --quick"),
        ("one", "one process"),
        ("two", "two processes"),
        ("pandas", "read_sql + to_parquet"),
    ]:
        server = median(name, lambda each: float(each.said["server_cpu_s"]))
        figures.note(f"snapshot_wall_{name}", wall[name], f"s, {unit} (server's CPU {server:.1f} s)")
    figures.at_most("snapshot_one", wall["one"] / wall["raw"], "times mariadb --quick", WALL_ONE_BAR)
    figures.at_most("snapshot_two", wall["two"] / wall["raw"], "times mariadb --quick", WALL_TWO_BAR)
    cpu = median("one", lambda each: each.cpu_s)
    figures.at_most("snapshot_cpu", cpu / people * 1e6, "us of the client a person", CPU_US_BAR)
    figures.at_least("snapshot_pandas", wall["pandas"] / wall["one"], "times faster than pandas", PANDAS_BAR)
    peak = max(each.peak_mb for name in ("one", "two") for each in runs[name])
    figures.at_most("snapshot_peak", peak, "MB, the largest process", PEAK_MB_BAR)
    peak_one = median("one", lambda each: each.peak_mb)
    figures.at_most("snapshot_growth", peak_one / smaller.peak_mb, "times the peak of a third of it", GROWTH_BAR)
    figures.note("snapshot_peak_pandas", median("pandas", lambda each: each.peak_mb), "MB")


def main(what: str, *arguments: str) -> None:
    if what == "build":
        url, home, send_id, list_name, processes = arguments
        said = build_snapshot(url, Path(home), int(send_id), list_name, int(processes))
    else:
        url, statement, path = arguments
        said = pandas_snapshot(url, statement, Path(path))
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
