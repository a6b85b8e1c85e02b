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
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.files import sync_folder
from mailer_lib.audience.freezing import halves
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.pairing import Alone, by_person, who_is_alone
from mailer_lib.audience.people_files import People
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.audience.published import PublishedSnapshot
from mailer_lib.database.bulk_read import read_those
from mailer_lib.database.schema import contacts
from mailer_lib.shard.store import StoreError, at_hand

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
        loaded = tuple((phase, manifests.load(phase.folder)) for phase in phases)
        for phase, manifest in loaded:
            if sum(entry.rows for entry in manifest.people) != sum(entry.rows for entry in manifest.shards):
                raise SnapshotError(f"{phase.folder}: its manifest doesn't list all its people; it can't be compared")
        return cls(name, loaded)

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
        """With folders whose files can be mapped."""

        def local(phase: PublishedSnapshot, manifest: Manifest) -> PublishedSnapshot:
            names = [entry.path for entry in (*manifest.people, *manifest.excluded)]
            return replace(phase, folder=at_hand(phase.folder, names, work))

        return replace(self, phases=tuple((local(*pair), pair[1]) for pair in self.phases))

    def people(self) -> list[People]:
        return [People.open(phase.folder / entry.path) for phase, manifest in self.phases for entry in manifest.people]

    def barred(self) -> "Barred":
        files = [phase.folder / entry.path for phase, manifest in self.phases for entry in manifest.excluded]
        tables = [_excluded(Path(str(path))) for path in files]
        hashes = [halves(table.column("address_hash")) for table in tables]
        reasons = [table.column("reasons").to_numpy() for table in tables]
        return Barred(_joined(hashes, np.empty((0, 2), np.uint64)), _joined(reasons, np.empty(0, np.int32)))


@dataclass(frozen=True)
class Barred:
    """Whom a side left out; somebody in several files stands here as often."""

    people: NDArray[np.uint64]
    reasons: NDArray[np.int32]

    def reasons_of(self, people: NDArray[np.uint64]) -> NDArray[np.int32]:
        """All reasons of each; 0: wasn't left out."""
        order, starts = by_person(np.concatenate([people, self.people]))
        if not len(order):
            return np.empty(0, np.int32)
        masks = np.concatenate([np.zeros(len(people), np.int32), self.reasons])
        whole = np.bitwise_or.reduceat(masks[order], starts)
        found = np.empty(len(order), np.int32)
        found[order] = np.repeat(whole, np.diff(starts, append=len(order)))
        return found[: len(people)]


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
        with tempfile.TemporaryDirectory(prefix="mailfleet-compared-") as work:
            first, second = first.at_hand(Path(work)), second.at_hand(Path(work))
            counts, alone = who_is_alone(first.people(), second.people())
            reasons = [side.barred().reasons_of(who.people) for who, side in zip(alone, (second, first), strict=True)]
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SnapshotError(f"a file of {first.name} or {second.name} can't be read: {error}") from None
    removed = _Explained.of(alone[0], reasons[0], blanked=first.amended, newest=second.newest_contact)
    added = _Explained.of(alone[1], reasons[1], blanked=second.amended, newest=first.newest_contact)
    (added if first.as_of > second.as_of else removed).mark_gone(connection)
    if people is not None:
        _write(people, {"added": added, "removed": removed}, connection if addresses else None)
    return Difference(first.name, second.name, *counts, added.summary(), removed.summary())


def _excluded(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=["address_hash", "reasons"])


def _joined(arrays: "list[NDArray[Any]]", nothing: "NDArray[Any]") -> "NDArray[Any]":
    return np.concatenate(arrays) if arrays else nothing


# --- why --------------------------------------------------------------------------------------------------------------


