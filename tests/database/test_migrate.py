"""The migrations give exactly the tables of ``schema.py``, on both databases, once, and whoever runs them at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, inspect, text

from mailer_lib.database import migrate
from mailer_lib.database.engine import open_engine, write
from mailer_lib.database.regenerate import regenerate
from mailer_lib.database.schema import metadata


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "mariadb":
        url: str = request.getfixturevalue("empty_mariadb_url")
        return url
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


def test_migrations_give_the_tables_of_the_schema(empty_engine: Engine) -> None:
    assert migrate.upgrade(empty_engine) == (None, migrate.head())
    assert migrate.differences(empty_engine) == []
    assert set(inspect(empty_engine).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_a_column_that_a_migration_forgot_is_seen(engine: Engine) -> None:
    with write(engine) as connection:
        connection.execute(text("ALTER TABLE lists DROP COLUMN title"))
    assert len(migrate.differences(engine)) == 1


def test_migrating_twice_changes_nothing(empty_engine: Engine) -> None:
    migrate.upgrade(empty_engine)
    assert migrate.upgrade(empty_engine) == (migrate.head(), migrate.head())


def test_processes_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    def one(_: int) -> tuple[str | None, str]:
        engine = open_engine(empty_url)
        # The last revision's number is written with the commit: nobody may get the lock before it.
        event.listen(engine, "commit", lambda _: time.sleep(0.2))
        try:
            return migrate.upgrade(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(3) as pool:
        before = sorted(str(b) for b, _ in pool.map(one, range(3)))
    assert before == sorted(["None", migrate.head(), migrate.head()])


def test_an_empty_database_says_to_run_init(empty_engine: Engine) -> None:
    with pytest.raises(migrate.MigrationError, match="mailfleet init"):
        migrate.require_current(empty_engine)


def test_an_older_or_newer_database_says_what_to_do(engine: Engine) -> None:
    migrate.require_current(engine)
    for revision, advice in (("0000", "mailfleet db upgrade"), ("9999", "newer than this release")):
        with write(engine) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
        with pytest.raises(migrate.MigrationError, match=advice):
            migrate.require_current(engine)


def test_the_first_migration_is_what_the_schema_gives_today(tmp_path: Path) -> None:
    shipped = next((Path(migrate.__file__).parent / "migrations" / "versions").glob("0001_*.py"))
    assert regenerate(tmp_path).read_text() == shipped.read_text(), "run python -m mailer_lib.database.regenerate"
