"""Back up an installation into one file, and restore it where there is none.

A tar with the mode 0600, **not encrypted**: it holds every address, and the keys.

    manifest.json            format, release, tables' revision, rows, and SHA-256 of every other member
    database/<table>.jsonl.gz
    keys/identity.key token.key dkim/…
    storage/…                snapshots, settled ledgers, bundles; only with ``storage=True``
"""

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection, Engine, inspect, select, update

from mailer_lib.contacts import attributes
from mailer_lib.database import audit, dump, migrate
from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import campaigns, sending_domains, sends
from mailer_lib.settings import Settings
from mailer_lib.shard.store import S3Path, at_once, store
from mailer_lib.terms import SendState

FORMAT = 1
_MANIFEST = "manifest.json"
_FOLDERS = ("database", "keys", "storage")
_KEY_FILES = ("keys/identity.key", "keys/token.key")
_LIVE = (SendState.FREEZING, SendState.AWAITING_APPROVAL, SendState.APPROVED, SendState.RUNNING, SendState.JUDGING)


class BackupError(RuntimeError):
    """A backup can't be made or restored; the sentence says why, and what to do."""


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: int
    created_at: datetime
    revision: str  # of the tables
    rows: dict[str, int]
    storage: bool
    bucket: bool = False  # the snapshot store was one
    sha256: dict[str, str]  # by member
    live_sends: tuple[str, ...] = ()  # campaign#edition, not final when the backup was taken
    keys_elsewhere: tuple[str, ...] = ()  # references to DKIM keys outside home/keys: back those up yourself


