"""A backup restores into an empty installation, on either database, and finds the same people suppressed."""

import json
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, insert, select, text

from mailer_lib import backup
from mailer_lib.backup import BackupError
from mailer_lib.contacts import attributes
from mailer_lib.database import dump, generated, migrate
from mailer_lib.database.engine import now, open_engine, read, write
from mailer_lib.database.schema import (
    audit_log,
    campaigns,
    consent_events,
    contacts,
    lists,
    metadata,
    sends,
    suppressions,
)  # fmt: skip
from mailer_lib.fleet import domains, pools
from mailer_lib.settings import Settings, load_settings
from mailer_lib.shard.store import S3Path, store
from mailer_lib.terms import AttributeType, SendState, SuppressionReason
from tests.conftest import Ran

AGNES = "agnes.o'neil+häkan@example.org"


def _quiet(done: int) -> None:
    pass


@pytest.fixture
def lived_in(engine: Engine, settings: Settings) -> Engine:
    """A little of everything: a suppressed person, consent, a key, a send in mid-run, a snapshot file."""
    at = now()
    digest = settings.identity().address_hash(AGNES)
    with write(engine) as connection:
        connection.execute(insert(lists).values(id=1, name="newsletter", title="Fjord & Fern News", created_at=at))
        connection.execute(
            insert(contacts),
            [
                {
                    "address_given": f"Person{n}@example.org", "address": f"person{n}@example.org",
                    "address_hash": settings.identity().address_hash(f"person{n}@example.org"),
                    "domain": "example.org", "provider": "other", "given_name": "Zoë\t\"\\\n" if n % 2 else None,
                    "attributes": {"points": n / 3, "vip": n % 2 == 0, "city": "Tromsø"}, "created_at": at,
                    "updated_at": at,
                }
                for n in range(4500)
            ],
        )  # fmt: skip
        connection.execute(
            insert(suppressions).values(address_hash=digest, reason=SuppressionReason.COMPLAINED, created_at=at)
        )
        connection.execute(
            insert(consent_events).values(
                address_hash=digest, action="complained", occurred_at=at, recorded_at=at, method="arf"
            )
        )
        domains.add(connection, settings, "news.fjordfern.example", actor="test")
        pool_id = pools.ensure(connection, "main", actor="test")
        connection.execute(
            insert(campaigns).values(
                id=1, name="spring-sale", definition={}, list_id=1, pool_id=pool_id, created_at=at, updated_at=at,
                updated_by="test",
            )
        )  # fmt: skip
        connection.execute(
            insert(sends),
            [
                {"campaign_id": 1, "edition": "1", "mode": "send", "state": SendState.RUNNING, "created_at": at},
                {"campaign_id": 1, "edition": "2", "mode": "send", "state": SendState.FINISHED, "created_at": at},
            ],
        )
    shard = settings.storage / "snapshots" / "spring-sale" / "1" / "1" / "shard=0000" / "part-0.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(os.urandom(10_000))
    half_built = settings.storage / "snapshots" / "spring-sale" / "1" / ".building-2"
    half_built.mkdir()
    (half_built / "plan.json").write_text("{}")
    return engine


def _rows(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    with read(engine) as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lived_in: Engine
) -> Iterator[tuple[Settings, Engine]]:
    """Another machine: an empty home and an empty database. (After ``lived_in``: it changes the environment.)"""
    monkeypatch.setenv("MAILFLEET_HOME", str(tmp_path / "elsewhere"))
    if request.param == "mariadb":
        server = request.getfixturevalue("mariadb_server")
        server.execute("DROP DATABASE IF EXISTS elsewhere", "CREATE DATABASE elsewhere CHARACTER SET utf8mb4")
        monkeypatch.setenv("MAILFLEET_DATABASE_URL", server.url("elsewhere"))
    else:
        monkeypatch.delenv("MAILFLEET_DATABASE_URL", raising=False)
    load_settings.cache_clear()
    settings = load_settings()
    engine = open_engine(settings.url)
    yield settings, engine
    engine.dispose()


