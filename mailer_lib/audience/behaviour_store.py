"""Behaviour as Parquet, derived from settled ledgers and raw events: small, sorted by contact, rebuilt at will.

    storage/behaviour/sent/<campaign>/<edition>/<phase>.parquet     sent and bounced, a file a phase
    storage/behaviour/events/day=YYYY-MM-DD/events.parquet          opened and clicked, a file a day (UTC)

Columns: ``SCHEMA``. A file says in its metadata what it was made of (``SOURCES``), so a refresh reads only what is new:
ledgers that came since, days whose raw files grew. It replaces whole files, so a reader sees the old one or the new
one, and whoever is killed leaves the old one. Removing the folder, or a part of it, only costs the next refresh time.

A contact is the ``contact_id`` that the person's frozen row had (events carry it in their signed token). Ids are never
given twice (``schema.py``), so what an erased person did belongs to nobody; no address and no address hash is here.
Rows without an id (seeds, blanked rows) are left out.

With a store on S3 the folder is in each machine's own work folder, as raw events are: a plan shares the sets it froze.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine, select

from mailer_lib.audience.behaviour import Behaviour
from mailer_lib.audience.files import sync_folder
from mailer_lib.database.engine import read
from mailer_lib.database.named_sql import named_sql
from mailer_lib.database.schema import campaigns, sends, shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import StorePath, at_once, store
from mailer_lib.terms import Outcome, SendMode, SnapshotState

SOURCES = b"mailfleet.sources"
_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("contact_id", pa.int64(), nullable=False),
    pa.field("campaign", pa.string(), nullable=False),
    pa.field("edition", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),  # BehaviourKind
    pa.field("happened_at", pa.timestamp("ms"), nullable=False),  # UTC
    pa.field("machine", pa.bool_(), nullable=False),
]
SCHEMA = pa.schema(_FIELDS)
ROW_GROUP = 131_072  # an id range reads the groups that it meets
_MEMORY = "512MB"
_THREADS = 2
_WORK = ".work-"


@dataclass(frozen=True)
class Refreshed:
    """``rows`` of the files that were written anew. Sentences: ``unread``, phases and days that keep the file that they
    had, and ``damaged``, raw files with lines that were passed over.
    """

    phases: int = 0
    days: int = 0
    rows: int = 0
    unread: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def refresh(
    engine: Engine, settings: Settings, progress: Callable[[int, int], object] = lambda done, total: None
) -> Refreshed:
    """Take in what was settled and what happened since the last time. Whoever comes second waits, and finds it done.

    A phase or a day that can't be read is named, and the rest goes on.
    """
    root = root_of(settings)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (*root.glob(f"{_WORK}*"), *root.rglob(".*.parquet.*")):  # by somebody who was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return _refresh(engine, settings, root, progress)


def _refresh(engine: Engine, settings: Settings, root: Path, progress: Callable[[int, int], object]) -> Refreshed:
    with read(engine) as connection:
        phases = [phase for phase in _phases(connection, settings) if phase.stale]
        names = _sends(connection)
        days = [day for day in _days(settings) if day.stale]
        for phase in phases:
            phase.shards.update(_shards(connection, phase))
    run = _Run(root)
    waiting: list[_Phase | _Day] = [*phases, *days]
    total = len(waiting)
    for done, work in enumerate(waiting):
        progress(done, total)
        try:
            if isinstance(work, _Phase):
                run.phase(work)
            else:
                run.day(work, names)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            run.unread.append(f"{work}: {error}")
    progress(total, total)
    return Refreshed(run.phases, run.days, run.rows, tuple(run.unread), tuple(run.damaged))


def root_of(settings: Settings) -> Path:
    return settings.storage / "behaviour"


def files_of(settings: Settings, asked: Behaviour) -> list[Path]:
    """The files that may hold events of this kind, campaign and time."""
    root = root_of(settings)
    if asked.kind.at_hand_over:
        below = root / "sent"
        if asked.campaign is not None:
            below = below / asked.campaign / (asked.edition or "")
        return sorted(below.rglob("*.parquet"))
    first = "" if asked.since is None else asked.since.date().isoformat()
    last = asked.until.date().isoformat()
    found = sorted((root / "events").glob("day=*/events.parquet"))
    return [path for path in found if first <= path.parent.name.removeprefix("day=") <= last]


# --- what there is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phase:
    snapshot_id: int
    campaign: str
    edition: str
    number: int
    folder: StorePath
    target: Path
    fresh: tuple[str, ...]  # names of ledgers that aren't in the target
    known: tuple[str, ...]  # that are
    shards: dict[int, str] = field(default_factory=dict)  # path below ``folder``, by number

    @property
    def stale(self) -> bool:
        return bool(self.fresh)

    def __str__(self) -> str:
        return f"{self.campaign}#{self.edition} phase {self.number}"


@dataclass(frozen=True)
class _Day:
    day: date
    target: Path
    sizes: Mapping[str, int]  # bytes by name of the raw file, now
    known: Mapping[str, int]  # when the target was made

    @property
    def stale(self) -> bool:
        return any(size > self.known.get(name, 0) for name, size in self.sizes.items())

    def __str__(self) -> str:
        return f"events of {self.day}"


def _phases(connection: Connection, settings: Settings) -> Iterator[_Phase]:
    rows = connection.execute(
        select(snapshots.c.id, snapshots.c.phase, snapshots.c.path, campaigns.c.name, sends.c.edition)
        .join_from(snapshots, sends, snapshots.c.send_id == sends.c.id)
        .join(campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(snapshots.c.state == SnapshotState.PUBLISHED, sends.c.mode == SendMode.SEND)
        .order_by(snapshots.c.id)
    ).all()
    for row in rows:
        folder = store(settings) / row.path
        target = root_of(settings) / "sent" / row.name / row.edition / f"{row.phase}.parquet"
        there = sorted(path.name for path in folder.glob("ledgers/*.ledger"))
        known = sources_of(target, list)
        fresh = tuple(sorted(set(there) - set(known)))
        yield _Phase(row.id, row.name, row.edition, row.phase, folder, target, fresh, tuple(known))


def _shards(connection: Connection, phase: _Phase) -> dict[int, str]:
    rows = connection.execute(select(shards.c.number, shards.c.path).where(shards.c.snapshot_id == phase.snapshot_id))
    return {row.number: row.path for row in rows}


def _sends(connection: Connection) -> pa.Table:
    """Names of the sends that count, by id."""
    rows = connection.execute(
        select(sends.c.id, campaigns.c.name, sends.c.edition)
        .join_from(sends, campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(sends.c.mode == SendMode.SEND)
    ).all()
    ids: list[int] = [row.id for row in rows]
    return pa.table(
        {
            "send_id": pa.array(ids, pa.int64()),
            "campaign": pa.array([str(row.name) for row in rows], pa.string()),
            "edition": pa.array([str(row.edition) for row in rows], pa.string()),
        }
    )


def _days(settings: Settings) -> Iterator[_Day]:
    for folder in sorted((settings.storage / "events" / "raw").glob("????-??-??")):
        try:
            day = date.fromisoformat(folder.name)
        except ValueError:
            continue
        target = root_of(settings) / "events" / f"day={day}" / "events.parquet"
        sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.jsonl"))}
        yield _Day(day, target, sizes, sources_of(target, dict))


def sources_of(target: Path, kind: Callable[[], Any]) -> Any:
    """What a file was made of; empty when there is no such file, or none that can be read."""
    try:
        metadata = pq.read_schema(target).metadata or {}
        return json.loads(metadata[SOURCES])
    except (FileNotFoundError, KeyError, ValueError, pa.ArrowException):
        return kind()


# --- writing ----------------------------------------------------------------------------------------------------------


class _Run:
    """One file after the other; a DuckDB of bounded memory for each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.phases = 0
        self.days = 0
        self.rows = 0
        self.unread: list[str] = []
        self.damaged: list[str] = []

    def phase(self, phase: _Phase) -> None:
        with (
            working(self.root, _WORK) as db,
            tempfile.TemporaryDirectory(dir=self.root, prefix=_WORK) as copies,
        ):
            ledgers = _at_hand(phase.folder, [f"ledgers/{name}" for name in phase.fresh], Path(copies))
            db.execute(f"CREATE TEMP TABLE final AS {named_sql('final_rows')}", {"ledgers": ledgers})
            numbers = sorted(int(n) for (n,) in db.execute("SELECT DISTINCT number FROM final").fetchall())
            strange = [number for number in numbers if number not in phase.shards]
            if strange:
                raise OSError(f"there are ledgers of shards that it doesn't have: {strange[:10]}")
            files = _at_hand(phase.folder, [phase.shards[number] for number in numbers], Path(copies))
            db.register(
                "shard_files", pa.table({"number": pa.array(numbers, pa.int64()), "file": pa.array(files, pa.string())})
            )
            db.register("nothing", SCHEMA.empty_table())
            parts, said = ["SELECT * FROM nothing"], dict[str, Any]()
            if phase.target.exists():
                parts.append("SELECT * FROM read_parquet($old)")
                said["old"] = str(phase.target)
            if files:
                parts.append(named_sql("handed_over"))
                said |= {"files": files, "campaign": phase.campaign, "edition": phase.edition}
                said |= {"sent": [Outcome.INJECTED.value, Outcome.UNKNOWN.value], "bounced": Outcome.REJECTED.value}
            query = " UNION ALL BY NAME ".join(parts)
            self.rows += _write(db, phase.target, query, said, [*phase.known, *phase.fresh])
        self.phases += 1

    def day(self, day: _Day, names: pa.Table) -> None:
        raw = self.root.parent / "events" / "raw" / day.day.isoformat()
        with working(self.root, _WORK) as db:
            db.execute(named_sql("raw_events"), {"files": [str(raw / name) for name in day.sizes]})
            damaged = db.execute(
                "SELECT parse_filename(filename), count(*) FROM raw WHERE t IS NULL OR kind IS NULL GROUP BY ALL"
            ).fetchall()
            self.damaged += [
                f"{raw / name}: {lines:,} lines aren't events and were passed over; look for a damaged disk"
                for name, lines in damaged
            ]
            db.register("sends", names)
            self.rows += _write(db, day.target, named_sql("events_at_the_doors"), {}, dict(day.sizes))
        self.days += 1


