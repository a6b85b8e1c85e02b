"""The snapshot store: a folder or a bucket, the same to whoever reads and writes it."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mailer_lib.audience.files import replace_file, sha256_of
from mailer_lib.settings import Settings, load_settings
from mailer_lib.shard.store import S3Path, StoreError, at_once, name_below, store, store_path
from tests.support import free_port


@pytest.mark.usefixtures("any_store")
def test_what_is_written_is_read_listed_replaced_and_removed(settings: Settings) -> None:
    root = store(settings)
    folder = root / "snapshots" / "spring sale" / "1"
    if isinstance(folder, Path):
        folder.mkdir(parents=True)
        (folder / "excluded").mkdir()
    assert not (folder / "manifest.json").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "manifest.json").read_bytes()
    for name, data in {"manifest.json": b"{}", "excluded/b.parquet": b"", "excluded/a.parquet": b"a" * 70_000}.items():
        replace_file(folder / name, data)
        assert (folder / name).read_bytes() == data
    replace_file(folder / "manifest.json", b"{1}")
    assert (folder / "manifest.json").read_bytes() == b"{1}"
    assert sha256_of(folder / "excluded" / "b.parquet").startswith("e3b0c442")
    assert sorted(name_below(p, folder) for p in folder.glob("excluded/*")) == [
        "excluded/a.parquet",
        "excluded/b.parquet",
    ]
    assert [name_below(p, folder) for p in folder.glob("*.json")] == ["manifest.json"]
    assert (folder.name, (folder / "manifest.json").parent) == ("1", folder)
    assert store_path(settings, str(folder)) == folder
    (folder / "manifest.json").unlink()
    assert not (folder / "manifest.json").exists()
    (folder / "manifest.json").unlink(missing_ok=True)
    assert (folder / "excluded" / "a.parquet").exists()


@pytest.fixture
def bucket(settings: Settings, bucket_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> S3Path:
    for name, value in bucket_settings.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    root = store(load_settings())
    assert isinstance(root, S3Path)
    return root


@pytest.mark.s3
def test_all_below_a_name_is_removed_and_nothing_beside_it(bucket: S3Path) -> None:
    for name in ("1/a", "1/b/c", "10/a", "2"):
        (bucket / name).write_bytes(b"x")
    (bucket / "1").remove_all()
    (bucket / "1").remove_all()
    assert [name_below(path, bucket) for path in bucket.files()] == ["10/a", "2"]
    assert bucket.children() == ["10", "2"]


@pytest.mark.s3
@pytest.mark.parametrize("size", [0, 1, 12 << 20])
def test_files_of_any_size_are_copied_both_ways(bucket: S3Path, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    (bucket / "a").write_file(tmp_path / "a")
    assert (bucket / "a").read_file(tmp_path / "b") == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "b").read_bytes() == data


@pytest.mark.s3
def test_many_requests_at_once_end_with_the_first_error(bucket: S3Path) -> None:
    at_once(lambda n: (bucket / f"many/{n}").write_bytes(b"%d" % n), range(50))
    assert len((bucket / "many").files()) == 50
    with pytest.raises(FileNotFoundError, match="many/50"):
        at_once(lambda n: (bucket / f"many/{n}").read_bytes(), range(51))


@pytest.mark.s3
def test_a_forked_child_has_a_connection_of_its_own(bucket: S3Path) -> None:
    (bucket / "parent").write_bytes(b"before")
    child = os.fork()
    if not child:
        (bucket / "child").write_bytes((bucket / "parent").read_bytes())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (bucket / "child").read_bytes() == b"before"


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_named_with_the_service_s_answer(bucket: S3Path) -> None:
    with pytest.raises(StoreError, match=r"s3://no-such/x: PutObject failed with NO_SUCH_BUCKET .*mailfleet doctor"):
        S3Path(bucket.service, "no-such/x").write_bytes(b"")


def test_an_unreachable_service_is_named_and_no_key_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"URL": "s3://fleet", "ENDPOINT": f"http://127.0.0.1:{free_port()}", "REGION": "eu-north-1"}
    for name, value in (values | {"ACCESS_KEY": "AKIAhunter2", "SECRET_KEY": "hunter2"}).items():
        monkeypatch.setenv(f"MAILFLEET_STORAGE_{name}", value)
    load_settings.cache_clear()
    root = store(load_settings())
    with pytest.raises(StoreError, match=r"s3://fleet/x: .*NETWORK_CONNECTION") as caught:
        (root / "x").exists()
    assert "hunter2" not in str(caught.value) + repr(root)


def test_paths_of_another_store_are_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILFLEET_STORAGE_URL", "s3://fleet/a")
    load_settings.cache_clear()
    ours = load_settings()
    assert str(store_path(ours, "s3://fleet/a/snapshots/x")) == "s3://fleet/a/snapshots/x"
    for foreign in ("s3://fleet/ab/x", "/var/lib/storage/x"):
        with pytest.raises(StoreError, match="every machine needs the same MAILFLEET_STORAGE_URL"):
            store_path(ours, foreign)
    assert replace(store(ours), key="k") != store(ours)
