"""A whole verification: real DNS answers, a real MTA, a signed message that arrives; and the state after it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, campaigns, lists
from mailer_lib.dispatch import retiring, server_verification
from mailer_lib.dispatch.retiring import Left, why_not_retire
from mailer_lib.dispatch.server_verification import Options, Verified, domains_of_pool, require_verified, verify_server
from mailer_lib.fleet import dns, domains, pools, servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings, load_settings
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import FindingLevel, ServerState
from tests.conftest import Ran
from tests.fleet.dns_server import DnsServer
from tests.mta.exim import Exim

NAME = "news.fjord.test"
SEED = "seed@box.test"
OPTIONS = Options(sources=["127.0.0.1"], seed_wait_s=60.0)  # waited for only when the message is lost


def run_here(script: str) -> str:
    """In place of SSH."""
    done = subprocess.run([sys.executable, "-I", "-"], input=script, capture_output=True, text=True, check=True)
    return done.stdout


@dataclass
class World:
    engine: Engine
    settings: Settings
    dns: DnsServer
    sink: SinkProcess

    def verify(self, **values: object) -> Verified:
        return verify_server(
            self.engine, self.settings, "mta-1", actor="ann", options=OPTIONS, run=run_here, **values
        )  # type: ignore[arg-type]  # fmt: skip

    def errors(self) -> list[str]:
        return [f.check for f in self.verify().check.findings if f.level is FindingLevel.ERROR]

    def state(self) -> ServerState:
        with read(self.engine) as connection:
            return servers.get(connection, "mta-1").state

    def set_state(self, state: ServerState) -> None:
        with write(self.engine) as connection:
            servers.set_state(connection, "mta-1", state, actor="ann")


def add_server(engine: Engine, *, helo_name: str, port: int, mta: str, log: Path, spool: Path | None = None) -> None:
    spec = servers.make_spec(
        name="mta-1", pool="main", channel="ssh", host="127.0.0.1", helo_name=helo_name, smtp_port=port, mta=mta,
        mta_log=str(log), mta_spool=spool and str(spool),
    )  # fmt: skip
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        servers.add(connection, spec, actor="ann", replace=True)


def zone_of(settings: Settings, engine: Engine, helo_name: str) -> list[str]:
    """What `mailfleet domain dns` prints, and the server's own names."""
    with read(engine) as connection:
        domain = domains.get(connection, NAME)
    key = domains.public_key_of(domains.dkim_private_key(settings, domain))
    records = dns.records(domain, key, outgoing=[helo_name], bounce_host=helo_name, public_url=str(settings.public_url))
    own = [f"{helo_name}. A 127.0.0.1", f"1.0.0.127.in-addr.arpa. PTR {helo_name}."]
    return [record.zone_line() for record in records] + own


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with start(tmp_path_factory.mktemp("sink"), starttls=True) as sink:
        yield sink


