"""Nobody logs in to a host that doesn't show the pinned key, and a key is pinned only when a person has compared it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from mailer_lib import doctor
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import audit_log
from mailer_lib.fleet import host_keys, login_key, pools, servers, ssh
from mailer_lib.fleet.names import FleetError
from mailer_lib.release import release
from mailer_lib.settings import Settings
from tests.conftest import Ran
from tests.sshd import Sshd

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBJK6Q0qHMQJmDzKcoMzBmhVgUJzKCEvMZtEX+Pm3fbA"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOVcQCXA9Ui7EyMYLnYfQ3HJWsYvFWn3KyySZzNhIB9l"


@pytest.fixture
def sshd(tmp_path: Path, settings: Settings) -> Iterator[Sshd]:
    login_key.make_login_key(settings.keys_dir / "ssh_ed25519")
    running = Sshd(tmp_path / "sshd", login_key.public_line(settings))
    yield running
    running.stop()


def store(engine: Engine, **values: object) -> servers.DispatchServer:
    spec = servers.make_spec(name="mta-1", pool="main", helo_name="mta1.example", **{"channel": "ssh", **values})
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        servers.add(connection, spec, actor="test", replace=True)
        return servers.get(connection, "mta-1")


def reach(sshd: Sshd, engine: Engine, host_key: str | None) -> servers.DispatchServer:
    return store(engine, host="127.0.0.1", ssh_port=sshd.port, ssh_user=sshd.user, host_key=host_key)


def test_a_command_runs_on_the_host_with_the_pinned_key_only(
    sshd: Sshd, sqlite_engine: Engine, settings: Settings
) -> None:
    server = reach(sshd, sqlite_engine, sshd.host_key)
    done = ssh.run(server, settings, "cat; echo no >&2; exit 3", stdin="yes")
    assert done == ssh.Completed(3, "yes", "no\n")
    with pytest.raises(ssh.SshRefusedError, match=r"another host key.*mailfleet server pin mta-1"):
        ssh.run(reach(sshd, sqlite_engine, OTHER), settings, "true")


def test_without_a_pinned_key_nobody_logs_in(sshd: Sshd, sqlite_engine: Engine, settings: Settings) -> None:
    with pytest.raises(FleetError, match="no host key is pinned"):
        ssh.run(reach(sshd, sqlite_engine, None), settings, "true")


def test_a_host_that_does_not_know_our_key_and_one_that_is_away_are_told_apart(
    sshd: Sshd, sqlite_engine: Engine, settings: Settings
) -> None:
    server = reach(sshd, sqlite_engine, sshd.host_key)
    sshd.authorize(OTHER)
    with pytest.raises(ssh.SshRefusedError, match=r"doesn't let .* in"):
        ssh.run(server, settings, "true")
    sshd.stop()
    with pytest.raises(ssh.SshUnreachableError, match="can't be reached"):
        ssh.run(server, settings, "true")


def test_the_doctor_logs_in_and_compares_the_release(
    sshd: Sshd, sqlite_engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def finding(server: servers.DispatchServer) -> str:
        (found,) = doctor.check_servers(settings, [server])
        return f"{found.level}: {found.text}"

    there = store(sqlite_engine, **sshd.reached_as(tmp_path / "jobs"))
    assert finding(there).startswith(f"ok: mta-1: 127.0.0.1 lets us in and has Mailfleet {release()}")
    assert "FAIL: mta-1: the agent isn't on" in finding(there.model_copy(update={"agent_python": "/nowhere"}))
    assert "FAIL: no host key is pinned for mta-1" in finding(there.model_copy(update={"host_key": None}))
    monkeypatch.setattr(doctor, "release", lambda: "9.9")
    assert "this is 9.9" in finding(there)


def test_a_key_is_pinned_after_its_fingerprint_was_compared(
    sshd: Sshd, sqlite_engine: Engine, mailfleet: Callable[..., Ran]
) -> None:
    reach(sshd, sqlite_engine, None)
    line = subprocess.run(
        ["ssh-keygen", "-lf", str(sshd.folder / "host_key.pub")], capture_output=True, text=True, check=True
    )
    true = line.stdout.split()[1]
    assert host_keys.fingerprint(sshd.host_key) == true
    refused = mailfleet("server", "pin", "mta-1", "--fingerprint", host_keys.fingerprint(OTHER))
    assert refused.code == 1
    assert "nothing is pinned" in refused.stderr
    with read(sqlite_engine) as connection:
        assert servers.get(connection, "mta-1").host_key is None
    assert mailfleet("server", "pin", "mta-1", "--fingerprint", true).code == 0
    with read(sqlite_engine) as connection:
        assert servers.get(connection, "mta-1").host_key == sshd.host_key
        last = connection.execute(select(audit_log).order_by(audit_log.c.id.desc())).first()
    assert last is not None
    assert (last.action, last.detail) == ("pin", {"before": None, "after": true})
    assert "pinned already" in mailfleet("server", "pin", "mta-1").stdout


def test_a_pin_stays_while_the_place_is_the_same(engine: Engine) -> None:
    store(engine, host="10.0.0.7", host_key=KEY)
    assert store(engine, host="10.0.0.7", slots=2).host_key == KEY
    assert store(engine, host="10.0.0.8").host_key is None


def test_only_a_public_key_can_be_pinned() -> None:
    assert host_keys.check_host_key(f"{KEY} root@host\n") == KEY
    for wrong in ("", "ssh-ed25519", "ssh-ed25519 AAAA", KEY.replace("ed25519", "rsa", 1), "-----BEGIN OPENSSH"):
        with pytest.raises(FleetError, match="a host key is given as"):
            host_keys.check_host_key(wrong)


def test_init_makes_the_login_key_once_and_server_key_prints_its_public_half(
    settings: Settings, mailfleet: Callable[..., Ran]
) -> None:
    path = settings.keys_dir / "ssh_ed25519"
    assert mailfleet("init").code == 0
    before = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    mailfleet("init")
    assert path.read_text() == before
    printed = mailfleet("server", "key").stdout
    made = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, text=True, check=True).stdout
    assert printed.split()[:2] == made.split()[:2]


def test_a_login_key_that_is_none_is_refused_without_a_word_of_it(
    settings: Settings, mailfleet: Callable[..., Ran]
) -> None:
    (settings.keys_dir / "ssh_ed25519").write_text("correct horse battery\n")
    ran = mailfleet("server", "key")
    assert ran.code == 1
    assert "MAILFLEET_SSH_KEY_REF" in ran.stderr
    assert "horse" not in ran.stderr