def _at_hand(folder: StorePath, names: Sequence[str], copies: Path) -> list[str]:
    """The files as DuckDB can read them: of a store on S3, copies."""
    if isinstance(folder, Path):
        return [str(folder / name) for name in names]

    def copy(name: str) -> None:
        (copies / name).parent.mkdir(parents=True, exist_ok=True)
        (copies / name).write_bytes((folder / name).read_bytes())

    at_once(copy, names)
    return [str(copies / name) for name in names]


def _write(db: duckdb.DuckDBPyConnection, target: Path, query: str, said: Mapping[str, Any], sources: Any) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(SCHEMA.names)
    ordered = f"SELECT {names} FROM ({query}) AS rows ORDER BY contact_id, happened_at"  # noqa: S608  constants of this module
    return write_batches(
        target, arrow_reader(db, ordered, said), SCHEMA.with_metadata({SOURCES: json.dumps(sources).encode()})
    )


def write_batches(target: Path, batches: pa.RecordBatchReader, schema: pa.Schema) -> int:
    """One zstd file under its name, whole and on disk; rows in it."""
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    rows = 0
    try:
        with os.fdopen(handle, "wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
                for batch in batches:
                    table = pa.Table.from_batches([batch]).cast(schema)
                    writer.write_table(table, row_group_size=ROW_GROUP)
                    rows += batch.num_rows
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    return rows


@contextmanager
def working(root: Path, prefix: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that spills to a folder of its own below ``root``."""
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as work, duckdb.connect() as db:
        db.execute(f"SET memory_limit = '{_MEMORY}'")
        db.execute("SET temp_directory = $work", {"work": work})
        db.execute(f"SET threads = {_THREADS}")
        yield db


def arrow_reader(db: duckdb.DuckDBPyConnection, query: str, said: Mapping[str, Any]) -> pa.RecordBatchReader:
    """The answer in batches of at most ``ROW_GROUP`` rows."""
    reader: pa.RecordBatchReader = db.sql(query, params=dict(said)).to_arrow_reader(ROW_GROUP)
    return reader


def forget_phase(settings: Settings, campaign: str, edition: str, phase: int) -> None:
    """A settled ledger of this phase was amended: what was read from it is to be read anew."""
    (root_of(settings) / "sent" / campaign / edition / f"{phase}.parquet").unlink(missing_ok=True)