@pytest.fixture
def world(
    sqlite_engine: Engine, settings: Settings, sink: SinkProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    sink.set_rules("domains: {}")
    with DnsServer() as dns_server:
        for name, value in (
            ("DNS_SERVER", dns_server.address),
            ("SEED_ADDRESS", SEED),
            ("SEED_MAILDIR", sink.maildir),
            ("PROBE_HOST", f"127.0.0.1:{sink.port}"),
        ):
            monkeypatch.setenv(f"MAILFLEET_{name}", str(value))
        load_settings.cache_clear()
        settings = load_settings()
        add_server(sqlite_engine, helo_name="sink.localhost", port=sink.port, mta="sink", log=sink.mainlog)
        with write(sqlite_engine) as connection:
            domains.add(connection, settings, NAME, actor="test")
        for line in zone_of(settings, sqlite_engine, "sink.localhost"):
            dns_server.publish(line)
        yield World(sqlite_engine, settings, dns_server, sink)


def test_a_server_in_order_is_verified_end_to_end_and_stands_by(world: World) -> None:
    done = world.verify()
    assert [str(f) for f in done.check.findings if f.level is FindingLevel.ERROR] == []
    said = next(f.text for f in done.check.findings if f.check == "seed")
    assert said.startswith(f"the test message of {NAME} arrived after ")
    assert said.endswith("and its signature verifies")
    assert done.passed
    require_verified(done)
    assert world.state() is ServerState.STANDBY
    world.set_state(ServerState.WARMING)
    with read(world.engine) as connection:
        rows = connection.execute(select(audit_log.c.detail).where(audit_log.c.action == "state")).scalars().all()
    assert [(row["before"], row["after"], row.get("reason")) for row in rows] == [
        ("standby", "verifying", None),
        ("verifying", "standby", "verified"),
        ("standby", "warming", None),
    ]


def test_each_thing_missing_in_dns_keeps_it_from_sending_until_it_is_published(world: World) -> None:
    world.dns.remove("1.0.0.127.in-addr.arpa.", "PTR")
    done = world.verify()
    with pytest.raises(FleetError, match=r"mta-1 may not send: 127\.0\.0\.1 has no PTR"):
        require_verified(done)
    lines = [line for finding in done.check.findings for line in finding.publish]
    assert lines == ["1.0.0.127.in-addr.arpa. 3600 IN PTR sink.localhost."]
    assert world.state() is ServerState.FAILED
    with pytest.raises(FleetError, match="it failed: put right what failed"):
        world.set_state(ServerState.ACTIVE)
    world.dns.publish(lines[0])
    world.dns.remove(f"bounce.{NAME}.", "TXT")
    assert world.errors() == ["spf"]
    world.dns.publish(f'bounce.{NAME}. TXT "v=spf1 ip4:192.0.2.1 -all"')
    assert world.errors() == ["spf"]
    world.dns.publish("6.2.0.192.in-addr.arpa. PTR unrelated.test.")
    world.dns.remove(f"bounce.{NAME}.", "TXT")
    world.dns.publish(f'bounce.{NAME}. TXT "v=spf1 a:sink.localhost -all"')
    assert world.errors() == []
    assert world.state() is ServerState.STANDBY


def test_a_key_that_is_not_the_published_one_is_found_by_dns_and_by_what_arrives(world: World) -> None:
    name = f"mf1._domainkey.{NAME}"
    world.dns.remove(f"{name}.", "TXT")
    domains.make_dkim_key(world.settings.keys_dir / "other.pem")
    other = domains.public_key_of((world.settings.keys_dir / "other.pem").read_text())
    unpublished = [f.text for f in world.verify().check.findings if f.check == "seed"]
    assert unpublished == [
        f"the test message of {NAME} arrived, but the key of its DKIM signature, {name}, isn't published"
    ]
    world.dns.publish(f'{name}. TXT "v=DKIM1; k=rsa; p={other[:200]}" "{other[200:]}"')
    findings = [f for f in world.verify().check.findings if f.level is FindingLevel.ERROR]
    assert {f.check for f in findings} == {"dkim", "seed"}
    assert any("its DKIM signature doesn't verify" in f.text for f in findings)


def test_a_test_message_that_is_refused_or_lost_is_said_without_an_address(world: World) -> None:
    world.sink.set_rules('domains: {box.test: {unknown: {pattern: "."}}}')
    refused = [f.text for f in world.verify().check.findings if f.check == "seed"]
    assert "was refused by its own MTA: 550" in refused[0]
    assert SEED not in refused[0]

    class NowhereBox:
        address = "seed@elsewhere.test"

        def find(self, message_id: str) -> bytes | None:
            return None

    done = verify_server(
        world.engine, world.settings, "mta-1", actor="ann", options=Options(["127.0.0.1"], seed_wait_s=0.3),
        run=run_here, seed_box=NowhereBox(),
    )  # fmt: skip
    assert "didn't arrive within 0 s" in next(f.text for f in done.check.findings if f.check == "seed")


def test_a_host_that_is_away_fails_with_its_sentence_and_dns_is_checked_all_the_same(world: World) -> None:
    world.dns.remove(f"_dmarc.{NAME}.", "TXT")
    done = verify_server(world.engine, world.settings, "mta-1", actor="ann", options=OPTIONS)
    errors = {f.check: f.text for f in done.check.findings if f.level is FindingLevel.ERROR}
    assert set(errors) == {"host", "dmarc"}
    assert "no host key is pinned for mta-1" in errors["host"]
    assert done.server.state is ServerState.FAILED


def test_a_server_in_service_is_looked_at_as_it_is(world: World) -> None:
    world.verify()
    world.set_state(ServerState.ACTIVE)
    world.dns.remove("1.0.0.127.in-addr.arpa.", "PTR")
    assert not world.verify().passed
    assert world.state() is ServerState.ACTIVE


def test_a_verification_that_was_killed_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object, **values: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server_verification, "gather", die)
        with pytest.raises(KeyboardInterrupt):
            world.verify()
    assert world.state() is ServerState.VERIFYING
    assert world.verify().passed
    assert world.state() is ServerState.STANDBY


