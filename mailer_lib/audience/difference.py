"""Two frozen audiences compared: who is in one and not in the other, and why (docs/decisions/0308).

People are compared by their keyed hash, so the two may be of different campaigns. A send is compared with all its
phases: a top-up's own snapshot holds only who was left to mail.
"""

import csv
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.duck import over_files
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.files import sync_folder
from mailer_lib.audience.freezing import halves
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.audience.published import PublishedSnapshot
from mailer_lib.database.bulk_read import read_those
from mailer_lib.database.named_sql import named_sql
from mailer_lib.database.schema import contacts
from mailer_lib.shard.store import at_hand

_LOOK_UP_ROWS = 5_000
_KNOWN_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("id", pa.int64(), nullable=False),
    pa.field("address_hash", pa.binary(16), nullable=False),
]
_KNOWN = pa.schema(_KNOWN_FIELDS)
_WRITE_ROWS = 65_536


class Absence(StrEnum):
    """Why somebody who is in one snapshot isn't in the other; the first that holds."""

    BARRED = "barred"  # matched, and was left out there: ``by_reason`` has why
    ERASED = "erased"  # since: only the keyed hash is left
    NO_CONTACT_YET = "no-contact-yet"  # became a contact after the other was frozen
    GONE = "gone"  # from the contacts, before or after the other was frozen; nobody knows any more
    NO_MATCH = "no-match"  # didn't match the other's criteria


@dataclass(frozen=True)
class Side:
    """One of the two: the phases of a send that are compared."""

    name: str
    phases: tuple[tuple[PublishedSnapshot, Manifest], ...]

    @classmethod
    def of(cls, phases: Sequence[PublishedSnapshot], *, one_phase: bool) -> "Side":
        """Raises:
        SnapshotError: a manifest can't be read.
        """
        name = f"{phases[0].send}@{phases[0].phase}" if one_phase else phases[0].send
        return cls(name, tuple((phase, manifests.load(phase.folder)) for phase in phases))

    @property
    def as_of(self) -> datetime:
        return max(manifest.as_of for _, manifest in self.phases)

    @property
    def newest_contact(self) -> int:
        return max(manifest.max_contact_id for _, manifest in self.phases)

    @property
    def amended(self) -> bool:
        return any(manifest.amendments for _, manifest in self.phases)

    def at_hand(self, work: Path) -> "Side":
        """With folders that DuckDB can read."""

        def local(phase: PublishedSnapshot, manifest: Manifest) -> PublishedSnapshot:
            names = [entry.path for entry in (*manifest.shards, *manifest.excluded)]
            return replace(phase, folder=at_hand(phase.folder, names, work))

        return replace(self, phases=tuple((local(*pair), pair[1]) for pair in self.phases))

    def shards(self) -> list[str]:
        return [str(phase.folder / entry.path) for phase, manifest in self.phases for entry in manifest.shards]

    def excluded(self) -> list[str]:
        return [str(phase.folder / entry.path) for phase, manifest in self.phases for entry in manifest.excluded]


@dataclass(frozen=True)
class Moved:
    """Those who are in one snapshot alone. ``by_absence`` says why they aren't in the other; ``by_reason`` counts every
    reason of the barred, so it adds up to more than they are.
    """

    people: int
    by_provider: Mapping[str, int]
    by_absence: Mapping[Absence, int]
    by_reason: Mapping[str, int]


@dataclass(frozen=True)
class Difference:
    first: str
    second: str
    first_people: int
    second_people: int
    added: Moved  # in the second alone
    removed: Moved  # in the first alone

    @property
    def stayed(self) -> int:
        return self.first_people - self.removed.people


