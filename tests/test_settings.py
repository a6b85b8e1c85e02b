"""Settings: what the defaults are, where values come from, and a sentence for each wrong one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer_lib.settings import Settings, SettingsError, load_settings, make_key


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    import os

    for name in [n for n in os.environ if n.startswith("MAILFLEET_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()
    yield monkeypatch
    load_settings.cache_clear()


def test_nothing_has_to_be_configured(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path / "var"
    assert settings.url == f"sqlite:///{tmp_path / 'var' / 'mailfleet.db'}"
    assert settings.storage == tmp_path / "var" / "storage"
    assert settings.jobs_dir == tmp_path / "var" / "jobs"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", "postgresql://a:hunter2@b/c", "mysql[+]mysqldb://USER:PASSWORD@HOST/NAME"),
        ("DATABASE_URL", "mailfleet.db", "sqlite:///"),
        ("IDENTITY_KEY", "hunter2", "must be 64 hexadecimal digits"),
        ("IDENTITY_KEY", "ab" * 31, "must be 64 hexadecimal digits"),
        ("TOKEN_KEY", "zz" * 32, "must be 64 hexadecimal digits"),
        ("PUBLIC_URL", "links.example.com", "valid URL"),
        ("PUBLIC_URL", "ftp://links.example.com", "'http' or 'https'"),
        ("PUBLIC_URL", "https://links.example.com/?a=1", "without [?] and #"),
        ("SERVE_PORT", "http", "valid integer"),
        ("SERVE_PORT", "0", "greater than or equal to 1"),
        ("SINK_PORT", "65536", "less than or equal to 65535"),
        ("SHARD_ROWS", "5001", "less than or equal to 5000"),
        ("SHARD_ROWS", "0", "greater than or equal to 1"),
        ("GRANT_S", "0", "greater than 0"),
        ("GRANT_S", "61", "less than or equal to 60"),
        ("APPROVER_MUST_DIFFER", "perhaps", "valid boolean"),
        ("STORAGE_URL", "fleet/storage", "s3://BUCKET/PREFIX"),
        ("STORAGE_URL", "s3://fleet/a//b", "no empty, [.] or [.][.] parts"),
        ("STORAGE_URL", "s3://fleet/../b", "no empty, [.] or [.][.] parts"),
        ("STORAGE_URL", "file://fleet/storage", "file:///FOLDER"),
        ("STORAGE_ENDPOINT", "minio:9000", "valid URL|'http' or 'https'"),
        ("STORAGE_ENDPOINT", "http://key:hunter2@minio:9000", "keys have settings of their own"),
        ("STORAGE_ENDPOINT", "http://minio:9000/fleet", "nothing after it"),
        ("STORAGE_SECRET_KEY", "hunter2", "MAILFLEET_STORAGE_ACCESS_KEY"),
        ("LOG_LEVEL", "loud", "'DEBUG', 'INFO'"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_the_variable_and_without_the_value(
    environment: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    environment.setenv(f"MAILFLEET_{name}", value)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings()
    assert f"MAILFLEET_{name}: " in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_all_wrong_values_are_told_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAILFLEET_SERVE_PORT", "http")
    environment.setenv("MAILFLEET_GRANT_S", "never")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "MAILFLEET_SERVE_PORT" in str(caught.value)
    assert "MAILFLEET_GRANT_S" in str(caught.value)


def test_an_empty_variable_is_as_good_as_none(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAILFLEET_SERVE_PORT", "")
    environment.setenv("MAILFLEET_DATABASE_URL", "")
    assert load_settings().serve_port == 8025
    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("url", "bucket"), [("s3://fleet", "fleet"), ("s3://fleet/", "fleet"), ("s3://my.fleet/a/b c/", "my.fleet/a/b c")]
)
def test_a_store_on_s3_leaves_the_folder_to_this_machine(
    environment: pytest.MonkeyPatch, tmp_path: Path, url: str, bucket: str
) -> None:
    environment.setenv("MAILFLEET_STORAGE_URL", url)
    environment.setenv("MAILFLEET_STORAGE_DIR", str(tmp_path / "work"))
    assert (load_settings().bucket, load_settings().storage) == (bucket, tmp_path / "work")


def test_a_file_url_is_a_folder_and_two_folders_are_one_too_many(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("MAILFLEET_STORAGE_URL", f"file://{tmp_path}/my%20store")
    assert (load_settings().bucket, load_settings().storage) == (None, tmp_path / "my store")
    environment.setenv("MAILFLEET_STORAGE_DIR", str(tmp_path))
    load_settings.cache_clear()
    with pytest.raises(SettingsError, match=r"MAILFLEET_STORAGE_URL: .* unset one of them"):
        load_settings()


def test_an_access_key_needs_its_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAILFLEET_STORAGE_ACCESS_KEY", "AKIA")
    with pytest.raises(SettingsError, match=r"MAILFLEET_STORAGE_SECRET_KEY: .* set both, or neither"):
        load_settings()


def test_values_come_from_the_environment(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("MAILFLEET_HOME", "~/fleet")
    environment.setenv("HOME", str(tmp_path))
    environment.setenv("MAILFLEET_STORAGE_DIR", "elsewhere")
    environment.setenv("MAILFLEET_LOG_LEVEL", "debug")
    settings = load_settings()
    assert settings.home == tmp_path / "fleet"
    assert settings.storage == tmp_path / "elsewhere"
    assert settings.log_level == "DEBUG"


def test_no_repr_shows_a_secret(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAILFLEET_IDENTITY_KEY", "ab" * 32)
    environment.setenv("MAILFLEET_TOKEN_KEY", "cd" * 32)
    environment.setenv("MAILFLEET_DATABASE_URL", "mysql+mysqldb://u:hunter2@h/d")
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.identity())):
        assert not any(secret in text for secret in ("abab", "cdcd", "hunter2"))
    assert settings.identity().secret == b"\xab" * 32
    assert settings.tokens() == b"\xcd" * 32


def test_a_configured_key_comes_before_the_file(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MAILFLEET_TOKEN_KEY", "cd" * 32)
    settings = load_settings()
    make_key(settings.keys_dir / "token.key")
    assert settings.tokens() == b"\xcd" * 32


@pytest.mark.parametrize("content", ["", "12", "zz" * 32, "ab" * 33])
def test_a_damaged_key_file_says_to_restore_it(environment: pytest.MonkeyPatch, content: str) -> None:
    settings = load_settings()
    settings.keys_dir.mkdir(parents=True)
    (settings.keys_dir / "identity.key").write_text(content)
    with pytest.raises(SettingsError, match="restore it from the backup"):
        settings.identity()


def test_a_missing_key_says_what_to_do(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"MAILFLEET_IDENTITY_KEY, restore .*identity.key.*mailfleet init"):
        load_settings().identity()


def test_a_made_key_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity.key"
    assert make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(bytes.fromhex(path.read_text())) == 32


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