def test_half_a_seed_box_is_refused_before_anything_changes(
    sqlite_engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_server(sqlite_engine, helo_name="mta1.fjord.test", port=25, mta="sink", log=tmp_path / "log")
    monkeypatch.setenv("MAILFLEET_SEED_ADDRESS", SEED)
    load_settings.cache_clear()
    with pytest.raises(FleetError, match="go together"):
        verify_server(sqlite_engine, load_settings(), "mta-1", actor="ann", run=run_here)
    with read(sqlite_engine) as connection:
        assert servers.get(connection, "mta-1").state is ServerState.STANDBY


def test_the_domains_to_check_are_those_of_the_pools_campaigns(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        main, other = (pools.ensure(connection, name, actor="test") for name in ("main", "other"))
        for name in ("a.fjord.test", "b.fjord.test"):
            domains.add(connection, settings, name, actor="test")
        assert [domain.name for domain in domains_of_pool(connection, main)] == ["a.fjord.test", "b.fjord.test"]
        connection.execute(insert(lists).values(name="news", title="News", created_at=now()))
        list_id = connection.scalar(select(lists.c.id))
        connection.execute(
            insert(campaigns).values(
                name="spring", definition={"sending_domain": "b.fjord.test"}, list_id=list_id, pool_id=main,
                created_at=now(), updated_at=now(), updated_by="test",
            )
        )  # fmt: skip
        assert [domain.name for domain in domains_of_pool(connection, main)] == ["b.fjord.test"]
        assert [domain.name for domain in domains_of_pool(connection, other)] == ["a.fjord.test", "b.fjord.test"]


def test_a_real_exim_is_verified_through_its_queue_and_retired_when_that_is_empty(
    world: World, tmp_path: Path, mailfleet: Callable[..., Ran]
) -> None:
    mta = Exim(tmp_path / "exim", relay_to=world.sink.port, runner_every_s=1, starttls=True).start()
    try:
        add_server(world.engine, helo_name="mx.test", port=mta.port, mta="exim", log=mta.log, spool=mta.spool)
        for line in zone_of(world.settings, world.engine, "mx.test")[:-1]:
            world.dns.publish(line)
        world.dns.remove("1.0.0.127.in-addr.arpa.", "PTR")
        world.dns.publish("1.0.0.127.in-addr.arpa. PTR mx.test.")
        world.dns.remove(f"bounce.{NAME}.", "TXT")
        world.dns.publish(f'bounce.{NAME}. TXT "v=spf1 a:mx.test -all"')
        done = world.verify()
        findings = [f for f in done.check.findings if f.level is not FindingLevel.INFO]
        assert [f.check for f in findings] == ["tls"], findings  # the certificate of this Exim is good for two days
        assert mta.panics == ""
        mailfleet("server", "activate", "mta-1")
        assert world.state() is ServerState.WARMING
        world.set_state(ServerState.DRAINING)
        held = mta.spool / "s7" / "input" / "a"
        held.mkdir(parents=True)
        (held / "1abcDE-000001-Xy-H").touch()
        with pytest.raises(FleetError, match="can't be retired: its MTA still holds a message"):
            retiring.retire(world.engine, world.settings, "mta-1", actor="ann", run=run_here)
        (held / "1abcDE-000001-Xy-H").unlink()
        retiring.retire(world.engine, world.settings, "mta-1", actor="ann", run=run_here)
        assert world.state() is ServerState.RETIRED
    finally:
        mta.kill()


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (Left(0, None), None),
        (Left(0, 0), None),
        (Left(2, 0), "it still holds 2 leases"),
        (Left(0, 12_345), "its MTA still holds 12,345 messages"),
        (Left(0, None, "mta-1 doesn't answer"), "can't be told: mta-1 doesn't answer"),
    ],
)
def test_a_server_is_retired_when_nothing_is_left_on_it(left: Left, says: str | None) -> None:
    said = why_not_retire(left)
    assert (said is None) == (says is None)
    assert says is None or says in str(said)


