import pytest
from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.audience.world import World


@pytest.fixture
def world(engine: Engine, settings: Settings) -> World:
    """On SQLite and on MariaDB."""
    return World.make(engine, settings)


@pytest.fixture
def sqlite_world(sqlite_engine: Engine, settings: Settings) -> World:
    return World.make(sqlite_engine, settings)
