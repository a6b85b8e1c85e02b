"""``mailfleet doctor`` finds what is wrong, says what to do, fails when mail couldn't be sent, and shows no secret."""

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dns.message
import dns.resolver
import pytest
from sqlalchemy import Engine, text, update

from mailer_lib import doctor
from mailer_lib.database import schema
from mailer_lib.database.engine import now, read, write
from mailer_lib.doctor import Finding, Level
from mailer_lib.fleet import domains, pools, server_checks, servers
from mailer_lib.fleet.findings import error
from mailer_lib.settings import Settings, load_settings
from mailer_lib.shard.store import store
from mailer_lib.sink.process import start
from mailer_lib.terms import ServerState
from tests.conftest import Ran
from tests.fleet.verified import pretend_verified
from tests.support import free_port, require_package


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A resolver on loopback, so that no test asks the network; it answers with no records."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    server.settimeout(10)

    def answer() -> None:
        try:
            while True:
                query, client = server.recvfrom(4096)
                server.sendto(dns.message.make_response(dns.message.from_wire(query)).to_wire(), client)
        except OSError:
            return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    ours = dns.resolver.Resolver(configure=False)
    ours.nameservers, ours.port = ["127.0.0.1"], server.getsockname()[1]
    monkeypatch.setattr(dns.resolver, "default_resolver", ours)
    yield server
    server.close()


