"""What breaks in mid-campaign, on three real hosts: after each fault nothing was handed over twice, and nobody is
forgotten. Run by ``make e2e``; one provisioned fleet for all, one campaign for each fault, the host that dies last.

Everything that the product says is held against Exim's logs and spools on the hosts, read from outside, and against
what lies with the mailbox providers.
"""

import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine, func, select

from mailer_lib.agent.mta_queue import UNNAMED, EximQueue, queue_name
from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.schema import campaigns, leases, sends
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import MIN_GRANT_ROWS, leases_of_send
from mailer_lib.dispatch.sends import find_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.dispatch.stranded import stranded_rows
from mailer_lib.dispatch.unknown import unknown_rows
from mailer_lib.settings import Settings, load_settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome
from tests.e2e.company import Company, a_company
from tests.hosts.host import Host

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.fleet,
    pytest.mark.fault,
    pytest.mark.timeout(2400),
]
HOSTS = 3
PEOPLE = int(os.environ.get("MAILFLEET_E2E_FAULT_PEOPLE", "600"))
PACE_PER_S = 15  # the fault strikes in mid-campaign, and the slots have gone from their workers to the triggerer
PROVIDERS = {
    "isp-a.test": "",
    "isp-b.test": "domains: {isp-b.test: {defer: {share: 0.2}}}",  # always: so the hosts' queues hold something
    "isp-c.test": "",
    "isp-d.test": "domains: {isp-d.test: {slow: {after_dot_ms: 100}}}",
}
DAG = "campaign_send"
RUN_S = 900.0  # a minute for each of a dozen tasks on a busy machine
_ACCEPTED = re.compile(r" (\w+-\w+-\w+) <= b-\S+ .* id=([0-9a-f]{32})\b")


@dataclass
class Campaign:
    """One send, while it runs and afterwards."""

    company: Company
    name: str
    engine: Engine
    settings: Settings
    run_id: str = ""
    began: float = field(default_factory=time.monotonic)

    @property
    def ref(self) -> str:
        return f"{self.name}#1"

    @property
    def send_id(self) -> int:
        with read(self.engine) as connection:
            return find_send(connection, self.ref).id

    def start(self) -> None:
        self.company.campaign(self.name, f"pace_per_s: {PACE_PER_S}")
        self.run_id = self.company.trigger(self.name)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = RUN_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.company.api.run(DAG, self.run_id)["state"] not in ("success", "failed"), self.explain()
            assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}\n{self.explain()}"
            time.sleep(1)

    def until_all_send(self, rows: int = 5) -> None:
        """Every host has handed over some, and most are still to come."""

        def all_send() -> bool:
            by_server = self.injected_by_server()
            return len(by_server) == HOSTS and min(by_server.values()) >= rows

        self.until(all_send, "every host sends")

    def until_in_triggerer(self) -> None:
        self.until(lambda: {task["state"] for task in self.dispatch_tasks()} == {"deferred"}, "all slots are deferred")

    def until_over(self) -> None:
        """The run has ended. One that ended with unsent rows is triggered again, as its report says."""
        for _ in range(2):
            if self.company.api.wait(DAG, self.run_id, RUN_S) == "success":
                return
            print(f"{self.name}: the run failed and is triggered again")
            print(self.explain())
            self.run_id = self.company.trigger(self.name)
        assert self.company.api.wait(DAG, self.run_id, RUN_S) == "success", self.explain()

    def injected_by_server(self) -> dict[int, int]:
        with read(self.engine) as connection:
            rows = connection.execute(
                select(leases.c.server_id, func.sum(leases.c.injected))
                .where(leases.c.send_id == sends.c.id, sends.c.edition == "1", campaigns.c.name == self.name)
                .where(sends.c.campaign_id == campaigns.c.id)
                .group_by(leases.c.server_id)
            ).all()
        return {row[0]: int(row[1]) for row in rows}

    def dispatch_tasks(self) -> list[dict[str, object]]:
        tasks = self.company.api.tasks(DAG, self.run_id)
        return [task for task in tasks if task["task_id"] == "dispatch" and task["map_index"] >= 0]

    def explain(self) -> str:
        return self.company.api.explain(DAG, self.run_id)


