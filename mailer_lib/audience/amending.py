"""People are blanked in a published snapshot: erased on their request, or all of them when it has expired.

A row's place in its shard is its identity in leases and ledgers, so a row is never removed. It keeps the keyed hashes,
mailbox provider and variant, which ledgers and books need, and loses everything else (docs/decisions/0303).

    1  a file beside the old one, under a new name, for each file concerned; then manifest.next.json, all fsynced
    2  one transaction: shards.path and sha256, snapshots.manifest_sha256
    3  manifest.next.json becomes manifest.json; the old files are removed

A shard with a live lease is left as it is, in (2), and named in the answer. Killed anywhere, the next call on that
snapshot finishes (3) or clears (1) away.
"""

import fcntl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine, exists, select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.files import replace_file, sha256_of, sync_folder
from mailer_lib.audience.manifest import MANIFEST_FILE, Amendment, FileEntry, Manifest, PeopleEntry, ShardEntry
from mailer_lib.audience.people_files import people_table, write_people
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.database.engine import now, read
from mailer_lib.database.lock import named_lock
from mailer_lib.database.retry import write_again
from mailer_lib.database.schema import leases, sends, shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.files import shard_table, write_parquet, write_shard
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.shard.store import StorePath, arrow_source, name_below, store
from mailer_lib.terms import ExclusionReason, LeaseState, ShardState, SnapshotState

ERASED, EXPIRED = "erased", "expired"
NEXT_FILE = "manifest.next.json"
LOCK_WAIT_S = 600
_ERASED_ROW = int(ExclusionReason.ERASED)
_BLANK: dict[str, Any] = {
    "contact_id": 0, "address": "", "domain": "", "given_name": None, "family_name": None, "locale": None,
    "timezone": None,
}  # fmt: skip


@dataclass(frozen=True)
class Amended:
    """``waiting``: numbers of shards that a server works on now; they must be amended when it is through."""

    rows: int = 0
    files: int = 0
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Change:
    old: FileEntry
    new: FileEntry
    rows: int


def blank_rows(table: pa.Table, people: Collection[bytes] | None) -> tuple[pa.Table, int]:
    """A shard's table with the rows of these address hashes (None: all rows) blanked, and how many weren't yet."""
    chosen = pc.not_equal(table.column("address"), pa.scalar(""))
    if people is not None:
        chosen = pc.and_(chosen, _theirs(table, people))
    rows = chosen.to_pylist().count(True)
    if not rows:
        return table, 0
    for place, field in enumerate(table.schema):
        if field.name in _BLANK or field.name.startswith(ATTRIBUTE_PREFIX):
            nothing = pa.scalar(_BLANK.get(field.name), field.type)
            table = table.set_column(place, field, pc.if_else(chosen, nothing, table.column(place)))
    return table, rows


def blank_excluded(table: pa.Table, people: Collection[bytes] | None) -> tuple[pa.Table, int]:
    """Likewise for excluded people. An erased one was left out for being erased, from now on, and for nothing else."""
    return _blanked(table, people, {"contact_id": 0} if people is None else {"contact_id": 0, "reasons": _ERASED_ROW})


def blank_ids(table: pa.Table, people: Collection[bytes] | None) -> tuple[pa.Table, int]:
    """Likewise for a people file."""
    return _blanked(table, people, {"contact_id": 0})


def _blanked(table: pa.Table, people: Collection[bytes] | None, values: Mapping[str, int]) -> tuple[pa.Table, int]:
    """Rows of these people that have a contact id get these values."""
    chosen = pc.not_equal(table.column("contact_id"), pa.scalar(0, pa.int64()))
    if people is not None:
        chosen = pc.and_(chosen, _theirs(table, people))
    rows = int(chosen.to_numpy().sum())
    if not rows:
        return table, 0
    for name, value in values.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        nothing = pa.scalar(value, field.type)
        table = table.set_column(place, field, pc.if_else(chosen, nothing, table.column(place)))
    return table, rows


