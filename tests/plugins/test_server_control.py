"""The task of server_control: each action reaches the server, under the name of who triggered it."""

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from mailfleet_airflow import server_control
from sqlalchemy import Engine, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, dispatch_servers
from mailer_lib.dispatch import key_rotation
from mailer_lib.dispatch.key_rotation import Rotated, Step
from mailer_lib.fleet import servers, upkeep
from mailer_lib.fleet.login_key import make_login_key
from mailer_lib.fleet.playbooks import HostResult
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome, ServerState
from tests.dispatch.test_retiring import HOST_KEY
from tests.dispatch.world import make_world


def apply(monkeypatch: pytest.MonkeyPatch, **params: Any) -> str:
    given = {"server": "mta-9", "dry_run": False, "wait_s": 0} | params
    run = SimpleNamespace(triggering_user_name="ann", run_id="manual__1")
    monkeypatch.setattr(server_control, "get_current_context", lambda: {"params": given, "dag_run": run})
    return server_control.apply_action.function()


@pytest.fixture
def fleet(sqlite_engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """A server that was provisioned. Playbooks are only noted, with whether they may change anything."""
    make_world(sqlite_engine, settings)
    make_login_key(settings.keys_dir / "ssh_ed25519")
    spec = servers.make_spec(
        name="mta-9", pool="main", channel="ssh", host="192.0.2.7", host_key=HOST_KEY, helo_name="mta9.example.com"
    )
    with write(sqlite_engine) as connection:
        servers.add(connection, spec, actor="test")
        servers.set_provisioned(connection, "mta-9", now())
        mine = dispatch_servers.c.name == "mta-9"
        connection.execute(update(dispatch_servers).where(mine).values(state=ServerState.ACTIVE))
    played: list[tuple[str, bool]] = []

    def run(settings: Settings, name: Any, hosts: Any, *, check: bool, variables: Any, **_: Any) -> Any:
        played.append((name, check))
        failed = variables.get("drain_wait_s") == 1
        outcome = HostOutcome.FAILED if failed else HostOutcome.CHANGED
        return {
            host.name: HostResult(host.name, outcome, "3 messages are left" if failed else "done") for host in hosts
        }

    monkeypatch.setattr(upkeep, "run_playbook", run)
    monkeypatch.setattr(server_control, "installation", lambda: (sqlite_engine, settings))
    return played


def test_every_action_runs_its_playbook_and_a_dry_run_changes_nothing(
    fleet: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch, sqlite_engine: Engine
) -> None:
    assert apply(monkeypatch, action="configure", dry_run=True) == "mta-9: configure (dry run): done, by ann"
    apply(monkeypatch, action="configure")
    apply(monkeypatch, action="renew")
    apply(monkeypatch, action="drain", wait_s=600)
    apply(monkeypatch, action="retire")
    assert fleet == [
        ("configure", True), ("configure", False), ("rotate-keys", False), ("drain", False), ("retire", False),
    ]  # fmt: skip
    with read(sqlite_engine) as connection:
        assert servers.get(connection, "mta-9").state is ServerState.RETIRED
        assert set(connection.scalars(select(audit_log.c.actor).where(audit_log.c.object == "server:mta-9"))) == {
            "ann", "test",
        }  # fmt: skip


def test_rotating_keys_says_what_to_publish(fleet: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Rotated("a.test", "mta-9-1", Step.PUBLISH, "it isn't published yet", "mta-9-1._domainkey.a.test. TXT …")]
    monkeypatch.setattr(key_rotation, "rotate", lambda *_, **__: made)
    said = apply(monkeypatch, action="rotate-keys")
    assert said == "mta-9: rotate-keys: it isn't published yet: mta-9-1._domainkey.a.test. TXT …, by ann"


def test_a_playbook_that_fails_fails_the_task_with_its_sentence(
    fleet: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AirflowFailException, match="mta-9: 3 messages are left"):
        apply(monkeypatch, action="drain", wait_s=1)