@dataclass(frozen=True)
class Found:
    """What became of a campaign, each figure from the source that can't flatter."""

    name: str
    frozen: int
    injected: int
    unknown: int
    stranded: int
    twice: int  # Message-IDs with two queue ids
    forgotten: int  # in no Exim's log, spool or provider, and in no list
    arrived_twice: int  # one queue id, delivered twice: RFC 1047
    seconds: float

    def line(self) -> str:
        return (
            f"| {self.name} | {self.frozen} | {self.injected} | {self.unknown} | {self.stranded} | {self.twice} | "
            f"{self.forgotten} | {self.arrived_twice} | {self.seconds:.0f} |"
        )


def look(campaign: Campaign) -> Found:
    """Hold books, ledgers and lists against the hosts and the providers, to the recipient."""
    company, engine, settings = campaign.company, campaign.engine, campaign.settings
    books = json.loads(company.command("send", "books", campaign.ref, "--json"))
    assert books["problems"] == []
    assert books["balanced"], books
    outcomes: dict[str, Outcome] = {}
    with read(engine) as connection:
        held = leases_of_send(connection, campaign.send_id)
    frozen: set[str] = set()
    for lease in held:
        keys = load_columns(store(settings) / lease.snapshot_path / lease.shard_path).message_key
        frozen |= {key.hex() for key in keys}
        outcomes |= {
            keys[row].hex(): final.outcome for row, final in final_rows(KeptLedger(store(settings), lease)).items()
        }
    assert outcomes.keys() == frozen
    unknown = {row.message_key for row in unknown_rows(engine, settings, campaign.send_id)}
    stranded = {row.message_key for row in stranded_rows(engine, settings, campaign.ref)}
    assert f"{len(unknown)} unknown." in company.command("send", "unknown", campaign.ref)
    assert f"{len(stranded)} stranded" in company.command("send", "stranded", campaign.ref)
    assert unknown == {key for key, outcome in outcomes.items() if outcome is Outcome.UNKNOWN}

    queue_ids: dict[str, set[str]] = defaultdict(set)
    arrived: Counter[str] = Counter()
    for host in company.fleet.hosts:
        for queue_id, key in _ACCEPTED.findall(company.main_log(host)):
            queue_ids[key].add(queue_id)
        for key, ids in in_spool(campaign, host).items():
            queue_ids[key] |= ids
        panic = host.root / "var/log/exim4/paniclog"
        assert not panic.exists() or panic.read_text() == "", panic.read_text()
    for message_id, ids in company.received(campaign.name).items():
        key = message_id[:32]
        queue_ids[key] |= ids.keys()
        arrived.update(ids)
    handed = queue_ids.keys() & frozen
    injected = {key for key, outcome in outcomes.items() if outcome is Outcome.INJECTED}
    assert injected <= handed, f"{len(injected - handed)} are called injected, and no host has them"
    assert handed <= injected | unknown, f"{len(handed - injected - unknown)} were handed over, and no book says so"
    return Found(
        name=campaign.name,
        frozen=len(frozen),
        injected=len(injected),
        unknown=len(unknown),
        stranded=len(stranded),
        twice=sum(len(queue_ids[key]) > 1 for key in frozen),
        forgotten=len(frozen - handed - unknown),
        arrived_twice=sum(times > 1 for queue_id, times in arrived.items()),
        seconds=time.monotonic() - campaign.began,
    )


def in_spool(campaign: Campaign, host: Host) -> dict[str, set[str]]:
    """Queue ids by message key of what lies on a host, also of one that is off."""
    queue = EximQueue(host.root / "var/spool/exim4", (UNNAMED, queue_name(campaign.send_id)))
    found: dict[str, set[str]] = defaultdict(set)
    for message in queue.messages():
        found[message.message_key.hex()].add(message.queue_id)
    return found


# --- faults -----------------------------------------------------------------------------------------------------------


def triggerer_killed(campaign: Campaign) -> None:
    """All slots are in it. Its supervisor starts another after a moment."""
    campaign.until_all_send()
    campaign.until_in_triggerer()
    campaign.company.stack.processes.kill("triggerer")
    time.sleep(5)
    campaign.company.stack.start_one("triggerer")
    campaign.until_over()


def task_cleared(campaign: Campaign) -> None:
    campaign.until_all_send()
    campaign.until_in_triggerer()
    host = campaign.company.fleet.hosts[0]
    assert agents_on(campaign, host) >= 1
    (task,) = [task for task in campaign.dispatch_tasks() if task["rendered_map_index"] == host.name]
    campaign.company.api.clear(DAG, campaign.run_id, "dispatch", int(str(task["map_index"])))
    campaign.until_over()


