"""``mailfleet init`` makes what is missing and overwrites nothing; ``mailfleet db`` says how far the tables are."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text

from mailer_lib.database.engine import write
from mailer_lib.database.migrate import current, head
from mailer_lib.settings import Settings, make_key
from tests.conftest import Ran


def test_init_makes_keys_folders_and_tables(settings: Settings, mailfleet: Callable[..., Ran]) -> None:
    for key in settings.keys_dir.iterdir():
        key.unlink()
    ran = mailfleet("init")
    assert (ran.code, ran.stderr) == (0, "")
    assert len(settings.identity().secret) == len(settings.tokens()) == 32
    for key in settings.keys_dir.iterdir():
        assert key.stat().st_mode & 0o777 == 0o600
    assert "database 0" in mailfleet("db", "current").stdout


def test_init_twice_keeps_every_key(settings: Settings, mailfleet: Callable[..., Ran]) -> None:
    before = (settings.identity().secret, settings.tokens())
    mailfleet("init")
    second = mailfleet("init")
    assert second.code == 0
    assert "already" in second.stdout
    assert (settings.identity().secret, settings.tokens()) == before


def test_init_refuses_a_damaged_key_and_leaves_it_as_it_is(settings: Settings, mailfleet: Callable[..., Ran]) -> None:
    path = settings.keys_dir / "identity.key"
    path.write_text("not hex\n")
    ran = mailfleet("init")
    assert ran.code == 1
    assert "identity.key" in ran.stderr
    assert path.read_text() == "not hex\n"


def test_a_key_is_never_overwritten(settings: Settings) -> None:
    path = settings.keys_dir / "identity.key"
    before = path.read_text()
    assert make_key(path) is False
    assert path.read_text() == before


def test_init_never_shows_a_secret(
    settings: Settings, mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAILFLEET_IDENTITY_KEY", "ab" * 32)
    ran = mailfleet("init")
    assert "from MAILFLEET_IDENTITY_KEY" in ran.stdout
    assert "abab" not in ran.stdout + ran.stderr


def test_db_upgrade_brings_an_old_database_forward(engine: Engine, mailfleet: Callable[..., Ran]) -> None:
    with write(engine) as connection:
        for trigger in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER consent_events_no_{trigger}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert mailfleet("db", "current").code == 1
    assert mailfleet("db", "upgrade").code == 0
    assert current(engine) == head()
    assert mailfleet("db", "current").code == 0