@dataclass
class _Explained:
    """Those who are in one snapshot alone, and why they aren't in the other: a row a person in each array."""

    alone: Alone
    reasons: NDArray[np.int32]
    absence: NDArray[np.int8]  # places in ``_ABSENCES``

    @classmethod
    def of(cls, alone: Alone, reasons: NDArray[np.int32], *, blanked: bool, newest: int) -> "_Explained":
        """As far as the files tell: ``newest`` is the contact id up to which the other one looked.

        A blanked row (``blanked``: there may be some) has lost its contact id: the person was erased since, and nothing
        else can be told of them.
        """
        ids = alone.contact_ids
        causes = {
            Absence.BARRED: reasons != 0,
            Absence.ERASED: (ids == 0) & blanked,
            Absence.NO_CONTACT_YET: ids > newest,
        }
        places = [_ABSENCES.index(cause) for cause in causes]
        absence = np.select(list(causes.values()), places, _ABSENCES.index(Absence.NO_MATCH)).astype(np.int8)
        return cls(alone, reasons, absence)

    def mark_gone(self, connection: Connection) -> None:
        """Of the newer one; only that can lack somebody for having lost the contact."""
        rows = np.flatnonzero(self.absence == _ABSENCES.index(Absence.NO_MATCH))
        here = _are_contacts(connection, self.alone.contact_ids[rows], self.alone.people[rows])
        self.absence[rows[~here]] = _ABSENCES.index(Absence.GONE)

    def summary(self) -> Moved:
        by_reason: dict[str, int] = {}
        for mask, people in _counted(self.reasons).items():
            for name in reason_names(mask):
                by_reason[name] = by_reason.get(name, 0) + people
        by_provider = {self.alone.names[place]: people for place, people in _counted(self.alone.providers).items()}
        by_absence = {_ABSENCES[place]: people for place, people in _counted(self.absence).items()}
        return Moved(len(self.absence), _most_first(by_provider), _most_first(by_absence), _most_first(by_reason))


_ABSENCES = tuple(Absence)
_K = TypeVar("_K", bound=str)


def _counted(values: "NDArray[Any]") -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _most_first(counts: Mapping[_K, int]) -> dict[_K, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


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


# --- a row a person ---------------------------------------------------------------------------------------------------

_COLUMNS: Mapping[str, pa.DataType] = {
    "change": pa.string(),
    "contact_id": pa.int64(),
    "address_hash": pa.string(),  # hex
    "provider": pa.string(),
    "absence": pa.string(),
    "reasons": pa.string(),  # names, with | between them
}


def _write(path: Path, changes: Mapping[str, _Explained], connection: Connection | None) -> None:
    """``connection``: addresses are wanted. A reader sees the old file or the new one, whole."""
    columns = {**_COLUMNS, **({"address": pa.string()} if connection is not None else {})}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(Path(temporary), columns, _rows(changes, connection))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _rows(changes: Mapping[str, _Explained], connection: Connection | None) -> Iterator[list[tuple[Any, ...]]]:
    for change, found in changes.items():
        who = found.alone
        order = np.lexsort((who.people[:, 1], who.people[:, 0], who.contact_ids))
        for first in range(0, len(order), _WRITE_ROWS):
            rows = order[first : first + _WRITE_ROWS]
            hashes = who.people[rows].astype(">u8").tobytes()
            named = [
                (
                    change,
                    contact_id,
                    hashes[16 * place : 16 * place + 16].hex(),
                    who.names[provider],
                    str(_ABSENCES[absence]),
                    "|".join(reason_names(reasons)),
                )
                for place, (contact_id, provider, absence, reasons) in enumerate(
                    zip(
                        who.contact_ids[rows].tolist(),
                        who.providers[rows].tolist(),
                        found.absence[rows].tolist(),
                        found.reasons[rows].tolist(),
                        strict=True,
                    )
                )
            ]
            yield named if connection is None else _with_addresses(named, connection)


def _with_addresses(named: list[tuple[Any, ...]], connection: Connection) -> list[tuple[Any, ...]]:
    ids = [row[1] for row in named if row[1]]
    known = {row.id: row for row in _contacts(connection, ids, contacts.c.address_hash, contacts.c.address_given)}
    return [(*row, _address(known.get(row[1]), row[2])) for row in named]


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
