"""Is a published snapshot what its manifest says, and does it keep its promises?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.files import sha256_of
from mailer_lib.audience.freezing import EXCLUDED_SCHEMA, column_of
from mailer_lib.audience.manifest import PEOPLE_FOLDER, FileEntry, Manifest, ShardEntry
from mailer_lib.audience.people_files import SCHEMA, people_table
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.shard.files import ShardError, shard_table
from mailer_lib.shard.store import StorePath, arrow_source, name_below
from mailer_lib.terms import ExclusionReason

_HASH = np.dtype("V16")
_NOBODY: NDArray[np.void] = np.empty(0, _HASH)
_NO_IDS: NDArray[np.int64] = np.empty(0, np.int64)


def verify(folder: StorePath) -> list[str]:
    """Problems of a published snapshot, as sentences; none: it is sound.

    An amended file is sound when the manifest's amendments lead from the published checksum to the one it has.

    Checked: every file's presence, checksum, columns and rows; each row in its own shard; no message key twice in all
    shards; nobody both in a shard and excluded (but for a second contact with the same address); the people files hold
    whom the shards hold; the counts.
    """
    try:
        manifest = manifests.load(folder)
    except SnapshotError as error:
        return [str(error)]
    return list(_problems(folder, manifest))


def _problems(folder: StorePath, manifest: Manifest) -> Iterator[str]:
    yield from _strangers(folder, manifest)
    yield from _amendment_problems(manifest)
    people: list[NDArray[np.void]] = []
    keys: list[NDArray[np.void]] = []
    ids: list[NDArray[np.int64]] = []
    rows = 0
    for entry in manifest.shards:
        found = _Found(*_damage(folder, entry))
        yield from found.problems
        if found.readable:
            try:
                table = shard_table(folder / entry.path)
            except ShardError as error:
                yield str(error)
                continue
            yield from _shard_problems(entry, table, manifest)
            people.append(_column(table, "address_hash"))
            keys.append(_column(table, "message_key"))
            ids.append(table.column("contact_id").to_numpy())
            rows += table.num_rows
    barred: list[NDArray[np.void]] = []
    excluded = 0
    for file in manifest.excluded:
        found = _Found(*_damage(folder, file))
        yield from found.problems
        if found.readable:
            table = pq.read_table(arrow_source(folder / file.path))
            if table.schema.names != EXCLUDED_SCHEMA.names or table.num_rows != file.rows:
                yield f"{file.path}: has {table.num_rows} rows of {table.schema.names}, not {file.rows}"
                continue
            yield from _unreasoned(file, table)
            excluded += table.num_rows
            same_address = np.asarray(column_of(table, "reasons")) & int(ExclusionReason.DUPLICATE)
            barred.append(_column(table, "address_hash")[same_address == 0])
    yield from _people_problems(folder, manifest, _join(people), np.concatenate(ids) if ids else _NO_IDS)
    yield from _person_problems(_join(people), _join(keys), _join(barred))
    counts = manifest.counts
    if (rows, excluded, rows + excluded) != (counts.frozen, counts.excluded, counts.matching):
        yield (
            f"the files hold {rows} frozen and {excluded} excluded people; the manifest says {counts.frozen} and "
            f"{counts.excluded} of {counts.matching}"
        )


@dataclass(frozen=True)
class _Found:
    readable: bool
    problems: tuple[str, ...]


def _damage(folder: StorePath, entry: FileEntry) -> tuple[bool, tuple[str, ...]]:
    path = folder / entry.path
    if not path.is_file():
        return False, (f"{entry.path}: the file is missing",)
    if sha256_of(path) != entry.sha256:
        return False, (f"{entry.path}: the checksum isn't the manifest's; the file was changed",)
    return True, ()


def _strangers(folder: StorePath, manifest: Manifest) -> Iterator[str]:
    known = {entry.path for entry in manifest.files}
    for pattern in ("shard=*/*", "excluded/*", f"{PEOPLE_FOLDER}/*"):
        paths: Iterable[StorePath] = folder.glob(pattern)
        for name in sorted(name_below(path, folder) for path in paths):
            if name not in known:
                yield f"{name}: the manifest doesn't know this file"


def _amendment_problems(manifest: Manifest) -> Iterator[str]:
    """The amendments of a file follow each other, checksum by checksum, and end at what the manifest lists."""
    listed = {entry.path: entry.sha256 for entry in manifest.files}
    made: dict[str, str] = {}
    for amendment in manifest.amendments:
        was = amendment.was
        if made.pop(was.path, was.sha256) != was.sha256:
            yield f"{amendment.path}: was amended from a file with another checksum than the amendment before left"
        made[amendment.path] = amendment.sha256
    for path, sha256 in made.items():
        if listed.get(path) != sha256:
            yield f"{path}: the manifest's checksum isn't the one that its last amendment left"


def _shard_problems(entry: ShardEntry, table: pa.Table, manifest: Manifest) -> Iterator[str]:
    if table.num_rows != entry.rows:
        yield f"{entry.path}: has {table.num_rows} rows, not {entry.rows}"
    columns = [(f.name, str(f.type)) for f in table.schema]
    if columns != [(c.name, c.type) for c in manifest.columns]:
        yield f"{entry.path}: its columns aren't those of the manifest"
    prefix = _column(table, "address_hash").view(">u4").reshape(-1, 4)[:, 0]
    astray = int(np.count_nonzero(prefix % manifest.shard_count != entry.number % manifest.shard_count))
    if astray:
        yield f"{entry.path}: {astray} rows belong to other shards"


def _unreasoned(entry: FileEntry, table: pa.Table) -> Iterator[str]:
    without = sum(1 for mask in column_of(table, "reasons") if not mask)
    if without:
        yield f"{entry.path}: {without} rows have no reason"


def _people_problems(
    folder: StorePath, manifest: Manifest, frozen: NDArray[np.void], ids: NDArray[np.int64]
) -> Iterator[str]:
    """The people files hold whom the shards hold. An amendment may have blanked them before a leased shard."""
    hashes: list[NDArray[np.void]] = []
    contacts: list[NDArray[np.int64]] = []
    for entry in manifest.people:
        found = _Found(*_damage(folder, entry))
        yield from found.problems
        if not found.readable:
            return
        try:
            table = people_table(folder / entry.path)
        except pa.ArrowInvalid as error:
            yield f"{entry.path}: can't be read as Arrow IPC: {error}"
            return
        if table.schema != SCHEMA or table.num_rows != entry.rows:
            yield f"{entry.path}: has {table.num_rows} rows of {table.schema.names}, not {entry.rows}"
            return
        hashes.append(_column(table, "address_hash"))
        contacts.append(table.column("contact_id").to_numpy())
    listed, listed_ids = _join(hashes), np.concatenate(contacts) if contacts else _NO_IDS
    mine, theirs = (np.argsort(_comparable(each), kind="stable") for each in (frozen, listed))
    if not np.array_equal(frozen[mine], listed[theirs]):
        yield f"{PEOPLE_FOLDER}/ holds {len(listed)} people who aren't the {len(frozen)} of the shards"
        return
    differ = ids[mine] != listed_ids[theirs]
    if manifest.amendments:
        differ &= listed_ids[theirs] != 0
    wrong = int(np.count_nonzero(differ))
    if wrong:
        yield f"{PEOPLE_FOLDER}/ has another contact id than the shard for {wrong} people"


def _person_problems(people: NDArray[np.void], keys: NDArray[np.void], barred: NDArray[np.void]) -> Iterator[str]:
    twice = len(keys) - len(_unique(keys))
    if twice:
        yield f"{twice} message keys stand in more than one row"
    both = len(np.intersect1d(_comparable(people), _comparable(barred)))
    if both:
        yield f"{both} people are both in a shard and excluded"


def _column(table: pa.Table, name: str) -> NDArray[np.void]:
    values: Iterable[bytes] = column_of(table, name)
    return np.frombuffer(b"".join(values), _HASH)


def _join(parts: list[NDArray[np.void]]) -> NDArray[np.void]:
    return np.concatenate(parts) if parts else _NOBODY


def _comparable(hashes: NDArray[np.void]) -> NDArray[np.void]:
    """numpy sorts structured values, but not bare void ones."""
    return np.ascontiguousarray(hashes).view([("high", ">u8"), ("low", ">u8")]).reshape(-1)


def _unique(hashes: NDArray[np.void]) -> NDArray[np.void]:
    return np.unique(_comparable(hashes))
