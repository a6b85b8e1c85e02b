"""From behaviour to the people of it: read by DuckDB, staged into a temporary table that criteria ask with ``EXISTS``.

A count asks the store of this moment (``StoredPeople``). A plan freezes its sets beside ``plan.json``
(``write_people``), and each range stages its ids of them (``FrozenPeople``): all ranges and retries see the same,
whatever is refreshed meanwhile, and 50 million events are read once, not once a range.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from mailer_lib.audience.behaviour import Behaviour
from mailer_lib.audience.behaviour_store import arrow_reader, files_of, root_of, working, write_batches
from mailer_lib.audience.plan import IdRange, SnapshotError
from mailer_lib.database import bulk_stage
from mailer_lib.settings import Settings

FOLDER = "behaviour"  # beside plan.json, until publication
_FIELDS: "list[pa.Field[Any]]" = [pa.field("contact_id", pa.int64(), nullable=False)]
_SCHEMA = pa.schema(_FIELDS)


class People(Protocol):
    def ids(self, asked: Behaviour) -> Iterator[list[int]]:
        """Contact ids of a behaviour, ascending, in batches; each once."""
        ...


@dataclass(frozen=True)
class StoredPeople:
    """As the derived files have it now; ``within`` these ids only."""

    settings: Settings
    within: IdRange | None = None

    def ids(self, asked: Behaviour) -> Iterator[list[int]]:
        with _reading(self.settings, asked, self.within) as batches:
            for batch in batches:
                yield batch.column(0).to_numpy().tolist()


@dataclass(frozen=True)
class FrozenPeople:
    """As ``write_people`` froze it in ``folder``."""

    folder: Path
    within: IdRange | None = None

    def ids(self, asked: Behaviour) -> Iterator[list[int]]:
        path = self.folder / f"{asked.table}.parquet"
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    if self._meets(file, group):
                        yield self._cut(file.read_row_group(group).column(0).to_numpy())
        except (FileNotFoundError, pa.ArrowException) as error:
            raise SnapshotError(
                f"{path}: the people who {asked} can't be read ({error}); discard the snapshot and plan it again"
            ) from None

    def _meets(self, file: pq.ParquetFile, group: int) -> bool:
        known: Any = file.metadata.row_group(group).column(0).statistics
        if self.within is None or known is None or not known.has_min_max:
            return True
        return bool(known.min <= self.within.last and known.max >= self.within.first)

    def _cut(self, ids: NDArray[np.int64]) -> list[int]:
        if self.within is not None:
            first, last = np.searchsorted(ids, (self.within.first, self.within.last + 1))
            ids = ids[first:last]
        found: list[int] = ids.tolist()
        return found


def write_people(settings: Settings, asked: Sequence[Behaviour], folder: Path) -> None:
    """Freeze each set into ``folder``; what was there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    if asked:
        folder.mkdir(parents=True)
    for one in asked:
        with _reading(settings, one, None) as batches:
            write_batches(folder / f"{one.table}.parquet", batches, _SCHEMA)


@contextmanager
def staged(connection: Connection, asked: Sequence[Behaviour], people: People) -> Iterator[None]:
    """While the block runs, the tables that ``criteria.where`` names for these behaviours are there."""
    try:
        for one in asked:
            bulk_stage.create(connection, one.table)
            for ids in people.ids(one):
                bulk_stage.fill(connection, one.table, ids)
        yield
    except BaseException:
        with suppress(SQLAlchemyError):  # a result that was being read, or a lost connection: the first error counts
            _drop(connection, asked)
        raise
    _drop(connection, asked)


def _drop(connection: Connection, asked: Sequence[Behaviour]) -> None:
    for one in asked:
        bulk_stage.drop(connection, one.table)


@contextmanager
def _reading(settings: Settings, asked: Behaviour, within: IdRange | None) -> Iterator[pa.RecordBatchReader]:
    files = [str(path) for path in files_of(settings, asked)]
    if not files:
        yield pa.RecordBatchReader.from_batches(_SCHEMA, iter(()))
        return
    conditions = ["kind = $kind", "happened_at < epoch_ms($until)"]
    said: dict[str, object] = {"files": files, "kind": asked.kind.value, "until": _ms(asked.until.timestamp())}
    if asked.since is not None:
        conditions.append("happened_at >= epoch_ms($since)")
        said["since"] = _ms(asked.since.timestamp())
    for name, value in (("campaign", asked.campaign), ("edition", asked.edition)):
        if value is not None:
            conditions.append(f"{name} = ${name}")
            said[name] = value
    if not asked.machines:
        conditions.append("NOT machine")
    if within is not None:
        conditions.append("contact_id BETWEEN $first AND $last")
        said |= {"first": within.first, "last": within.last}
    having = "count(*) >= $least"
    said["least"] = asked.least
    if asked.most is not None:
        having += " AND count(*) <= $most"
        said["most"] = asked.most
    query = (
        f"SELECT contact_id FROM read_parquet($files) WHERE {' AND '.join(conditions)} "  # noqa: S608  constants
        f"GROUP BY contact_id HAVING {having} ORDER BY contact_id"
    )
    with working(root_of(settings), ".read-") as db:
        yield arrow_reader(db, query, said)


def _ms(seconds: float) -> int:
    """The first whole millisecond that isn't before: events are known to the millisecond."""
    microseconds = round(seconds * 1_000_000)
    return -(-microseconds // 1000)