def compare(
    connection: Connection, first: Side, second: Side, *, people: Path | None = None, addresses: bool = False
) -> Difference:
    """What became of the first audience in the second.

    Args:
        connection: says which of the removed are contacts still.
        people: a file ``.csv`` or ``.parquet`` for one row a person who was added or removed, mode 0600.
        addresses: their addresses too, as the contacts have them now: who was erased or is gone has none.

    Raises:
        SnapshotError: a file of a snapshot can't be read, or ``people`` is named otherwise.
        StoreError: the store can't be reached.
    """
    if people is not None and people.suffix not in {".csv", ".parquet"}:
        raise SnapshotError(f"{people}: write people to a file that ends in .csv or .parquet")
    try:
        with over_files() as duck, tempfile.TemporaryDirectory(prefix="mailfleet-compared-") as work:
            first, second = first.at_hand(Path(work)), second.at_hand(Path(work))
            _find(duck, first, second)
            _mark_gone(duck, connection, first, second)
            removed, added = _moved(duck, added=False), _moved(duck, added=True)
            if people is not None:
                _write(duck, people, connection if addresses else None)
            first_people, second_people = _people(duck, first), _people(duck, second)
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise SnapshotError(f"a file of {first.name} or {second.name} can't be read: {error}") from None
    return Difference(first.name, second.name, first_people, second_people, added, removed)


def _find(duck: duckdb.DuckDBPyConnection, first: Side, second: Side) -> None:
    """The tables ``changed`` and ``explained``."""
    _set(duck, "first", first.shards())
    _set(duck, "second", second.shards())
    _set(duck, "newest", {"added": first.newest_contact, "removed": second.newest_contact})
    _set(duck, "blanked", {"added": second.amended, "removed": first.amended})
    if first.shards() and second.shards():
        duck.execute(named_sql("snapshot_changed"))
    else:  # read_parquet refuses to read no file
        duck.execute("CREATE TEMP TABLE changed (person UUID, added BOOLEAN, contact_id BIGINT, provider VARCHAR)")
        for added, side in ((False, first), (True, second)):
            if side.shards():
                duck.execute(_EVERYBODY, {"added": added, "files": side.shards()})
    duck.execute("CREATE TEMP TABLE barred (added BOOLEAN, person UUID, reasons INTEGER)")
    for added, side in ((True, first), (False, second)):
        if side.excluded():
            duck.execute(_BARRED, {"added": added, "files": side.excluded()})
    duck.execute(named_sql("snapshot_causes"))


_EVERYBODY = """
INSERT INTO changed
SELECT CAST(address_hash AS UUID) AS person, $added, max(contact_id), any_value(provider)
FROM read_parquet($files, hive_partitioning = false) GROUP BY person
"""
_BARRED = """
INSERT INTO barred
SELECT $added, CAST(address_hash AS UUID), reasons FROM read_parquet($files, hive_partitioning = false)
"""


def _set(duck: duckdb.DuckDBPyConnection, name: str, value: Any) -> None:
    duck.execute(f"SET VARIABLE {name} = $value", {"value": value})


def _mark_gone(duck: duckdb.DuckDBPyConnection, connection: Connection, first: Side, second: Side) -> None:
    """Only the newer one can lack somebody for having lost the contact.

    The ids go to DuckDB as a bound list: registering an Arrow table would load ``pyarrow.dataset``, a CPU second.
    """
    added = first.as_of > second.as_of
    unexplained = "absence = 'no-match' AND added = $added"
    found = duck.sql(
        f"SELECT contact_id, CAST(person AS BLOB) AS person FROM explained WHERE {unexplained}",  # noqa: S608
        params={"added": added},
    ).to_arrow_table()
    ids: NDArray[np.int64] = found.column("contact_id").to_numpy()
    here = _are_contacts(connection, ids, halves(found.column("person").cast(pa.binary(16))))
    gone: list[int] = ids[~here].tolist()
    if gone:
        duck.execute(
            f"UPDATE explained SET absence = 'gone' WHERE {unexplained} "  # noqa: S608
            "AND contact_id IN (SELECT unnest(CAST($gone AS BIGINT[])))",
            {"added": added, "gone": gone},
        )


