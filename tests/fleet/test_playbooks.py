"""The playbooks on a real host: from bare Debian to a dispatch server, and out of service again."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mailer_lib.fleet.playbooks import HostResult, Playbook, PlaybookEvent, PlaybookHost, run_playbook
from mailer_lib.fleet.wheelhouse import wheelhouse
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome
from tests.hosts.base import CACHE
from tests.hosts.fleet import Fleet

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]

VERP = "b-0123456789abcdef0123456789abcdef-c-0123456789"
MTA_KEY = "-----BEGIN PRIVATE KEY-----\nnever seen\n-----END PRIVATE KEY-----"


@dataclass
class Provisioned:
    fleet: Fleet
    settings: Settings
    variables: dict[str, object]
    first: HostResult
    events: list[PlaybookEvent]

    def run(self, name: Playbook, *, check: bool = False, **changes: object) -> HostResult:
        return play(self.fleet, self.settings, name, {**self.variables, **changes}, self.events, check=check)

    def sh(self, command: str) -> str:
        said = self.fleet.run(self.fleet.hosts[0], command)
        return said.stdout + said.stderr


def play(
    fleet: Fleet,
    settings: Settings,
    name: Playbook,
    variables: dict[str, object],
    events: list[PlaybookEvent],
    *,
    check: bool = False,
) -> HostResult:
    host = fleet.hosts[0]
    hosts = [PlaybookHost(host.name, host.address, host.host_key)]
    started = time.monotonic()
    with fleet.switch.inside():
        results = run_playbook(settings, name, hosts, variables=variables, on_event=events.append, check=check)
    print(f"{name}{' --check' if check else ''}: {time.monotonic() - started:.0f} s, {results[host.name]}")
    return results[host.name]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    home = tmp_path_factory.mktemp("home")
    (CACHE / "wheelhouse").mkdir(parents=True, exist_ok=True)
    (home / "wheelhouse").symlink_to(CACHE / "wheelhouse")  # 70 MB that one machine needs to download once
    providers = {"isp-a.test": "", "isp-b.test": "domains: {isp-b.test: {defer: {first: 100}}}"}
    with Fleet(tmp_path_factory.mktemp("internet"), hosts=1, providers=providers) as fleet:
        settings = Settings(home=home, ssh_key_ref=f"file:{fleet.folder / 'key'}")
        agent = wheelhouse(settings)
        variables: dict[str, object] = {
            "exim_helo_name": "host-1.fleet.test",
            "exim_return_path_domains": ["bounce.news.test"],
            "exim_providers": [{"name": "isp_b", "domains": ["isp-b.test"], "max_parallel": 2}],
            "base_authorized_keys": [(fleet.folder / "key.pub").read_text()],
            "agent_wheelhouse": str(agent.path),
            "agent_release": agent.release,
        }
        events: list[PlaybookEvent] = []
        first = play(fleet, settings, Playbook.PROVISION, variables, events)
        yield Provisioned(fleet, settings, variables, first, events)


def test_a_bare_host_becomes_a_dispatch_server(server: Provisioned) -> None:
    assert server.first.outcome is HostOutcome.CHANGED, server.first
    said = server.sh("systemctl is-active exim4 mailfleet-queues nftables; ss -Htln; cat /var/log/exim4/paniclog")
    assert said.split()[:3] == ["active"] * 3, said


def test_a_second_run_changes_nothing(server: Provisioned) -> None:
    assert server.run(Playbook.PROVISION).outcome is HostOutcome.OK
    assert server.run(Playbook.PROVISION, check=True).outcome is HostOutcome.OK
