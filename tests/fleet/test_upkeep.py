"""Playbooks on servers that were provisioned: what they are given, whom they refuse, what the audit log says."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log
from mailer_lib.fleet import domains, pools, servers, upkeep
from mailer_lib.fleet.login_key import make_login_key
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.playbooks import HostResult, Playbook, PlaybookHost
from mailer_lib.fleet.upkeep import Upkeep
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome, ServerState

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDkNtfpbZBVyoOWdTmmLxTXtEC2dLmYYXdy1oTTBSHs6"


@dataclass
class Ansible:
    """Notes what would be run; ``outcome`` is what it comes to."""

    outcome: HostOutcome = HostOutcome.CHANGED
    ran: list[tuple[Playbook, PlaybookHost, dict[str, Any]]] = field(default_factory=list)

    def __call__(
        self, settings: Settings, name: Playbook, hosts: list[PlaybookHost], *, variables: dict[str, Any], **_: Any
    ) -> dict[str, HostResult]:
        self.ran += [(name, host, variables) for host in hosts]
        return {host.name: HostResult(host.name, self.outcome, "so it ended") for host in hosts}


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> Ansible:
    made = Ansible()
    monkeypatch.setattr(upkeep, "run_playbook", made)
    return made


@pytest.fixture
def fleet(engine: Engine, settings: Settings) -> Upkeep:
    """One server that was provisioned."""
    make_login_key(settings.keys_dir / "ssh_ed25519")
    spec = servers.make_spec(
        name="mta-1", pool="main", channel="ssh", host="192.0.2.7", host_key=HOST_KEY, helo_name="mta1.example.com"
    )
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        pools.set_limit(connection, "main", "gmail", 36_000, actor="test")
        domains.add(connection, settings, "news.example.com", actor="test")
        servers.add(connection, spec, actor="test")
        servers.set_provisioned(connection, "mta-1", now())
    return Upkeep(engine, settings, "ann")


def audited(engine: Engine) -> list[tuple[str, str]]:
    rows = select(audit_log).where(audit_log.c.action.like("playbook %"))
    with read(engine) as connection:
        return [(row.action, row.detail["outcome"]) for row in connection.execute(rows)]


def test_configuring_gives_exim_what_the_central_tables_say(fleet: Upkeep, ansible: Ansible) -> None:
    assert fleet.configure(["mta-1"])["mta-1"].outcome is HostOutcome.CHANGED
    ((playbook, host, variables),) = ansible.ran
    assert playbook is Playbook.CONFIGURE
    assert host.variables["exim_providers"] == [
        {"name": "gmail", "domains": ["gmail.com", "googlemail.com"], "max_parallel": 10}
    ]
    assert variables == {"exim_return_path_domains": ["bounce.news.example.com"]}
    assert audited(fleet.engine) == [("playbook configure", "changed")]


def test_a_dry_run_leaves_no_trace(fleet: Upkeep, ansible: Ansible) -> None:
    Upkeep(fleet.engine, fleet.settings, "ann", check=True).configure(["mta-1"])
    assert ansible.ran
    assert audited(fleet.engine) == []


def test_what_failed_is_in_the_audit_log_and_may_be_done_again(fleet: Upkeep, ansible: Ansible) -> None:
    ansible.outcome = HostOutcome.FAILED
    fleet.configure(["mta-1"])
    ansible.outcome = HostOutcome.CHANGED
    fleet.configure(["mta-1"])
    assert audited(fleet.engine) == [("playbook configure", "failed"), ("playbook configure", "changed")]


def test_the_next_login_key_is_let_in_beside_the_present_one(fleet: Upkeep, ansible: Ansible) -> None:
    make_login_key(fleet.settings.keys_dir / "next")
    fleet.renew_host_keys(["mta-1"], next_login_key="file:keys/next")
    fleet.renew_host_keys(["mta-1"])
    both, alone = (variables["base_authorized_keys"] for _, _, variables in ansible.ran)
    assert len(both) == 2
    assert alone == both[:1]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("state", "says"),
    [(ServerState.FENCED, "it is given up"), (ServerState.RETIRED, "retired"), (ServerState.PROVISIONING, "wait")],
)
def test_who_is_out_of_service_is_not_configured(
    fleet: Upkeep, ansible: Ansible, state: ServerState, says: str
) -> None:
    with write(fleet.engine) as connection:
        servers.set_state(connection, "mta-1", state, actor="test")
    with pytest.raises(FleetError, match=says):
        fleet.configure(["mta-1"])
    assert ansible.ran == []


def test_a_server_whose_owner_installed_it_is_left_alone(fleet: Upkeep, ansible: Ansible) -> None:
    with write(fleet.engine) as connection:
        moved = servers.get(connection, "mta-1").spec().model_copy(update={"host": "192.0.2.8"})
        servers.add(connection, moved, actor="test", replace=True)  # another machine under the same name
        servers.pin(connection, "mta-1", HOST_KEY, actor="test")
    with pytest.raises(FleetError, match="mta-1 wasn't installed by Mailfleet"):
        fleet.configure(["mta-1"])
    assert ansible.ran == []
