"""``world``: a campaign with two servers, on both databases."""

import pytest
from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.dispatch.world import World, make_world


@pytest.fixture
def world(engine: Engine, settings: Settings) -> World:
    return make_world(engine, settings)


@pytest.fixture
def sqlite_world(sqlite_engine: Engine, settings: Settings) -> World:
    return make_world(sqlite_engine, settings)
