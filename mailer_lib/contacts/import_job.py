"""How far an import has come, kept with what it stored: a re-run of the same file with the same options goes on there.

The position is committed in the transaction of each batch. Two files grow beside it, and are cut back to the length
that the position names: the rejects, and the addresses seen so far (8 bytes each, of their keyed hash). One import of a
file at a time keeps a position, held by a lock on the second file; another at the same time just runs without.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection, Engine, delete, insert, select, update

from mailer_lib.contacts.seen import PREFIX_BYTES
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import import_jobs

STALE_AFTER = timedelta(days=7)  # then the file is imported from its beginning: too much may have happened since


@dataclass(frozen=True)
class Position:
    """Where an import stands."""

    rows: int = 0
    seen: int = 0
    rejects: Path | None = None
    rejects_bytes: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


class ImportJob:
    """One run of an import. ``started`` is when its first run began."""

    def __init__(self, job_id: int | None, started: datetime, position: Position, seen: BinaryIO | None) -> None:
        self._id = job_id
        self._seen = seen
        self.started = started
        self.position = position

    @property
    def tracked(self) -> bool:
        return self._id is not None

    def seen_before(self) -> bytes:
        """The prefixes noted by the runs before."""
        if self._seen is None:
            return b""
        self._seen.seek(0)
        return self._seen.read()

    def note_seen(self, prefixes: bytes) -> None:
        """Before the batch that the position counts is committed."""
        if self._seen is not None and prefixes:
            self._seen.write(prefixes)
            self._seen.flush()
            os.fsync(self._seen.fileno())

    def save(self, connection: Connection, position: Position) -> None:
        """In the transaction of the batch. Somebody else may have begun the file anew; then this run isn't tracked."""
        if self._id is None:
            return
        changed = connection.execute(
            update(import_jobs)
            .where(import_jobs.c.id == self._id, import_jobs.c.rows <= position.rows)
            .values(**_columns(position))
        )
        if changed.rowcount == 0:
            self._id = None

    def finish(self, connection: Connection) -> None:
        """The file is at its end."""
        connection.execute(delete(import_jobs).where(import_jobs.c.id == self._id))


def fingerprint(path: Path, *said: object) -> str:
    """Of a file and of all that decides what becomes of it (``repr``); not of its name or its date."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(repr((content, *said)).encode()).hexdigest()


@contextlib.contextmanager
def open_job(engine: Engine, folder: Path, mark: str) -> Iterator[ImportJob]:
    """The job of the file with this fingerprint: a new one, or the one that was interrupted."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{mark}.seen"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as seen:
        try:
            fcntl.flock(seen, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # the same file is being imported now
            yield ImportJob(None, now(), Position(), None)
            return
        with write(engine) as connection:
            job = _resumed(connection, mark, seen) or _begun(connection, mark)
        seen.truncate(job.position.seen * PREFIX_BYTES)
        seen.seek(0, os.SEEK_END)
        yield ImportJob(job.id, job.started, job.position, seen)
        path.unlink(missing_ok=True)  # not after an exception: then it is needed


@dataclass(frozen=True)
class _Found:
    id: int
    started: datetime
    position: Position


def _resumed(connection: Connection, mark: str, seen: BinaryIO) -> _Found | None:
    row = connection.execute(select(import_jobs).where(import_jobs.c.fingerprint == mark)).first()
    if row is None:
        return None
    rejects = Path(row.rejects) if row.rejects is not None else None
    sound = row.seen * PREFIX_BYTES <= os.fstat(seen.fileno()).st_size and (
        rejects is None or (rejects.exists() and rejects.stat().st_size >= row.rejects_bytes)
    )
    if not sound or row.updated_at < now() - STALE_AFTER:
        connection.execute(delete(import_jobs).where(import_jobs.c.id == row.id))
        return None
    return _Found(row.id, row.started_at, Position(row.rows, row.seen, rejects, row.rejects_bytes, dict(row.counts)))


def _begun(connection: Connection, mark: str) -> _Found:
    started, position = now(), Position()
    made = connection.execute(insert(import_jobs).values(fingerprint=mark, started_at=started, **_columns(position)))
    key = made.inserted_primary_key
    assert key is not None
    return _Found(int(key[0]), started, position)


def _columns(position: Position) -> dict[str, Any]:
    return {
        "rows": position.rows, "seen": position.seen, "rejects_bytes": position.rejects_bytes,
        "rejects": str(position.rejects) if position.rejects is not None else None, "counts": dict(position.counts),
        "updated_at": now(),
    }  # fmt: skip
