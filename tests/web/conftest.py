from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from mailer_lib.settings import Settings
from mailer_lib.web.app import create_app
from tests.web.world import World, make_world


@pytest.fixture
def world(settings: Settings, engine: Engine) -> World:
    """On both databases."""
    return make_world(settings, engine)


@pytest.fixture
def sqlite_world(settings: Settings, sqlite_engine: Engine) -> World:
    return make_world(settings, sqlite_engine)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(create_app(world.settings), follow_redirects=False) as client:
        yield client


@pytest.fixture
def sqlite_client(sqlite_world: World) -> Iterator[TestClient]:
    with TestClient(create_app(sqlite_world.settings), follow_redirects=False) as client:
        yield client