def test_a_host_that_is_gone_is_retired_only_with_its_queue_given_up(world: World) -> None:
    log, spool = world.sink.mainlog, world.sink.folder
    add_server(world.engine, helo_name="mx.test", port=25, mta="exim", log=log, spool=spool)
    world.set_state(ServerState.FAILED)
    world.set_state(ServerState.DRAINING)
    with pytest.raises(FleetError, match="whether its MTA still holds mail can't be told: no host key is pinned"):
        retiring.retire(world.engine, world.settings, "mta-1", actor="ann")
    retiring.retire(world.engine, world.settings, "mta-1", actor="ann", give_up_queue=True)
    assert world.state() is ServerState.RETIRED


def test_an_active_server_is_drained_before_it_is_retired(world: World) -> None:
    world.verify()
    world.set_state(ServerState.ACTIVE)
    with pytest.raises(FleetError, match="drain it first"):
        retiring.retire(world.engine, world.settings, "mta-1", actor="ann")


def test_the_commands_print_what_to_publish_and_fail_when_it_may_not_send(
    world: World, mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_verification, "script_runner", lambda server, settings: run_here)
    world.dns.remove(f"_dmarc.{NAME}.", "TXT")
    ran = mailfleet("server", "verify", "mta-1", "--source", "127.0.0.1")
    assert ran.code == 1
    assert f'_dmarc.{NAME}. 3600 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@{NAME}"' in ran.stdout.splitlines()
    assert "mta-1 is failed: an error forbids sending" in ran.stdout
    refused = mailfleet("server", "activate", "mta-1")
    assert (refused.code, "it failed: put right what failed, then verify it" in refused.stderr) == (1, True)
    world.dns.publish(f'_dmarc.{NAME}. TXT "v=DMARC1; p=none"')
    passed = mailfleet("server", "verify", "mta-1", "--source", "127.0.0.1")
    assert (passed.code, passed.stdout.splitlines()[-1]) == (
        0, "mta-1 is verified, and standby; `mailfleet server activate mta-1` takes it into service",
    )  # fmt: skip
    assert "50 messages on its first day" in mailfleet("server", "activate", "mta-1", "--reason", "new").stdout
    assert mailfleet("server", "activate", "mta-1", "--warmed").stdout == "dispatch server mta-1: active\n"
    assert "verification of " in mailfleet("server", "show", "mta-1").stdout
    assert " active " in mailfleet("server", "list").stdout
    drained = mailfleet("server", "drain", "mta-1", "--reason", "sold")
    assert "nothing is left on it: `mailfleet server retire mta-1`" in drained.stdout
    assert "retired" in mailfleet("server", "retire", "mta-1").stdout
    assert world.state() is ServerState.RETIRED