def create(
    engine: Engine, settings: Settings, path: Path, *, storage: bool = False, on_rows: Callable[[int], None]
) -> Manifest:
    """Write the backup to ``path``, whole or not at all.

    Raises:
        BackupError: there is such a file already, or the snapshot store changed meanwhile.
        StoreError: its bucket can't be reached.
        MigrationError, SettingsError: the tables aren't those of this release, or a key is missing.
    """
    if path.exists():
        raise BackupError(f"{path} exists; a backup never overwrites a file")
    keys = {"identity.key": settings.identity().secret, "token.key": settings.tokens()}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as work:  # mode 0700
        folder = Path(work) / "database"
        folder.mkdir()
        rows = dump.dump(engine, folder, on_rows)
        members = [(f"database/{file.name}", file) for file in sorted(folder.iterdir())]
        for name, secret in keys.items():  # the keys in force, wherever they were configured
            file = Path(work) / name
            file.write_text(secret.hex() + "\n")
            members.append((f"keys/{name}", file))
        members += [m for m in _files(settings.keys_dir, "keys") if m[0] not in _KEY_FILES]
        if storage:
            members += list(_files(_storage_at_hand(settings, Path(work) / "storage"), "storage"))
        live, elsewhere = _remarks(engine)
        manifest = Manifest(
            format=FORMAT,
            created_at=now(),
            revision=migrate.head(),
            rows=rows,
            storage=storage,
            bucket=storage and settings.bucket is not None,
            sha256={name: _sha256(file) for name, file in members},
            live_sends=live,
            keys_elsewhere=elsewhere,
        )
        target = Path(work) / "backup.tar"
        target.touch(mode=0o600)
        with target.open("wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                _add(tar, _MANIFEST, io.BytesIO(manifest.model_dump_json(indent=1).encode()))
                for name, file in members:
                    with file.open("rb") as content:
                        _add(tar, name, content)
            raw.flush()
            os.fsync(raw.fileno())
        try:
            os.link(target, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            raise BackupError(f"{path} exists; a backup never overwrites a file") from None
    return manifest


def verify(path: Path) -> Manifest:
    """Read the whole backup and compare every checksum.

    Raises:
        BackupError: it isn't one, it is damaged, or it is of a newer release.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            manifest = _manifest(tar, path)
            seen = {}
            for member in tar:
                _check_name(member)
                content = tar.extractfile(member)
                assert content is not None
                seen[member.name] = _digest(content)
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(f"{path} isn't a whole backup: {error}") from None
    seen.pop(_MANIFEST, None)
    if seen != manifest.sha256:
        wrong = sorted(name for name in {*seen, *manifest.sha256} if seen.get(name) != manifest.sha256.get(name))
        raise BackupError(f"{path} is damaged: {', '.join(wrong[:5])} {'…' if len(wrong) > 5 else ''}".rstrip())
    return manifest


def restore(engine: Engine, settings: Settings, path: Path, *, actor: str, on_rows: Callable[[int], None]) -> Manifest:
    """Put the backup back into an installation that has neither keys nor tables nor a snapshot store.

    Sends that weren't finished become stopped: what was sent after the backup is not known here, and must not be sent
    again by somebody who doesn't know that.

    Raises:
        BackupError: something is there already, or the backup can't be used. Nothing has been written then.
    """
    manifest = verify(path)
    if manifest.bucket and settings.bucket is None:
        raise BackupError(
            "the backup holds the snapshot store of a bucket, where some things have other names than in a folder: set "
            "MAILFLEET_STORAGE_URL to an empty bucket or prefix"
        )
    _check_empty(engine, settings)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=settings.home, prefix=".restore.") as work, tarfile.open(path, "r:") as tar:
        _extract(tar, Path(work))
        _check_configured_keys(settings, Path(work) / "keys")

        def finish(connection: Connection) -> None:
            connection.execute(
                update(sends)
                .where(sends.c.state.in_(_LIVE))
                .values(state=SendState.STOPPED, claim=None, claimed_at=None, reason=_reason(manifest))
            )
            audit.record(connection, actor, "restore", "backup", {"created_at": manifest.created_at.isoformat()})

        rows = dump.load(engine, Path(work) / "database", manifest.revision, on_rows, finish)
        if rows != manifest.rows:
            raise BackupError(f"{path} holds other row counts than its manifest says; the database is not to be used")
        attributes.restore_indexes(engine)
        if manifest.storage:
            _restore_storage(settings, Path(work) / "storage")
        settings.storage.mkdir(parents=True, exist_ok=True)
        settings.jobs_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            settings.keys_dir.rmdir()
        shutil.move(Path(work) / "keys", settings.keys_dir)  # last: with its keys an installation is complete
        for folder, _, names in os.walk(settings.keys_dir):
            Path(folder).chmod(0o700)
            for name in names:
                (Path(folder) / name).chmod(0o600)
    return manifest


def _storage_at_hand(settings: Settings, work: Path) -> Path:
    """The snapshot store as a folder; a bucket's objects are copied to ``work``, but for half-built snapshots."""
    root = store(settings)
    if isinstance(root, Path):
        return root
    work.mkdir()

    def copy(item: S3Path) -> None:
        target = work / item.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            item.read_file(target)
        except FileNotFoundError:
            raise BackupError(f"{item} was removed while the backup was taken; take it again") from None

    at_once(copy, [item for item in root.files() if not _half_built(item.relative_to(root))])
    return work


def _half_built(name: PurePath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _restore_storage(settings: Settings, restored: Path) -> None:
    root = store(settings)
    if isinstance(root, Path):
        root.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            root.rmdir()
        if restored.exists():  # an empty store has no member
            shutil.move(restored, root)
        return
    at_once(lambda member: (root / member[0]).write_file(member[1]), [*_files(restored)])


def _reason(manifest: Manifest) -> str:
    return (
        f"restored from a backup of {manifest.created_at:%Y-%m-%d %H:%M} UTC; what was sent after that isn't "
        "known here, so triggering it again may mail people twice"
    )


def _check_empty(engine: Engine, settings: Settings) -> None:
    for what, folder in (("keys", settings.keys_dir), ("a snapshot store", settings.storage)):
        if folder.is_dir() and any(folder.iterdir()):
            raise BackupError(f"{folder} holds {what} already; restore into an empty MAILFLEET_HOME")
    root = store(settings)
    if isinstance(root, S3Path) and root.children():
        raise BackupError(f"{root} holds a snapshot store already; restore into an empty bucket or prefix")
    with read(engine) as connection:
        if inspect(connection).get_table_names():
            raise BackupError("the database has tables already; restore into an empty one")


def _check_configured_keys(settings: Settings, folder: Path) -> None:
    for name, configured in (("identity", settings.identity_key), ("token", settings.token_key)):
        saved = (folder / f"{name}.key").read_text().strip()
        if configured is not None and configured.get_secret_value().lower() != saved:
            raise BackupError(
                f"MAILFLEET_{name.upper()}_KEY isn't the key of this backup, so suppressions and links wouldn't match: "
                "unset it"
            )


def _remarks(engine: Engine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    with read(engine) as connection:
        running = connection.execute(
            select(campaigns.c.name, sends.c.edition)
            .join(campaigns)
            .where(sends.c.state.in_(_LIVE))
            .order_by(sends.c.id)
        )
        live = tuple(f"{row.name}#{row.edition}" for row in running)
        references = connection.execute(select(sending_domains.c.dkim_key_ref)).scalars().all()
    return live, tuple(sorted(r for r in references if not r.startswith("file:keys/")))


def _files(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Regular files below ``folder``; half-built snapshots are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_file() and not path.is_symlink() and not name.startswith("."):
                yield (PurePosixPath(prefix) / path.relative_to(folder)).as_posix(), path


def _add(tar: tarfile.TarFile, name: str, content: io.BufferedIOBase) -> None:
    member = tarfile.TarInfo(name)
    member.size = content.seek(0, os.SEEK_END)
    member.mode = 0o600
    content.seek(0)
    tar.addfile(member, content)


def _manifest(tar: tarfile.TarFile, path: Path) -> Manifest:
    first = tar.next()
    content = tar.extractfile(first) if first is not None and first.name == _MANIFEST else None
    if content is None:
        raise BackupError(f"{path} isn't a backup of Mailfleet: {_MANIFEST} isn't its first member")
    try:
        manifest = Manifest.model_validate_json(content.read())
    except ValidationError:
        raise BackupError(f"{path}: its {_MANIFEST} can't be read") from None
    if manifest.format > FORMAT or manifest.revision > migrate.head():
        raise BackupError(f"{path} was made by a newer release; restore it with that one")
    return manifest


def _check_name(member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name).parts
    inside = member.name == _MANIFEST or (len(parts) > 1 and parts[0] in _FOLDERS and ".." not in parts)
    if not member.isfile() or not inside:
        raise BackupError(f"the backup holds {member.name!r}, which no backup of Mailfleet has; it isn't restored")


def _extract(tar: tarfile.TarFile, target: Path) -> None:
    for member in tar:
        _check_name(member)
        content = tar.extractfile(member)
        assert content is not None
        path = target / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := content.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