def amend(engine: Engine, settings: Settings, snapshot_id: int, people: Collection[bytes] | None, why: str) -> Amended:
    """Blank these people (address hashes; None: everybody) in one published snapshot. Calling it again changes nothing.

    Raises:
        SnapshotError: it isn't published, or its files can't be read.
    """
    with read(engine) as connection:
        row = connection.execute(select(snapshots).where(snapshots.c.id == snapshot_id)).one()
    if row.state != SnapshotState.PUBLISHED:
        raise SnapshotError(f"{row.path} isn't published")
    folder = store(settings) / row.path
    with _lock(engine, settings.storage / row.path, snapshot_id):
        _recover(engine, folder, snapshot_id)
        manifest = manifests.load(folder)
        number = len(manifest.amendments) + 1
        touched = _shards_of(manifest, people)
        with read(engine) as connection:
            busy = _busy(connection, snapshot_id)
        at = now()
        changes = [
            change
            for entry in (*touched, *manifest.excluded, *manifest.people)
            if not (isinstance(entry, ShardEntry) and entry.number in busy)
            if (change := _rewrite(folder, entry, people, number)) is not None
        ]
        waiting = {e.number for e in touched if e.number in busy and _concerned(folder, e, people)}
        done: list[_Change] = []
        if changes:
            done = write_again(
                engine, lambda c: _commit(c, folder, snapshot_id, manifest, changes=changes, at=at, why=why)
            )
        waiting |= {c.old.number for c in changes if c not in done and isinstance(c.old, ShardEntry)}
        _recover(engine, folder, snapshot_id)
    rows = sum(change.rows for change in done if not isinstance(change.old, PeopleEntry))
    return Amended(rows, len(done), tuple(sorted(waiting)))


def _theirs(table: pa.Table, people: Collection[bytes]) -> Any:
    return pc.is_in(table.column("address_hash"), value_set=pa.array(list(people), pa.binary(16)))


def _shards_of(manifest: Manifest, people: Collection[bytes] | None) -> list[ShardEntry]:
    if people is None:
        return list(manifest.shards)
    numbers = {manifest.shard_of(person) for person in people}
    return [entry for entry in manifest.shards if entry.number % manifest.shard_count in numbers]


def _busy(connection: Connection, snapshot_id: int) -> set[int]:
    """Numbers of the shards that have a live lease."""
    query = select(shards.c.number).where(shards.c.snapshot_id == snapshot_id, ~_at_rest())
    return set(connection.scalars(query))


def _at_rest() -> Any:
    """Nobody has a copy of the shard's file that he still needs."""
    live = exists().where(leases.c.shard_id == shards.c.id, leases.c.state == LeaseState.ACTIVE)
    return shards.c.state.in_((ShardState.OPEN, ShardState.SETTLED)) & ~live


def _rewrite(folder: StorePath, entry: FileEntry, people: Collection[bytes] | None, number: int) -> _Change | None:
    kind = _kind(entry)
    table, rows = kind.blank(kind.read(folder / entry.path), people)
    if not rows:
        return None
    old = PurePosixPath(entry.path)
    stem = "part-" if isinstance(entry, ShardEntry) else f"{old.stem.split('.')[0]}."
    new = str(old.with_name(f"{stem}{number}{old.suffix}"))
    sha256 = kind.write(folder / new, table)
    sync_folder((folder / new).parent)
    return _Change(entry, entry.model_copy(update={"path": new, "sha256": sha256}), rows)


@dataclass(frozen=True)
class _Kind:
    """How files of one kind are amended."""

    read: Callable[[StorePath], pa.Table]
    blank: Callable[[pa.Table, Collection[bytes] | None], tuple[pa.Table, int]]
    write: Callable[[StorePath, pa.Table], str]


def _kind(entry: FileEntry) -> _Kind:
    if isinstance(entry, ShardEntry):
        return _Kind(shard_table, blank_rows, write_shard)
    if isinstance(entry, PeopleEntry):
        return _Kind(people_table, blank_ids, write_people)
    return _Kind(lambda path: pq.read_table(arrow_source(path)), blank_excluded, write_parquet)


def _concerned(folder: StorePath, entry: ShardEntry, people: Collection[bytes] | None) -> bool:
    return blank_rows(shard_table(folder / entry.path), people)[1] > 0


