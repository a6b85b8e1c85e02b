"""``world``: a campaign with two servers, on both databases. ``ssh_server``: a server behind a private sshd."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from mailer_lib.database.engine import now
from mailer_lib.fleet import login_key
from mailer_lib.fleet.servers import DispatchServer, make_spec
from mailer_lib.settings import Settings
from tests.dispatch.world import World, make_world
from tests.sshd import Sshd


@pytest.fixture
def world(engine: Engine, settings: Settings) -> World:
    return make_world(engine, settings)


@pytest.fixture
def sqlite_world(sqlite_engine: Engine, settings: Settings) -> World:
    return make_world(sqlite_engine, settings)


@pytest.fixture(scope="session")
def _one_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    running = Sshd(tmp_path_factory.mktemp("ssh") / "sshd", "")
    yield running
    running.stop()


@pytest.fixture
def sshd(_one_sshd: Sshd, settings: Settings) -> Sshd:
    """Answers, and lets the key of ``settings`` in."""
    login_key.make_login_key(settings.keys_dir / "ssh_ed25519")
    _one_sshd.authorize(login_key.public_line(settings))
    _one_sshd.start()
    return _one_sshd


@pytest.fixture
def ssh_server(sshd: Sshd, tmp_path: Path) -> DispatchServer:
    """As it would be stored: reached through ``sshd``, its agents on this machine."""
    spec = make_spec(name="mta-1", pool="main", helo_name="mta1.example", **sshd.reached_as(tmp_path / "jobs"))
    return DispatchServer(**spec.model_dump(), id=1, pool_id=1, created_at=now(), updated_at=now())
