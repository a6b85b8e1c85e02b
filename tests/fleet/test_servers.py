"""Dispatch servers and sending pools: what is stored, what is refused, and that every change is in the audit log."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import audit_log
from mailer_lib.fleet import pools, servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.terms import ChannelKind, MtaKind, ServerState, SmtpSecurity
from tests.conftest import Ran

PLAIN = {"name": "mta-1", "pool": "main", "helo_name": "mta1.fjordfern.example"}


def _audit(engine: Engine) -> list[tuple[str, str]]:
    with read(engine) as connection:
        rows = connection.execute(select(audit_log.c.action, audit_log.c.object).order_by(audit_log.c.id))
        return [(row.action, row.object) for row in rows]


@pytest.fixture
def pool(engine: Engine) -> int:
    with write(engine) as connection:
        return pools.ensure(connection, "main", actor="test")


def test_a_server_comes_back_as_it_was_given(engine: Engine, pool: int) -> None:
    spec = servers.make_spec(
        **PLAIN, channel="ssh", host="10.0.0.7", slots=2, mta="exim", mta_log="/var/log/exim4/mainlog",
        mta_spool="/var/spool/exim4", smtp_security="starttls", smtp_user="fleet", smtp_password_ref="env:RELAY",
        connections=8, per_hour=20_000, smtp_host="::1", smtp_port=587, state="standby",
    )  # fmt: skip
    with write(engine) as connection:
        server_id, changed = servers.add(connection, spec, actor="ann")
    with read(engine) as connection:
        found = servers.get(connection, "mta-1")
    assert changed
    assert (found.id, found.pool_id) == (server_id, pool)
    assert found.spec() == spec
    assert (found.channel, found.mta, found.smtp_security) == (ChannelKind.SSH, MtaKind.EXIM, SmtpSecurity.STARTTLS)
    assert _audit(engine)[-1] == ("add", "server:mta-1")


def test_adding_the_same_again_changes_nothing_and_another_is_refused(engine: Engine, pool: int) -> None:
    spec = servers.make_spec(**PLAIN)
    with write(engine) as connection:
        servers.add(connection, spec, actor="ann")
        trail = connection.execute(select(audit_log)).all()
        assert servers.add(connection, spec, actor="ann")[1] is False
        assert connection.execute(select(audit_log)).all() == trail
        other = servers.make_spec(**PLAIN, slots=3)
        with pytest.raises(FleetError, match="another slots: use --replace"):
            servers.add(connection, other, actor="ann")
        servers.add(connection, other, actor="bob", replace=True)
        assert servers.get(connection, "mta-1").slots == 3
        last = connection.execute(select(audit_log).order_by(audit_log.c.id.desc())).first()
    assert last is not None
    assert (last.actor, last.action, last.detail) == ("bob", "change", {"slots": [1, 3]})


def test_a_server_that_was_given_up_does_not_come_back_by_being_added_again(engine: Engine, pool: int) -> None:
    with write(engine) as connection:
        servers.add(connection, servers.make_spec(**PLAIN), actor="ann")
        servers.fence(connection, "mta-1", actor="ann")
        for state in (ServerState.ACTIVE, ServerState.STANDBY):
            with pytest.raises(FleetError, match=r"mta-1 was given up.*`mailfleet server reconcile mta-1` first"):
                servers.add(connection, servers.make_spec(**PLAIN, state=state), actor="ann", replace=True)
        servers.add(connection, servers.make_spec(**PLAIN, slots=3), actor="ann", replace=True)
        assert (servers.get(connection, "mta-1").state, servers.get(connection, "mta-1").slots) == ("fenced", 3)
        servers.set_reconciled(connection, "mta-1", actor="ann")
        servers.add(connection, servers.make_spec(**PLAIN, state=ServerState.ACTIVE), actor="ann", replace=True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "MTA 1"}, "can't name a dispatch server"),
        ({"name": "../etc"}, "can't name a dispatch server"),
        ({"name": "a..b"}, "can't name a dispatch server"),
        ({"helo_name": "not a host"}, "isn't a host"),
        ({"channel": "ssh"}, "give both or neither"),
        ({"host": "10.0.0.7"}, "give both or neither"),
        ({"smtp_user": "fleet"}, "give both or neither"),
        ({"smtp_user": "fleet", "smtp_password_ref": "env:P"}, "isn't sent in plain text"),
        ({"mta": "exim", "mta_log": "/var/log/exim4/mainlog"}, "spool folder"),
        ({"mta": "sink"}, "main log"),
        ({"slots": 0}, "slots: "),
        ({"smtp_port": 70_000}, "smtp_port: "),
        ({"per_hour": 0}, "per_hour: "),
        ({"colour": "red"}, "colour: "),
    ],
)
def test_a_wrong_server_is_refused_with_a_sentence(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(FleetError, match=says):
        servers.make_spec(**(PLAIN | wrong))


def test_a_password_instead_of_a_reference_is_not_repeated() -> None:
    with pytest.raises((FleetError, SecretRefError)) as caught:
        servers.make_spec(**PLAIN, smtp_user="x", smtp_password_ref="correct-horse-battery", smtp_security="starttls")
    assert "horse" not in str(caught.value)


def test_a_server_needs_its_pool(engine: Engine) -> None:
    with write(engine) as connection, pytest.raises(FleetError, match="no sending pool 'main'"):
        servers.add(connection, servers.make_spec(**PLAIN), actor="ann")


def test_servers_by_pool_and_state(engine: Engine, pool: int) -> None:
    with write(engine) as connection:
        pools.ensure(connection, "other", actor="test")
        for name, pool_name in (("b", "main"), ("a", "main"), ("c", "other")):
            servers.add(connection, servers.make_spec(**(PLAIN | {"name": name, "pool": pool_name})), actor="ann")
        servers.set_state(connection, "b", ServerState.DRAINING, actor="ann")
    with read(engine) as connection:
        assert [s.name for s in servers.list_servers(connection)] == ["a", "b", "c"]
        assert [s.name for s in servers.list_servers(connection, pool_id=pool)] == ["a", "b"]
        active = servers.list_servers(connection, pool_id=pool, states={ServerState.ACTIVE, ServerState.WARMING})
        assert [s.name for s in active] == ["a"]
    assert _audit(engine)[-1] == ("state", "server:b")


def test_limits_are_set_changed_and_lifted(engine: Engine, pool: int) -> None:
    with write(engine) as connection:
        pools.set_limit(connection, "main", "gmail", 1000, actor="ann")
        pools.set_limit(connection, "main", "gmail", 500, actor="ann")
        pools.set_limit(connection, "main", "other", 70, actor="ann")
        assert pools.get(connection, "main").per_hour == {"gmail": 500, "other": 70}
        pools.set_limit(connection, "main", "other", None, actor="ann")
        assert pools.get(connection, "main").per_hour == {"gmail": 500}
    assert _audit(engine)[-4:] == [("limit", "pool:main")] * 4


def test_a_limit_for_each_server_and_a_shared_one_hold_side_by_side(engine: Engine, pool: int) -> None:
    with write(engine) as connection:
        pools.set_limit(connection, "main", "gmail", 1000, actor="ann")
        pools.set_limit(connection, "main", "gmail", 5000, actor="ann", shared=True)
        found = pools.get(connection, "main")
        assert (found.per_hour, found.shared_per_hour) == ({"gmail": 1000}, {"gmail": 5000})
        pools.set_limit(connection, "main", "gmail", None, actor="ann")
        found = pools.get(connection, "main")
        assert (found.per_hour, found.shared_per_hour) == ({}, {"gmail": 5000})
        pools.set_limit(connection, "main", "gmail", None, actor="ann", shared=True)
        assert pools.get(connection, "main").shared_per_hour == {}


@pytest.mark.parametrize(("provider", "per_hour"), [("gmial", 10), ("gmail", 0), ("gmail", -1)])
def test_a_limit_that_would_do_nothing_is_refused(engine: Engine, pool: int, provider: str, per_hour: int) -> None:
    with write(engine) as connection, pytest.raises(FleetError):
        pools.set_limit(connection, "main", provider, per_hour, actor="ann")


def test_the_commands(sqlite_engine: Engine, mailfleet: Callable[..., Ran]) -> None:
    assert mailfleet("pool", "add", "main").code == 0
    add = ("server", "add", "mta-1", "--pool", "main", "--helo-name", "mta1.fjordfern.example", "--slots", 2)
    assert mailfleet(*add).stdout == "dispatch server mta-1: stored\n"
    assert "as given" in mailfleet(*add).stdout
    assert mailfleet("server", "state", "mta-1", "draining").code == 0
    shown = mailfleet("server", "show", "mta-1").stdout
    assert "draining" in shown
    assert "mta1.fjordfern.example" in shown
    assert mailfleet("pool", "limit", "main", "gmail", "1200").code == 0
    shared = mailfleet("pool", "limit", "main", "gmail", "9000", "--shared").stdout
    assert shared == "main: gmail at most 9,000 an hour, shared by all servers\n"
    assert "gmail 1,200" in mailfleet("pool", "list").stdout
    assert mailfleet("pool", "limit", "main", "gmail", "many").code == 1
    assert mailfleet("pool", "limit", "main", "gmail", "none").code == 0
    assert "mta-1" in mailfleet("server", "list", "--pool", "main").stdout
    missing = mailfleet("server", "show", "mta-9")
    assert missing.code == 1
    assert missing.stderr == "mailfleet: there is no dispatch server 'mta-9' (there are: mta-1)\n"