def _commit(
    connection: Connection,
    folder: StorePath,
    snapshot_id: int,
    manifest: Manifest,
    *,
    changes: list[_Change],
    at: datetime,
    why: str,
) -> list[_Change]:
    """Point the database at the new files, but for shards that were leased meanwhile; returns what was changed."""
    done = []
    for change in changes:
        if isinstance(change.old, ShardEntry):
            mine = update(shards).where(
                shards.c.snapshot_id == snapshot_id,
                shards.c.number == change.old.number,
                shards.c.path == change.old.path,
                _at_rest(),
            )
            changed = connection.execute(mine.values(path=change.new.path, sha256=change.new.sha256)).rowcount
            if not changed:
                continue
        done.append(change)
    amended = _amended(manifest, done, at, why)
    replace_file(folder / NEXT_FILE, amended.dump())  # before the commit: what the database names must exist
    before, after = manifests.sha256(manifest), manifests.sha256(amended)
    mine = update(snapshots).where(snapshots.c.id == snapshot_id, snapshots.c.manifest_sha256 == before)
    if connection.execute(mine.values(manifest_sha256=after)).rowcount != 1:
        raise SnapshotError("the snapshot was amended by another process at the same moment; run it again")
    _keep_approval(connection, snapshot_id, before, after)
    return done


def _amended(manifest: Manifest, changes: list[_Change], at: datetime, why: str) -> Manifest:
    new = {change.old.path: change.new for change in changes}
    made = [
        Amendment(
            at=at,
            why=why,
            rows=change.rows,
            was=FileEntry(path=change.old.path, rows=change.old.rows, sha256=change.old.sha256),
            path=change.new.path,
            sha256=change.new.sha256,
        )
        for change in changes
    ]
    return manifest.model_copy(
        update={
            "shards": tuple(new.get(entry.path, entry) for entry in manifest.shards),
            "excluded": tuple(new.get(entry.path, entry) for entry in manifest.excluded),
            "people": tuple(new.get(entry.path, entry) for entry in manifest.people),
            "amendments": (*manifest.amendments, *made),
        }
    )


def _keep_approval(connection: Connection, snapshot_id: int, before: str, after: str) -> None:
    """An approval covers the amended snapshot: nobody is in it who wasn't, and the message is the same."""
    send = connection.execute(
        select(sends.c.id, sends.c.content_hash, sends.c.approval_digest)
        .join_from(snapshots, sends, snapshots.c.send_id == sends.c.id)
        .where(snapshots.c.id == snapshot_id)
    ).one()
    if send.content_hash and send.approval_digest == manifests.approval_digest(send.content_hash, before):
        kept = manifests.approval_digest(send.content_hash, after)
        connection.execute(update(sends).where(sends.c.id == send.id).values(approval_digest=kept))


def _recover(engine: Engine, folder: StorePath, snapshot_id: int) -> None:
    """Finish an amendment that was committed, clear away one that wasn't: whatever file the manifest doesn't list."""
    with read(engine) as connection:
        wanted = connection.scalar(select(snapshots.c.manifest_sha256).where(snapshots.c.id == snapshot_id))
    following = folder / NEXT_FILE
    if following.exists():
        if sha256_of(following) == wanted:
            replace_file(folder / MANIFEST_FILE, following.read_bytes())
        following.unlink()
    manifest = manifests.load(folder)
    if manifests.sha256(manifest) != wanted:
        raise SnapshotError(f"{folder / MANIFEST_FILE} isn't the one that the database knows; restore it first")
    listed = {entry.path for entry in manifest.files}
    for pattern in ("shard=*/part-*.parquet", "excluded/*.parquet", "people/*.arrow"):
        for path in folder.glob(pattern):
            if name_below(path, folder) not in listed:
                path.unlink()
                sync_folder(path.parent)


@contextmanager
def _lock(engine: Engine, folder: Path, snapshot_id: int) -> Iterator[None]:
    """Nobody else amends this snapshot: on this machine (``folder``), nor on another that has the same database."""
    folder.parent.mkdir(parents=True, exist_ok=True)  # with a store on S3 the folder needn't be here
    name = f"mailfleet.amend.{snapshot_id}.{engine.url.database}"[:64]
    with (folder.parent / f".amend-{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with named_lock(engine, name, LOCK_WAIT_S) as got:
            if not got:
                raise SnapshotError(
                    f"another machine has been amending this snapshot for {LOCK_WAIT_S} s; try again when it is done"
                )
            yield