def test_the_same_person_is_suppressed_by_hash_after_a_restore_into_either_database(
    lived_in: Engine, settings: Settings, elsewhere: tuple[Settings, Engine], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.tar"
    backup.create(lived_in, settings, file, storage=True, on_rows=_quiet)
    new_settings, new_engine = elsewhere
    backup.restore(new_engine, new_settings, file, actor="test", on_rows=_quiet)

    digest = new_settings.identity().address_hash(AGNES)
    with read(new_engine) as connection:
        found = connection.execute(select(suppressions.c.reason).where(suppressions.c.address_hash == digest))
        assert found.scalars().all() == [SuppressionReason.COMPLAINED]
    assert new_settings.tokens() == settings.tokens()
    assert migrate.current(new_engine) == migrate.head()
    assert migrate.differences(new_engine) == []

    before, after = _rows(lived_in), _rows(new_engine)
    for name in before:
        if name not in ("sends", "audit_log"):
            assert after[name] == before[name], name
    assert after["audit_log"][:-1] == before["audit_log"]
    shard = "snapshots/spring-sale/1/1/shard=0000/part-0.parquet"
    assert (new_settings.storage / shard).read_bytes() == (settings.storage / shard).read_bytes()
    assert not list(new_settings.storage.glob("**/.building-*"))
    for path in new_settings.keys_dir.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert (new_settings.keys_dir / "dkim" / "news.fjordfern.example.mf1.pem").is_file()


def test_an_indexed_attribute_is_indexed_after_a_restore(
    lived_in: Engine, settings: Settings, elsewhere: tuple[Settings, Engine], tmp_path: Path
) -> None:
    with write(lived_in) as connection:
        attributes.declare(connection, "city", AttributeType.TEXT)
    attributes.index(lived_in, "city", actor="ann")
    backup.create(lived_in, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    new_settings, new_engine = elsewhere
    backup.restore(new_engine, new_settings, tmp_path / "fleet.tar", actor="test", on_rows=_quiet)
    assert migrate.differences(new_engine) == []
    with read(new_engine) as connection:
        found = (
            select(func.count())
            .select_from(contacts)
            .where(generated.generated_column("city", AttributeType.TEXT) == "Tromsø")
        )
        assert connection.scalar(found) == 4500


def test_after_a_restore_consent_is_still_append_only_and_ids_go_on(
    lived_in: Engine, settings: Settings, elsewhere: tuple[Settings, Engine], tmp_path: Path
) -> None:
    backup.create(lived_in, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    new_settings, new_engine = elsewhere
    backup.restore(new_engine, new_settings, tmp_path / "fleet.tar", actor="test", on_rows=_quiet)
    with pytest.raises(Exception, match="append-only"), write(new_engine) as connection:
        connection.execute(delete(consent_events))
    with write(new_engine) as connection:
        done = connection.execute(insert(lists).values(name="other", title="Other", created_at=now()))
        assert done.inserted_primary_key == (2,)


def test_a_send_in_mid_run_is_stopped_by_the_restore_and_a_finished_one_is_not(
    lived_in: Engine, settings: Settings, elsewhere: tuple[Settings, Engine], tmp_path: Path
) -> None:
    manifest = backup.create(lived_in, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    assert manifest.live_sends == ("spring-sale#1",)
    new_settings, new_engine = elsewhere
    backup.restore(new_engine, new_settings, tmp_path / "fleet.tar", actor="ann", on_rows=_quiet)
    with read(new_engine) as connection:
        states = connection.execute(select(sends.c.edition, sends.c.state, sends.c.reason).order_by(sends.c.id)).all()
        last = connection.execute(select(audit_log.c.actor, audit_log.c.action).order_by(audit_log.c.id.desc())).first()
    assert [(edition, state) for edition, state, _ in states] == [("1", "stopped"), ("2", "finished")]
    assert "may mail people twice" in states[0].reason
    assert last == ("ann", "restore")


def test_a_backup_is_its_owners_alone_and_never_overwrites(
    lived_in: Engine, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.tar"
    backup.create(lived_in, settings, file, on_rows=_quiet)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(BackupError, match="never overwrites"):
        backup.create(lived_in, settings, file, on_rows=_quiet)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_keys_from_the_environment_are_in_the_backup(
    sqlite_engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILFLEET_IDENTITY_KEY", "AB" * 32)
    load_settings.cache_clear()
    backup.create(sqlite_engine, load_settings(), tmp_path / "fleet.tar", on_rows=_quiet)
    with tarfile.open(tmp_path / "fleet.tar") as tar:
        content = tar.extractfile("keys/identity.key")
        assert content is not None
        assert content.read().strip() == b"ab" * 32


def test_a_dkim_key_that_is_elsewhere_is_named(
    sqlite_engine: Engine, settings: Settings, tmp_path: Path, mailfleet: Callable[..., Ran]
) -> None:
    domains.make_dkim_key(tmp_path / "own.pem")
    with write(sqlite_engine) as connection:
        domains.add(connection, settings, "a.example", key_ref=f"file:{tmp_path / 'own.pem'}", actor="test")
    assert "back it up yourself" in mailfleet("backup", "create", tmp_path / "fleet.tar").stderr


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["keys", "storage", "database"])
def test_nothing_that_exists_is_overwritten(
    lived_in: Engine, settings: Settings, elsewhere: tuple[Settings, Engine], tmp_path: Path, there: str
) -> None:
    backup.create(lived_in, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    new_settings, new_engine = elsewhere
    if there == "database":
        with write(new_engine) as connection:
            connection.execute(text("CREATE TABLE precious (x INTEGER)"))
    else:
        folder = new_settings.keys_dir if there == "keys" else new_settings.storage
        folder.mkdir(parents=True)
        (folder / "precious").write_text("x")
    with pytest.raises(BackupError, match="already"):
        backup.restore(new_engine, new_settings, tmp_path / "fleet.tar", actor="test", on_rows=_quiet)
    assert (migrate.current(new_engine) is None) and not (new_settings.keys_dir / "identity.key").exists()


def test_another_identity_key_in_the_environment_is_refused_before_anything_is_written(
    lived_in: Engine,
    settings: Settings,
    elsewhere: tuple[Settings, Engine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup.create(lived_in, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    monkeypatch.setenv("MAILFLEET_IDENTITY_KEY", "ab" * 32)
    load_settings.cache_clear()
    with pytest.raises(BackupError, match="MAILFLEET_IDENTITY_KEY isn't the key of this backup"):
        backup.restore(elsewhere[1], load_settings(), tmp_path / "fleet.tar", actor="test", on_rows=_quiet)
    assert migrate.current(elsewhere[1]) is None


def _in_bucket(variables: dict[str, str], prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The present settings, with that bucket as the snapshot store."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAILFLEET_STORAGE_URL", f"{variables['MAILFLEET_STORAGE_URL']}/{prefix}")
    load_settings.cache_clear()
    return load_settings()


def _objects(settings: Settings) -> dict[str, bytes]:
    root = store(settings)
    assert isinstance(root, S3Path)
    return {str(item.relative_to(root)): item.read_bytes() for item in root.files()}


@pytest.mark.s3
def test_a_bucket_is_backed_up_and_restored_into_another_one(
    sqlite_engine: Engine,
    settings: Settings,
    bucket_settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = _in_bucket(bucket_settings, "ours", monkeypatch)
    for name in ("snapshots/spring-sale/1/1-0a/manifest.json", "ledgers/7/0-120", "snapshots/.building-1/plan.json"):
        (store(ours) / name).write_bytes(name.encode())
    made = backup.create(sqlite_engine, ours, tmp_path / "fleet.tar", storage=True, on_rows=_quiet)
    assert (made.storage, made.bucket) == (True, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.tar", "home"], "no copy is left"
    expected = {name: content for name, content in _objects(ours).items() if ".building" not in name}
    assert len(expected) == 2

    monkeypatch.setenv("MAILFLEET_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("MAILFLEET_DATABASE_URL", raising=False)
    with pytest.raises(BackupError, match="holds a snapshot store already"):
        full = _in_bucket(bucket_settings, "ours", monkeypatch)
        backup.restore(open_engine(full.url), full, tmp_path / "fleet.tar", actor="test", on_rows=_quiet)
    theirs = _in_bucket(bucket_settings, "theirs", monkeypatch)
    engine = open_engine(theirs.url)
    assert backup.restore(engine, theirs, tmp_path / "fleet.tar", actor="test", on_rows=_quiet) == made
    engine.dispose()
    assert _objects(theirs) == expected
    assert theirs.identity() == settings.identity()


@pytest.mark.s3
def test_a_folder_moves_into_a_bucket_by_a_backup_but_not_the_other_way(
    sqlite_engine: Engine,
    settings: Settings,
    bucket_settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = settings.storage / "snapshots/spring-sale/1/1/shard=0000/part-0.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"recipients")
    backup.create(sqlite_engine, settings, tmp_path / "folder.tar", storage=True, on_rows=_quiet)
    monkeypatch.setenv("MAILFLEET_HOME", str(tmp_path / "elsewhere"))
    theirs = _in_bucket(bucket_settings, "theirs", monkeypatch)
    engine = open_engine(theirs.url)
    backup.restore(engine, theirs, tmp_path / "folder.tar", actor="test", on_rows=_quiet)
    assert _objects(theirs) == {"snapshots/spring-sale/1/1/shard=0000/part-0.parquet": b"recipients"}

    backup.create(engine, theirs, tmp_path / "bucket.tar", storage=True, on_rows=_quiet)
    engine.dispose()
    with pytest.raises(BackupError, match="set MAILFLEET_STORAGE_URL to an empty bucket"):
        backup.restore(sqlite_engine, settings, tmp_path / "bucket.tar", actor="test", on_rows=_quiet)


@pytest.mark.s3
def test_an_object_that_goes_while_a_backup_is_taken_is_named(
    sqlite_engine: Engine,
    settings: Settings,
    bucket_settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = _in_bucket(bucket_settings, "ours", monkeypatch)
    (store(ours) / "ledgers/7/0-120").write_bytes(b"a line\n")
    listed = S3Path.files

    def files(path: S3Path) -> list[S3Path]:
        return [*listed(path), path / "ledgers/7/120-240"]

    monkeypatch.setattr(S3Path, "files", files)
    with pytest.raises(BackupError, match="ledgers/7/120-240 was removed while the backup was taken; take it again"):
        backup.create(sqlite_engine, ours, tmp_path / "fleet.tar", storage=True, on_rows=_quiet)
    assert not (tmp_path / "fleet.tar").exists()


@pytest.fixture
def small(sqlite_engine: Engine, settings: Settings, tmp_path: Path) -> Path:
    backup.create(sqlite_engine, settings, tmp_path / "fleet.tar", on_rows=_quiet)
    return tmp_path / "fleet.tar"


def _rewritten(file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with tarfile.open(file) as tar:
        members = {m.name: (tar.extractfile(m) or pytest.fail()).read() for m in tar.getmembers()}
    change(members)
    other = file.with_name("other.tar")
    with tarfile.open(other, "w") as tar:
        for name, content in members.items():
            import io

            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return other


def test_a_whole_backup_verifies(small: Path, mailfleet: Callable[..., Ran]) -> None:
    ran = mailfleet("backup", "verify", small)
    assert (ran.code, ran.stderr) == (0, "")
    assert "whole" in ran.stdout


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update({"keys/token.key": b"00" * 32}), "damaged: keys/token.key"),
        (lambda m: m.pop("database/lists.jsonl.gz"), "damaged: database/lists.jsonl.gz"),
        (lambda m: m.update({"keys/extra": b""}), "damaged: keys/extra"),
        (lambda m: m.update({"../evil": b""}), "isn't restored"),
        (lambda m: m.update({"keys/../../evil": b""}), "isn't restored"),
        (lambda m: m.update({"/etc/evil": b""}), "isn't restored"),
        (lambda m: m.pop("manifest.json"), "isn't its first member"),
        (lambda m: m.update({"manifest.json": b"{}"}), "can't be read"),
        (lambda m: m.update({"manifest.json": _with(m["manifest.json"], revision="9999")}), "newer release"),
        (lambda m: m.update({"manifest.json": _with(m["manifest.json"], format=2)}), "newer release"),
    ],
)
def test_what_is_not_a_whole_backup_is_refused(
    small: Path, change: Callable[[dict[str, bytes]], None], says: str
) -> None:
    with pytest.raises(BackupError, match=says):
        backup.verify(_rewritten(small, change))


def _with(manifest: bytes, **values: object) -> bytes:
    return json.dumps(json.loads(manifest) | values).encode()


@given(cut=st.floats(min_value=0, max_value=1, exclude_max=True))
def test_a_cut_off_backup_is_refused(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = _cached_backup(tmp_path_factory).read_bytes()
    file = tmp_path_factory.getbasetemp() / "cut.tar"
    with tarfile.open(_cached_backup(tmp_path_factory)) as tar:
        end = max(member.offset_data + member.size for member in tar)  # what follows is filling
    file.write_bytes(whole[: min(int(end * cut), end - 1)])
    with pytest.raises(BackupError):
        backup.verify(file)


def _cached_backup(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "cut-off-backup"
    file = folder / "fleet.tar"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settings = Settings(home=folder / "home", identity_key="ab" * 32, token_key="cd" * 32)  # type: ignore[arg-type]
        engine = open_engine(f"sqlite:///{folder / 'mailfleet.db'}")
        migrate.upgrade(engine)
        backup.create(engine, settings, file, on_rows=_quiet)
        engine.dispose()
    return file


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, mailfleet: Callable[..., Ran]) -> None:
    (tmp_path / "fleet.tar").write_text("not a tar")
    ran = mailfleet("backup", "verify", tmp_path / "fleet.tar")
    assert (ran.code, ran.stderr.count("\n")) == (1, 1)


def test_an_older_backup_is_restored_and_then_migrated(
    sqlite_engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """The dump is loaded at its own revision, where the triggers of 0002 don't exist yet, and brought forward."""
    dump.dump(sqlite_engine, tmp_path, _quiet)
    older = open_engine(f"sqlite:///{tmp_path / 'older.db'}")
    dump.load(older, tmp_path, "0001", _quiet)
    assert migrate.current(older) == migrate.head()
    older.dispose()


# --- the commands -----------------------------------------------------------------------------------------------------


def test_the_commands(
    lived_in: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mailfleet: Callable[..., Ran]
) -> None:
    file = tmp_path / "fleet.tar"
    made = mailfleet("backup", "create", file, "--storage")
    assert (made.code, "not encrypted" in made.stdout) == (0, True)
    assert "spring-sale#1 wasn't finished" in made.stderr
    assert mailfleet("backup", "create", file).code == 1
    assert mailfleet("backup", "restore", file).code == 1  # there is an installation here
    monkeypatch.setenv("MAILFLEET_HOME", str(tmp_path / "restored"))
    monkeypatch.delenv("MAILFLEET_DATABASE_URL", raising=False)
    restored = mailfleet("backup", "restore", file)
    assert (restored.code, "restored" in restored.stdout) == (0, True)
    engine = open_engine(load_settings().url)
    with read(engine) as connection:
        assert connection.execute(select(func.count()).select_from(contacts)).scalar_one() == 4500
    engine.dispose()