@pytest.fixture
def website() -> Iterator[str]:
    """Something that answers at the public URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _with(settings: Settings, monkeypatch: pytest.MonkeyPatch, **values: object) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"MAILFLEET_{name.upper()}", str(value))
    load_settings.cache_clear()
    return load_settings()


def _wrong(findings: list[Finding]) -> list[str]:
    return [f"{f.section}: {f.text}" for f in findings if f.level is Level.FAIL]


def _add_server(engine: Engine, **values: object) -> None:
    spec = servers.make_spec(name="mta-1", pool="main", helo_name="mta1.fjordfern.example", **values)
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        servers.add(connection, spec, actor="test")


def test_an_installation_in_order_passes(
    engine: Engine,
    settings: Settings,
    website: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mailfleet: Callable[..., Ran],
) -> None:
    settings = _with(settings, monkeypatch, public_url=website)
    with start(tmp_path / "sink") as sink:
        _add_server(engine, mta="sink", mta_log=str(sink.mainlog), smtp_port=sink.port)
        with write(engine) as connection:
            domains.add(connection, settings, "news.fjordfern.example", actor="test")
        findings = list(doctor.examine(settings))
        ran = mailfleet("doctor")
    assert _wrong(findings) == []
    assert [f for f in findings if f.level is Level.WARN and f.section not in ("storage",)] == []
    assert {f.section for f in findings} >= {"settings", "software", "keys", "storage", "database", "DNS"}
    assert (ran.code, ran.stderr) == (0, "")
    assert "0 failed" in ran.stdout


def test_a_new_installation_without_a_fleet_is_not_a_failure(
    sqlite_engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _with(settings, monkeypatch, public_url=f"http://127.0.0.1:{free_port()}")
    findings = list(doctor.examine(settings))
    assert _wrong(findings) == []
    assert {f.section for f in findings if f.level is Level.WARN} >= {
        "dispatch servers",
        "sending domains",
        "public URL",
    }


def test_before_init_everything_that_is_missing_names_init(settings: Settings, mailfleet: Callable[..., Ran]) -> None:
    for key in settings.keys_dir.iterdir():
        key.unlink()
    settings.storage.rmdir()
    ran = mailfleet("doctor")
    assert ran.code == 1
    assert ran.stdout.count("run `mailfleet init`") == 4  # two keys, storage, database


def test_a_database_of_another_release_fails(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert any("mailfleet db upgrade" in line for line in _wrong(list(doctor.examine(settings))))


def test_an_unreachable_database_fails_without_its_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, mailfleet: Callable[..., Ran]
) -> None:
    require_package("MySQLdb")
    _with(settings, monkeypatch, database_url=f"mysql+mysqldb://fleet:hunter2@127.0.0.1:{free_port()}/fleet")
    ran = mailfleet("doctor")
    assert ran.code == 1
    assert "fleet:***@127.0.0.1" in ran.stdout
    assert "hunter2" not in ran.stdout + ran.stderr


def test_secrets_are_never_shown(
    sqlite_engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, mailfleet: Callable[..., Ran]
) -> None:
    _with(settings, monkeypatch, identity_key="ab" * 32, token_key="cd" * 32)
    ran = mailfleet("doctor")
    assert "identity_key = set (not shown)  (from MAILFLEET_IDENTITY_KEY)" in ran.stdout
    assert "abab" not in ran.stdout
    assert "cdcd" not in ran.stdout


def test_a_key_that_others_can_read_is_told(settings: Settings) -> None:
    path = settings.keys_dir / "identity.key"
    path.chmod(0o644)
    (warning,) = [f for f in doctor.check_keys(settings) if f.level is Level.WARN]
    assert f"chmod 600 {path}" in warning.text


def test_a_mistyped_variable_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _with(settings, monkeypatch, shard_row="100")
    (warning,) = [f for f in doctor.check_settings(settings) if f.level is Level.WARN]
    assert "is it MAILFLEET_SHARD_ROWS?" in warning.text


def test_a_storage_that_is_a_file_fails(settings: Settings) -> None:
    settings.storage.rmdir()
    settings.storage.write_text("")
    assert len(_wrong(list(doctor.check_storage(settings)))) == 1


@pytest.mark.s3
def test_a_bucket_is_tried_and_left_as_it_was(
    settings: Settings, bucket_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {name.removeprefix("MAILFLEET_").lower(): value for name, value in bucket_settings.items()}
    settings = _with(settings, monkeypatch, **values)
    findings = list(doctor.check_storage(settings))
    assert _wrong(findings) == []
    assert f"{store(settings)} at {settings.storage_endpoint}, writable" in findings[0].text
    assert store(settings).files() == []  # type: ignore[union-attr]
    settings = _with(settings, monkeypatch, storage_url="s3://no-such-bucket")
    (wrong,) = _wrong(list(doctor.check_storage(settings)))
    assert "NO_SUCH_BUCKET" in wrong and "check the bucket, MAILFLEET_STORAGE_ENDPOINT" in wrong


def test_a_service_that_nobody_answers_for_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"storage_access_key": "AKIA", "storage_secret_key": "hunter2", "storage_url": "s3://fleet"}
    settings = _with(settings, monkeypatch, **values, storage_endpoint=f"http://127.0.0.1:{free_port()}")
    (wrong,) = _wrong(list(doctor.check_storage(settings)))
    assert "NETWORK_CONNECTION" in wrong and "hunter2" not in wrong


@pytest.mark.parametrize("banner", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"554 no service\r\n"])
def test_a_port_that_is_not_smtp_fails(engine: Engine, settings: Settings, banner: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _add_server(engine, smtp_port=listener.getsockname()[1])

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(banner)

        thread = threading.Thread(target=answer)
        thread.start()
        wrong = _wrong(list(doctor.examine(settings)))
        thread.join()
    (line,) = [w for w in wrong if "doesn't answer" in w and w.startswith("dispatch")]
    assert "mailfleet server state mta-1 standby" in line


def test_a_server_out_of_service_is_not_asked(engine: Engine, settings: Settings) -> None:
    _add_server(engine, smtp_port=free_port(), state="standby")
    assert _wrong(list(doctor.examine(settings))) == []


def test_who_is_not_verified_or_was_long_ago_is_told(engine: Engine, settings: Settings) -> None:
    def said() -> list[tuple[Level, str]]:
        with read(engine) as connection:
            server = servers.get(connection, "mta-1")
            verified = [(server, server_checks.latest(connection, server.id))]
        return [(finding.level, finding.text) for finding in doctor.check_verified(settings, verified)]

    _add_server(engine, channel="ssh", host="192.0.2.7")
    never = (Level.WARN, "mta-1 was never verified: run `mailfleet server verify mta-1`")
    assert said() == [never]
    assert never in [(finding.level, finding.text) for finding in doctor.examine(settings)]
    with write(engine) as connection:
        pretend_verified(connection, "mta-1")
        servers.set_state(connection, "mta-1", ServerState.ACTIVE, actor="ann")
    assert [level for level, _ in said()] == [Level.INFO]
    with write(engine) as connection:
        connection.execute(update(schema.server_checks).values(at=now() - timedelta(days=31)))
    ((level, text),) = said()
    assert (level, "more than 30 days ago" in text) == (Level.WARN, True)
    with write(engine) as connection:
        pretend_verified(connection, "mta-1", error("ptr", "192.0.2.7 has no PTR"))
    ((level, text),) = said()
    assert (level, "found an error" in text) == (Level.FAIL, True)


def test_the_mta_beside_a_local_agent_need_not_be_verified(engine: Engine, settings: Settings) -> None:
    _add_server(engine)
    with read(engine) as connection:
        (finding,) = doctor.check_verified(settings, [(servers.get(connection, "mta-1"), None)])
    assert finding.level is Level.INFO


def test_records_and_passwords_that_are_not_there_fail(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    _add_server(
        engine, smtp_port=free_port(), mta="exim", mta_log=str(tmp_path / "mainlog"), mta_spool=str(tmp_path),
        smtp_security="starttls", smtp_user="u", smtp_password_ref="env:NOT_SET_ANYWHERE",
    )  # fmt: skip
    wrong = "\n".join(_wrong(list(doctor.examine(settings))))
    assert "mainlog can't be read" in wrong
    assert "NOT_SET_ANYWHERE isn't set" in wrong
    assert "the MTA's spool" not in wrong


def test_a_lost_dkim_key_fails(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        domains.add(connection, settings, "news.fjordfern.example", actor="test")
    (settings.keys_dir / "dkim" / "news.fjordfern.example.mf1.pem").unlink()
    assert any("doesn't exist" in line for line in _wrong(list(doctor.examine(settings))))


def test_nobody_could_unsubscribe_is_a_failure_once_there_is_a_fleet(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _with(settings, monkeypatch, public_url=f"http://127.0.0.1:{free_port()}")
    (alone,) = doctor.check_public_url(settings, in_service=False)
    (sending,) = doctor.check_public_url(settings, in_service=True)
    assert (alone.level, sending.level) == (Level.WARN, Level.FAIL)
    assert "mailfleet serve" in sending.text


def test_no_resolver_is_worth_a_remark_only(resolver: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver.close()
    monkeypatch.setattr(doctor, "_TIMEOUT_S", 0.3)
    (finding,) = doctor.check_resolver()
    assert finding.level is Level.WARN


def test_the_resolver_of_the_setting_is_the_one_that_is_asked(
    resolver: socket.socket, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns.resolver, "default_resolver", None)
    address, port = resolver.getsockname()
    settings = _with(settings, monkeypatch, dns_server=f"{address}:{port}")
    (finding,) = doctor.check_resolver(settings.dns_server)
    assert (finding.level, address in finding.text) == (Level.OK, True)
