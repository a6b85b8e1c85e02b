"""Who has got as many messages as one may: counted from the shards and settled ledgers of other sends, by DuckDB.

A message counts when it was handed over (or may have been) within the cap's days, or is frozen in a send that is under
way and has no outcome yet. So a send counts what others have still to send; and because a publication is recorded only
when nothing that it should have counted was published meanwhile (``publication.py``), two that freeze together can't
both pass. Sends that came to an end count only for what they may have sent: one that was rejected or failed, and is
triggered again after others were frozen, isn't measured again.

Tests don't count. The people are kept in a DuckDB file beside the snapshot that is built, so memory is bounded.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy import Connection, or_, select

from mailer_lib.audience.plan import FrequencyCap, SnapshotError, SnapshotPlan
from mailer_lib.database.named_sql import named_sql
from mailer_lib.database.schema import campaigns, sends, shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import StorePath, at_hand, name_below, store
from mailer_lib.terms import Outcome, SendMode, SendState, SnapshotState

DEFAULT_CLASS = "marketing"
WORK_PREFIX = ".frequency-"
_UNDER_WAY = frozenset(
    {
        SendState.PLANNED,
        SendState.FREEZING,
        SendState.AWAITING_APPROVAL,
        SendState.APPROVED,
        SendState.RUNNING,
        SendState.JUDGING,
    }
)
_MEMORY = "256MB"


@dataclass(frozen=True)
class Counted:
    """One shard of another send. Of its rows without an outcome, those before ``open_from`` count."""

    snapshot_id: int
    folder: str  # of the snapshot, below the snapshot store
    path: str  # of the shard, below that
    number: int
    open_from: int


@dataclass(frozen=True)
class Counting:
    """What a cap counts: ``shards`` of other sends below ``store``, and their ledgers' outcomes after ``since``."""

    store: StorePath
    cap: FrequencyCap
    since: datetime
    shards: Sequence[Counted]

    @property
    def snapshots(self) -> frozenset[int]:
        return frozenset(shard.snapshot_id for shard in self.shards)


def counting_of(connection: Connection, settings: Settings, plan: SnapshotPlan) -> Counting | None:
    """The shards of other sends of the class that may hold messages of the cap's days; None without a cap."""
    cap = plan.inputs.exclude.frequency_cap
    if cap is None:
        return None
    since = plan.as_of - timedelta(cap.days)
    rows = connection.execute(
        select(
            snapshots.c.id,
            snapshots.c.path.label("folder"),
            shards.c.path,
            shards.c.number,
            shards.c.rows,
            shards.c.next_row,
            sends.c.state,
            campaigns.c.definition["class"].as_string().label("campaign_class"),
        )
        .join_from(shards, snapshots, shards.c.snapshot_id == snapshots.c.id)
        .join(sends, sends.c.id == snapshots.c.send_id)
        .join(campaigns, campaigns.c.id == sends.c.campaign_id)
        .where(
            sends.c.id != plan.send_id,
            sends.c.mode == SendMode.SEND,
            snapshots.c.state == SnapshotState.PUBLISHED,
            or_(sends.c.state.in_(_UNDER_WAY), sends.c.finished_at.is_(None), sends.c.finished_at >= since),
        )
        .order_by(shards.c.id)
    )
    found: list[Counted] = []
    for row in rows:
        live = row.state in _UNDER_WAY
        if (row.campaign_class or DEFAULT_CLASS) == cap.campaign_class:
            found.append(Counted(row.id, row.folder, row.path, row.number, row.rows if live else row.next_row))
    return Counting(store(settings), cap, since, found)


@dataclass(frozen=True)
class AtCap:
    """The people who may get no more; ``connection`` None: nobody."""

    connection: duckdb.DuckDBPyConnection | None = None

    def among(self, hashes: Sequence[bytes], shard: int | None = None) -> set[bytes]:
        """Those of ``hashes`` who are at the cap. ``shard``, when all are of one, spares reading the others."""
        if self.connection is None or not hashes:
            return set()
        self.connection.register("wanted", pa.table({"address_hash": pa.array(hashes, pa.binary())}))
        rows = self.connection.execute(
            "SELECT address_hash FROM at_cap WHERE ($shard IS NULL OR shard = $shard) "
            "AND address_hash IN (SELECT address_hash FROM wanted)",
            {"shard": shard},
        ).fetchall()
        self.connection.unregister("wanted")
        return {bytes(address_hash) for (address_hash,) in rows}


@contextmanager
def people_at_cap(building: Path, counting: Counting | None, shard_count: int) -> Iterator[AtCap]:
    """Count, and keep the answer in a folder below ``building`` until the block ends.

    Raises:
        SnapshotError: a shard that has to be counted is missing.
    """
    if counting is None or not counting.shards:
        yield AtCap()
        return
    with (
        tempfile.TemporaryDirectory(dir=building, prefix=WORK_PREFIX) as work,
        duckdb.connect(f"{work}/people.duckdb") as connection,
    ):
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute("SET temp_directory = $work", {"work": work})
        connection.execute("SET threads = 1")
        connection.execute("SET preserve_insertion_order = false")
        _count(connection, counting, shard_count, Path(work))
        yield AtCap(connection)


def _count(connection: duckdb.DuckDBPyConnection, counting: Counting, shard_count: int, work: Path) -> None:
    found = {f: at_hand(counting.store / f, _files(counting, f), work) for f in {s.folder for s in counting.shards}}
    folders = [found[each.folder] for each in counting.shards]
    files = [str(folder / each.path) for folder, each in zip(folders, counting.shards, strict=True)]
    for file, each in zip(files, counting.shards, strict=True):
        if not Path(file).exists():
            missing = counting.store / each.folder / each.path
            raise SnapshotError(
                f"{missing} is missing, so the frequency cap can't be counted; restore the snapshot store"
            )
    known: dict[str, list[str] | list[int]] = {
        "file": files,
        "folder": [str(folder) for folder in folders],
        "number": [each.number for each in counting.shards],
        "open_from": [each.open_from for each in counting.shards],
    }
    connection.register("counted", pa.table(known))
    connection.execute(_OUTCOME)
    ledgers = sorted(str(path) for folder in set(folders) for path in (folder / "ledgers").glob("*.ledger"))
    if ledgers:
        connection.execute(f"INSERT INTO outcome {named_sql('final_rows')}", {"ledgers": ledgers})
    connection.execute(
        named_sql("people_at_cap"),
        {
            "files": files,
            "handed_over": [Outcome.INJECTED.value, Outcome.UNKNOWN.value],
            "since": round(counting.since.timestamp() * 1000),
            "messages": counting.cap.messages,
            "shards": shard_count,
        },
    )


def _files(counting: Counting, folder: str) -> list[str]:
    """Names of a snapshot's counted shards and ledgers."""
    source = counting.store / folder
    ledgers = [name_below(path, source) for path in source.glob("ledgers/*.ledger")]
    return [each.path for each in counting.shards if each.folder == folder] + ledgers


_OUTCOME = "CREATE TEMP TABLE outcome (folder VARCHAR, number INTEGER, row BIGINT, outcome VARCHAR, t BIGINT)"
