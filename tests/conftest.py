"""Fixtures that every part uses.

``settings``       Settings with a home in a temporary folder and fresh keys. The environment (and so every child
                   process and ``load_settings()``) has the same settings.
``sqlite_engine``  the embedded database of ``settings``, with the tables of this release
``engine``         the same test twice: SQLite, and a private real MariaDB (mark ``mariadb``); ``settings`` points to it
``any_store``      the same test twice: the snapshot store is a folder, and a bucket (mark ``s3``)
``mailfleet``      runs a command in this process: ``mailfleet("list", "show").stdout``
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine

from mailer_lib.database.engine import open_engine
from mailer_lib.database.migrate import upgrade
from mailer_lib.settings import Settings, load_settings, make_key
from tests.support import require, require_package, times

_numbers = itertools.count(1)

# A busy machine is no failure: nothing here is judged by the clock.
hypothesis.settings.register_profile("mailfleet", deadline=None)
hypothesis.settings.load_profile("mailfleet")


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mailfleet.db"
    engine = open_engine(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[object]:
    """The private server of this test process; started when the first test asks for it."""
    require_package("MySQLdb")
    from tests.mariadb_server import PROGRAMS, MariadbServer, which

    for program in PROGRAMS:
        require(which(program), f"{program} isn't installed (apt-get install mariadb-server)")
    server = MariadbServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _mariadb_tables(mariadb_server) -> list[str]:  # type: ignore[no-untyped-def]
    mariadb_server.execute("CREATE DATABASE template CHARACTER SET utf8mb4")
    engine = open_engine(mariadb_server.url("template"))
    upgrade(engine)
    engine.dispose()
    statements: list[str] = mariadb_server.statements_of("template")
    return statements


@pytest.fixture
def empty_mariadb_url(mariadb_server) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """URL of a fresh database without tables."""
    name = f"test_{next(_numbers)}"
    mariadb_server.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    yield mariadb_server.url(name)
    mariadb_server.execute(f"DROP DATABASE {name}")


@pytest.fixture
def mariadb_url(empty_mariadb_url: str, mariadb_server, _mariadb_tables: list[str]) -> str:  # type: ignore[no-untyped-def]
    """URL of a fresh database with the tables of this release."""
    mariadb_server.execute(*_mariadb_tables, database=empty_mariadb_url.rsplit("/", 1)[1])
    return empty_mariadb_url


def _environment(monkeypatch: pytest.MonkeyPatch, home: Path, **more: str) -> Settings:
    for name in [n for n in os.environ if n.startswith("MAILFLEET_") and n != "MAILFLEET_REQUIRE_ALL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAILFLEET_HOME", str(home))
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    load_settings.cache_clear()
    return load_settings()


@pytest.fixture
def settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _database: str | None, _store: dict[str, str]
) -> Iterator[Settings]:
    more = {"MAILFLEET_DATABASE_URL": _database} if _database else {}
    more |= _store
    made = _environment(monkeypatch, tmp_path / "home", **more)
    for name in ("identity", "token"):
        make_key(made.keys_dir / f"{name}.key")
    made.storage.mkdir(parents=True)
    made.jobs_dir.mkdir()
    yield made
    load_settings.cache_clear()


@pytest.fixture
def _database(request: pytest.FixtureRequest) -> str | None:
    """URL for ``settings``; None is the embedded database. Parametrised when the test asks for ``engine``."""
    if getattr(request, "param", "sqlite") == "mariadb":
        url: str = request.getfixturevalue("mariadb_url")
        return url
    return None


@pytest.fixture(scope="session")
def s3_server() -> Iterator[object]:
    """The S3 server of this test process; started when the first test asks for it."""
    from tests.s3_server import S3Server, program

    require(program(), "the S3 server isn't installed (python3 .ci/setup.py dev)")
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket_settings(s3_server) -> dict[str, str]:  # type: ignore[no-untyped-def]
    """The variables that make a fresh bucket the snapshot store."""
    name = f"mailfleet-test-{next(_numbers)}"
    s3_server.make_bucket(name)
    return {
        "MAILFLEET_STORAGE_URL": f"s3://{name}/fleet",
        "MAILFLEET_STORAGE_ENDPOINT": s3_server.url,
        "MAILFLEET_STORAGE_REGION": "us-east-1",
        "MAILFLEET_STORAGE_ACCESS_KEY": "test",
        "MAILFLEET_STORAGE_SECRET_KEY": "test",
    }


@pytest.fixture
def _store(request: pytest.FixtureRequest) -> dict[str, str]:
    """What ``settings`` needs for the store; nothing: it is a folder. Parametrised by ``any_store``."""
    if getattr(request, "param", "folder") == "s3":
        variables: dict[str, str] = request.getfixturevalue("bucket_settings")
        return variables
    return {}


@pytest.fixture
def any_store(_store: dict[str, str]) -> None:
    """Ask for it to run on both kinds of store."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mariadb, s3 = pytest.mark.mariadb, pytest.mark.s3
    wants_engine, wants_store = ("engine" in metafunc.fixturenames, "any_store" in metafunc.fixturenames)
    # What is killed again and again takes minutes: on the database and the store that most can go wrong with.
    once = metafunc.definition.get_closest_marker("fault") is not None and times(1, 2) == 1
    if wants_engine and wants_store:  # nobody has SQLite beside a bucket: several machines need a server
        both = [("sqlite", "folder"), pytest.param("mariadb", "folder", marks=mariadb)]
        both.append(pytest.param("mariadb", "s3", marks=[mariadb, s3]))
        metafunc.parametrize(("_database", "_store"), both[2:] if once else both, indirect=True)
    elif wants_engine:
        engines = ["sqlite", pytest.param("mariadb", marks=mariadb)]
        metafunc.parametrize("_database", engines[1:] if once else engines, indirect=True)
    elif wants_store:
        metafunc.parametrize("_store", ["folder", pytest.param("s3", marks=s3)], indirect=True)


@pytest.fixture
def sqlite_engine(settings: Settings, _sqlite_template: Path) -> Iterator[Engine]:
    path = settings.home / "mailfleet.db"
    shutil.copyfile(_sqlite_template, path)
    engine = open_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.fixture
def engine(request: pytest.FixtureRequest, settings: Settings, _database: str | None) -> Iterator[Engine]:
    if _database is None:
        yield request.getfixturevalue("sqlite_engine")
        return
    engine = open_engine(_database)
    yield engine
    engine.dispose()


@dataclass(frozen=True)
class Ran:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def mailfleet(settings: Settings, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``mailfleet ARGUMENTS`` in this process, with the environment of ``settings``."""
    from mailer_lib.cli import main

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        load_settings.cache_clear()
        code = main([str(a) for a in arguments])
        return Ran(code, *capfd.readouterr())

    return run


_LONG = ("image", "fleet", "fault")  # minutes each, and mostly one core: begun last, they would leave the other idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first."""
    long = {item.path for item in items if any(item.get_closest_marker(mark) for mark in _LONG)}
    items.sort(key=lambda item: item.path not in long)