def _are_contacts(connection: Connection, ids: NDArray[np.int64], people: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the ids are those people's still."""
    here = np.zeros(len(ids), np.bool_)
    order = np.argsort(ids)
    ordered = ids[order]
    asked: list[int] = ordered[np.diff(ordered, prepend=-1) != 0].tolist()
    c = contacts.c
    for block in read_those(connection, select(c.id, c.address_hash), _KNOWN, c.id, asked):
        places = order[np.searchsorted(ordered, block.column("id").to_numpy())]
        here[places] = (halves(block.column("address_hash")) == people[places]).all(axis=1)
    return here


def _contacts(connection: Connection, ids: Sequence[int], *columns: ColumnElement[Any]) -> Iterator[Any]:
    """Rows (id, columns …) of those that exist."""
    for first in range(0, len(ids), _LOOK_UP_ROWS):
        part = ids[first : first + _LOOK_UP_ROWS]
        yield from connection.execute(select(contacts.c.id, *columns).where(contacts.c.id.in_(part)))


def _moved(duck: duckdb.DuckDBPyConnection, *, added: bool) -> Moved:
    def counted(column: str) -> dict[Any, int]:
        query = f"SELECT {column}, count(*) AS n FROM explained WHERE added = $added GROUP BY 1 ORDER BY n DESC, 1"  # noqa: S608
        return dict(duck.execute(query, {"added": added}).fetchall())

    by_reason: dict[str, int] = {}
    for mask, people in counted("reasons").items():
        for name in reason_names(mask or 0):
            by_reason[name] = by_reason.get(name, 0) + people
    by_absence = {Absence(name): people for name, people in counted("absence").items()}
    ordered = dict(sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0])))
    return Moved(sum(by_absence.values()), counted("provider"), by_absence, ordered)


def _people(duck: duckdb.DuckDBPyConnection, side: Side) -> int:
    """Different people in all phases."""
    if len(side.phases) == 1:
        return sum(entry.rows for entry in side.phases[0][1].shards)
    if not side.shards():
        return 0
    query = "SELECT count(DISTINCT address_hash) FROM read_parquet($files, hive_partitioning = false)"
    ((people,),) = duck.execute(query, {"files": side.shards()}).fetchall()
    return int(people)


# --- a row a person ---------------------------------------------------------------------------------------------------

_COLUMNS: Mapping[str, pa.DataType] = {
    "change": pa.string(),
    "contact_id": pa.int64(),
    "address_hash": pa.string(),  # hex
    "provider": pa.string(),
    "absence": pa.string(),
    "reasons": pa.string(),  # names, with | between them
}


def _write(duck: duckdb.DuckDBPyConnection, path: Path, connection: Connection | None) -> None:
    """``connection``: addresses are wanted. A reader sees the old file or the new one, whole."""
    columns = {**_COLUMNS, **({"address": pa.string()} if connection is not None else {})}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(Path(temporary), columns, _rows(duck, connection))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _rows(duck: duckdb.DuckDBPyConnection, connection: Connection | None) -> Iterator[list[tuple[Any, ...]]]:
    found = duck.execute(
        "SELECT if(added, 'added', 'removed'), contact_id, lower(hex(CAST(person AS BLOB))), provider, absence, "
        "reasons FROM explained ORDER BY added, contact_id, person"
    )
    while rows := found.fetchmany(_WRITE_ROWS):
        named = [(*row[:5], "|".join(reason_names(row[5] or 0))) for row in rows]
        if connection is None:
            yield named
            continue
        ids = [row[1] for row in named if row[1]]
        known = {row.id: row for row in _contacts(connection, ids, contacts.c.address_hash, contacts.c.address_given)}
        yield [(*row, _address(known.get(row[1]), row[2])) for row in named]


def _address(contact: Any, address_hash: str) -> str | None:
    return None if contact is None or contact.address_hash.hex() != address_hash else str(contact.address_given)


def _write_csv(path: Path, columns: Mapping[str, pa.DataType], rows: Iterable[list[tuple[Any, ...]]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for part in rows:
            writer.writerows(part)


def _write_parquet(path: Path, columns: Mapping[str, pa.DataType], rows: Iterable[list[tuple[Any, ...]]]) -> None:
    schema = pa.schema(list(columns.items()))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in rows:
            arrays = [pa.array(v, f.type) for v, f in zip(zip(*part, strict=True), schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