def agent_killed(campaign: Campaign) -> None:
    campaign.until_all_send()
    host = campaign.company.fleet.hosts[0]
    said = campaign.company.fleet.run(host, "pkill -9 -f 'mailer_lib[.]agent /'")
    assert said.returncode == 0, said.stderr
    campaign.until_over()


def exim_killed(campaign: Campaign) -> None:
    """Listener, receptions and queue runners; systemd starts them again."""
    campaign.until_all_send()
    said = campaign.company.fleet.run(campaign.company.fleet.hosts[0], "pkill -9 exim4")
    assert said.returncode == 0, said.stderr
    campaign.until_over()


def network_cut_for_60_s(campaign: Campaign) -> None:
    campaign.until_all_send()
    company = campaign.company
    number = company.fleet.hosts[0].number
    company.fleet.switch.pull(number)
    time.sleep(60)
    company.fleet.switch.push(number)
    campaign.until_over()


def network_cut_for_good(campaign: Campaign) -> None:
    campaign.until_all_send()
    host = campaign.company.fleet.hosts[1]
    campaign.company.fleet.switch.pull(host.number)
    time.sleep(15)
    give_up(campaign, host)


def powered_off(campaign: Campaign) -> None:
    campaign.until_all_send()
    host = campaign.company.fleet.hosts[2]
    host.power_off()
    time.sleep(15)
    give_up(campaign, host)


def give_up(campaign: Campaign, host: Host) -> None:
    """The operator's answer to a host that is gone; what it held is listed to the recipient."""
    print(campaign.company.command("send", "lose-server", host.name, "--yes").strip())
    campaign.until_over()
    unknown = {row.message_key for row in unknown_rows(campaign.engine, campaign.settings, campaign.send_id)}
    stranded = {row.message_key for row in stranded_rows(campaign.engine, campaign.settings, campaign.ref)}
    grant = max(MIN_GRANT_ROWS, PACE_PER_S / (HOSTS - 1) * campaign.settings.grant_s)
    assert len(unknown) <= grant + MIN_GRANT_ROWS
    assert in_spool(campaign, host).keys() <= unknown | stranded


FAULTS: list[tuple[Callable[[Campaign], None], int]] = [  # and what is unknown afterwards, at most
    (agent_killed, 0),
    (exim_killed, 0),
    (triggerer_killed, 0),
    (task_cleared, 0),
    (network_cut_for_60_s, 0),
    (network_cut_for_good, PEOPLE),
    (powered_off, PEOPLE),
]


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    root, internet = tmp_path_factory.mktemp("company"), tmp_path_factory.mktemp("internet")
    with a_company(root, internet, HOSTS, PROVIDERS, 50) as company:
        company.set_up(PEOPLE)
        company.provision()
        company.verify()
        company.wait_for_airflow()
        yield company


@pytest.mark.parametrize(("fault", "most_unknown"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_after_a_fault_nobody_is_forgotten_and_nothing_was_handed_over_twice(
    company: Company, fault: Callable[[Campaign], None], most_unknown: int
) -> None:
    settings = load_settings()
    engine = open_engine(settings.url)
    try:
        campaign = Campaign(company, fault.__name__.replace("_", "-"), engine, settings)
        campaign.start()
        fault(campaign)
        found = look(campaign)
        print(found.line())
        assert (found.frozen, found.twice, found.forgotten) == (PEOPLE, 0, 0)
        assert found.injected + found.unknown == PEOPLE
        assert found.unknown <= most_unknown
        if fault is network_cut_for_good:
            comes_back(campaign, company.fleet.hosts[1])
    finally:
        engine.dispose()


def comes_back(campaign: Campaign, host: Host) -> None:
    """A host that was given up can be reached again: it is fenced until its ledgers were read, and they tell."""
    company = campaign.company
    company.fleet.switch.push(host.number)
    time.sleep(2)
    print(company.command("server", "reconcile", host.name).strip())
    company.command("server", "state", host.name, "active")
    found = look(campaign)
    print(Found(**{**found.__dict__, "name": f"{found.name}, reconciled"}).line())
    assert (found.injected, found.unknown, found.stranded, found.twice, found.forgotten) == (PEOPLE, 0, 0, 0, 0)


def agents_on(campaign: Campaign, host: Host) -> int:
    return int(campaign.company.fleet.run(host, "pgrep -c -f 'mailer_lib[.]agent /'").stdout)
