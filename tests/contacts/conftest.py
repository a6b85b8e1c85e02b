import pytest
from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.contacts.world import World


@pytest.fixture
def world(engine: Engine, settings: Settings) -> World:
    """On both databases."""
    return World.make(engine, settings)


@pytest.fixture
def small_world(sqlite_engine: Engine, settings: Settings) -> World:
    """On SQLite only: for what no database can make different."""
    return World.make(sqlite_engine, settings)
