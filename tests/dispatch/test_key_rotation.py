"""A server's own DKIM key: it signs once it is published, and the old one stays while mail of it is left."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import update

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers, sends
from mailer_lib.dispatch.job_files import bundle_bytes, make_job
from mailer_lib.dispatch.key_rotation import Rotated, Step, rotate
from mailer_lib.dispatch.retiring import retire
from mailer_lib.dispatch.sends import get_send
from mailer_lib.dispatch.slot import SlotState
from mailer_lib.fleet import dkim_keys, domains, servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import load_settings
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import MtaKind, SendState, ServerState
from tests.conftest import Ran
from tests.dispatch.real import DOMAIN, Running, equip, ready_send
from tests.dispatch.world import World
from tests.fleet.dns_server import DnsServer

NAME = f"local-1-1._domainkey.{DOMAIN}"


@dataclass
class Rotation:
    world: World
    dns: DnsServer
    queued: int = 0
    published: list[str] = field(default_factory=list)

    def step(self, server: str = "local-1") -> Rotated:
        answer = f'{{"queued": {self.queued}, "error": null}}'
        (done,) = rotate(self.world.engine, self.world.settings, server, actor="ann", run=lambda script: answer)
        return done

    def publish(self, line: str) -> None:
        self.dns.publish(line)

    def signs_with(self, send_id: int, number: int = 0) -> tuple[str | None, str]:
        """Selector and public half of the key in a job that begins now."""
        with read(self.world.engine) as connection:
            send = get_send(connection, send_id)
            job, secrets = make_job(
                connection, self.world.settings, send, self.world.slot(number), bundle_bytes(self.world.settings, send)
            )
        return job.dkim_selector, domains.public_key_of(secrets.dkim_key_pem)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with start(tmp_path / "sinks", fsync=False) as running:
        yield running


@pytest.fixture
def rotation(sqlite_world: World, sink: SinkProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rotation]:
    equip(sqlite_world, sink)
    with DnsServer() as dns:
        monkeypatch.setenv("MAILFLEET_DNS_SERVER", dns.address)
        load_settings.cache_clear()
        sqlite_world.settings = sqlite_world.settings.model_copy(update={"dns_server": dns.address})
        yield Rotation(sqlite_world, dns)


def test_a_new_key_signs_only_once_its_record_is_published(rotation: Rotation, sink: SinkProcess) -> None:
    send_id = ready_send(rotation.world, [2])
    (shared, first_key), made = rotation.signs_with(send_id), rotation.step()
    assert (shared, made.step, made.selector) == ("mf1", Step.PUBLISH, "local-1-1")
    assert made.zone_line.startswith(f'{NAME}. 3600 IN TXT "v=DKIM1; k=rsa; p=')
    assert rotation.step() == made  # the same key, however often it is asked for
    rotation.publish(f'{NAME}. TXT "v=DKIM1; k=rsa; p=another"')
    assert rotation.step().step is Step.PUBLISH
    rotation.dns.remove(f"{NAME}.", "TXT")
    assert rotation.signs_with(send_id) == ("mf1", first_key)
    rotation.publish(made.zone_line)
    assert rotation.step().step is Step.SIGNS
    selector, key = rotation.signs_with(send_id)
    assert (selector, key in made.zone_line.replace('" "', "")) == ("local-1-1", True)
    assert rotation.signs_with(send_id, number=1) == ("mf1", first_key)  # a selector for each server
    assert Running(rotation.world, send_id, rotation.world.slot()).report().state is SlotState.DONE
    messages = [path.read_text() for path in (sink.maildir / "new").iterdir()]
    assert len(messages) == 2
    assert all("s=local-1-1;" in message and "mf1" not in message for message in messages)


def test_the_old_key_stays_published_while_anything_that_it_signed_may_be_on_its_way(
    rotation: Rotation, mailfleet: Callable[..., Ran]
) -> None:
    world = rotation.world
    mine = dispatch_servers.c.name == "local-1"
    with write(world.engine) as connection:
        connection.execute(update(dispatch_servers).where(mine).values(mta=MtaKind.EXIM, mta_spool="/var/spool/exim4"))
    rotation.publish(rotation.step().zone_line)
    assert rotation.step().step is Step.SIGNS
    send_id = ready_send(world, [2])
    with write(world.engine) as connection:
        connection.exec_driver_sql("UPDATE sends SET started_at = created_at")
    second = rotation.step()
    assert second.selector == "local-1-2"
    rotation.publish(second.zone_line)
    assert rotation.step().step is Step.SIGNS
    rotation.queued = 3
    assert rotation.step().sentence == f"{NAME} must stay published: 1 of its sends began before the new key signed"
    with write(world.engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(state=SendState.FINISHED))
    assert rotation.step().sentence == f"{NAME} must stay published: its MTA holds 3 messages"
    printed = mailfleet("domain", "dns", DOMAIN).stdout
    assert NAME in printed
    assert "DKIM of local-1, leaving" in printed
    rotation.queued = 0
    assert rotation.step().sentence == f"{NAME} may be taken out of DNS"
    keys = world.settings.keys_dir / "dkim"
    assert not (keys / f"{DOMAIN}.local-1-1.pem").exists()
    printed = mailfleet("domain", "dns", DOMAIN).stdout
    assert (NAME in printed, f"local-1-2._domainkey.{DOMAIN}" in printed) == (False, True)
    assert rotation.step().selector == "local-1-3"  # a selector is never used twice


def test_a_retired_server_leaves_no_key_behind(rotation: Rotation) -> None:
    world = rotation.world
    rotation.step()
    with write(world.engine) as connection:
        servers.set_state(connection, "local-1", ServerState.DRAINING, actor="ann")
    retire(world.engine, world.settings, "local-1", actor="ann")
    with read(world.engine) as connection:
        assert dkim_keys.keys_of(connection) == []
    assert not (world.settings.keys_dir / "dkim" / f"{DOMAIN}.local-1-1.pem").exists()
    with pytest.raises(FleetError, match="it signs nothing"):
        rotation.step()
