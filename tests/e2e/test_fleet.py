"""From bare hosts to a finished campaign: provisioned, verified, sent over SSH from Airflow to four mailbox providers.

``make e2e`` runs it with three hosts and 10,000 people; CI with one host and few. Everything, Airflow too, lives in the
test fleet's network, which has no way out.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_binary_file, message_from_bytes
from pathlib import Path

import dkim
import pytest
from rich.console import Console
from sqlalchemy import func, select

from examples.demo.airflow_api import AirflowApi
from examples.demo.commands import DemoError, mailfleet, python_module
from examples.demo.stack import OPERATOR, PROJECT, Stack, free_port
from examples.demo.up import make_pools
from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.schema import leases
from mailer_lib.settings import load_settings
from tests.hosts.base import CACHE
from tests.hosts.fleet import Fleet
from tests.hosts.host import Host

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.fleet,
    pytest.mark.timeout(1800),
]
HOSTS = int(os.environ.get("MAILFLEET_E2E_HOSTS", "1"))
PEOPLE = int(os.environ.get("MAILFLEET_E2E_PEOPLE", "400"))
DOMAIN, RETURN_PATH = "news.shop.test", "bounce.news.shop.test"
PROVIDERS = {
    "isp-a.test": "",
    "isp-b.test": "domains: {isp-b.test: {defer: {first: 1, share: 0.2}}}",
    "isp-c.test": 'domains: {isp-c.test: {unknown: {pattern: "6$"}}}',
    "isp-d.test": "domains: {isp-d.test: {slow: {after_dot_ms: 20}}}",
}
CAMPAIGN = f"""\
name: spring
list: newsletter
criteria: everybody
seed_list: team
from: {{name: Shop, address: hello@{DOMAIN}}}
sending_domain: {DOMAIN}
sending_pool: main
subject: "Hello {{{{ contact.given_name }}}}"
template: {{html: letter.html}}
tracking: {{links: false, opens: false}}
postal_address: Shop AS, Strandgaten 21, 5013 Bergen, Norway
defaults: {{given_name: friend}}
expires_after: 24h
approval: {{required: false}}
"""
LETTER = """\
<html><body><p>Hello {{ contact.given_name }}</p><p>{{ postal_address }}</p>
<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>
"""


@dataclass
class Company:
    """The centre of an installation, in the fleet's network."""

    root: Path
    fleet: Fleet
    stack: Stack
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.stack.url, OPERATOR, self.stack.password())

    def command(self, *arguments: str) -> str:
        return mailfleet(Console(quiet=True), *arguments, show=False)

    def phase(self, name: str, since: float) -> None:
        self.phases[name] = time.monotonic() - since
        print(f"{name}: {self.phases[name]:.1f} s")


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    pytest.importorskip("airflow")
    root = tmp_path_factory.mktemp("company")
    before = dict(os.environ)
    with Fleet(tmp_path_factory.mktemp("internet"), hosts=HOSTS, providers=PROVIDERS) as fleet, fleet.switch.inside():
        port = free_port()
        env = {
            "MAILFLEET_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "MAILFLEET_SERVE_PORT": str(port),
            "MAILFLEET_HOME": str(root / "home"),
            "MAILFLEET_SHARD_ROWS": str(max(50, PEOPLE // 12)),
            "MAILFLEET_DNS_SERVER": fleet.switch.gateway,
            "MAILFLEET_PROBE_HOST": "mx.isp-a.test",
            "MAILFLEET_SEED_ADDRESS": "seed@isp-a.test",
            "MAILFLEET_SEED_MAILDIR": str(fleet.providers["isp-a.test"].maildir),
        }
        for name in [name for name in os.environ if name.startswith("MAILFLEET_")]:
            del os.environ[name]
        os.environ |= env
        load_settings.cache_clear()
        company = Company(root, fleet, Stack(root / "airflow", free_port(), env))
        try:
            company.stack.prepare()
            company.stack.start()
            yield company
        finally:
            company.stack.stop()
            os.environ.clear()
            os.environ.update(before)
            load_settings.cache_clear()


def test_bare_hosts_become_a_fleet_that_sends_a_campaign_from_airflow(company: Company) -> None:
    set_up(company)
    names = [host.name for host in company.fleet.hosts]
    provision(company, names)
    verify(company, names)
    books = send(company)
    assert books["frozen"] == books["injected"] == PEOPLE
    assert books["duplicates"] == 0
    balance(company, books)


def set_up(company: Company) -> None:
    company.command("init")
    (company.root / "home/wheelhouse").parent.mkdir(exist_ok=True)
    (CACHE / "wheelhouse").mkdir(parents=True, exist_ok=True)
    (company.root / "home/wheelhouse").symlink_to(CACHE / "wheelhouse")
    company.command("lists", "add", "newsletter", "--title", "News")
    company.command("domain", "add", DOMAIN, "--return-path", RETURN_PATH)
    company.command("pool", "add", "main")
    company.command("seeds", "add", "team", "seed@isp-a.test", "--name", "Seed")
    people = company.root / "people.csv"
    domains = list(PROVIDERS)
    rows = [f"person{n}@{domains[n % len(domains)]},Person {n},2026-01-01T10:00:00Z" for n in range(PEOPLE)]
    people.write_text("E-Mail,First name,Signed up at\n" + "\n".join(rows) + "\n")
    consent = ("--consent", "confirmed", "--consent-at", "Signed up at", "--consent-source", "test")
    company.command("contacts", "import", str(people), "--list", "newsletter", *consent)
    rules = company.root / "everybody.json"
    rules.write_text('{"combinator": "and", "rules": [{"field": "given_name", "operator": "notNull"}]}')
    company.command("criteria", "save", "everybody", str(rules))
    (company.root / "letter.html").write_text(LETTER)
    (company.root / "campaign.yaml").write_text(CAMPAIGN)
    company.command("campaign", "create", str(company.root / "campaign.yaml"))
    company.stack.processes.start("serve", python_module("serve"), company.stack.env, cwd=PROJECT)


def provision(company: Company, names: list[str]) -> None:
    """What an operator does: put our key on the machines, pin theirs, provision them all at once."""
    started = time.monotonic()
    key = company.command("server", "key")
    for host in company.fleet.hosts:
        theirs = (company.fleet.folder / "key.pub").read_text()
        host.write("/root/.ssh/authorized_keys", theirs + key, mode=0o600)
        company.command(
            *("server", "add", host.name, "--pool", "main", "--channel", "ssh", "--host", host.address),
            *("--helo-name", f"{host.name}.fleet.test", "--state", "standby"),
        )
        company.command("server", "pin", host.name, "--fingerprint", fingerprint(company.fleet, host))
    company.command("server", "provision", *names)
    company.phase("provisioned", started)


def verify(company: Company, names: list[str]) -> None:
    """Verification prints the records that are missing; once they are published, it passes."""
    started = time.monotonic()
    with pytest.raises(DemoError) as missing:
        company.command("server", "verify", names[0])
    lines = str(missing.value).partition("to publish in DNS:")[2].strip().splitlines()
    company.fleet.publish(line for line in lines if re.match(r"\S+\s+(\d+\s+)?(IN\s+)?(TXT|MX|A|PTR)\s", line))
    for name in names:
        company.command("server", "verify", name)
        company.command("server", "activate", name, "--warmed")
    company.phase("verified", started)


def send(company: Company) -> dict[str, int]:
    started = time.monotonic()
    company.stack.wait_healthy()
    api = company.api
    api.wait_for_dags({"campaign_send"})
    make_pools(api)
    company.phase("Airflow up", started)
    started = time.monotonic()
    conf = {"campaign": "spring", "edition": "1", "mode": "send", "approval": False}
    run_id = api.trigger("campaign_send", conf)
    assert api.wait("campaign_send", run_id, 600) == "success", api.explain("campaign_send", run_id)
    company.phase("sent", started)
    books: dict[str, int] = api.xcom("campaign_send", run_id, "report")
    return books


def balance(company: Company, books: dict[str, int]) -> None:
    """Frozen rows, ledgers, Exim's logs and what the providers got, to the recipient."""
    started = time.monotonic()
    refused = sum(n % len(PROVIDERS) == 2 and str(n).endswith("6") for n in range(PEOPLE))
    wanted = books["injected"] - refused
    deadline = time.monotonic() + 240
    while (arrived := received(company.fleet)).total() + greylisted(company.fleet) < wanted:
        assert time.monotonic() < deadline, f"{arrived.total()} of {wanted} arrived; {queues(company)}"
        time.sleep(1)
    assert arrived.total() + greylisted(company.fleet) == wanted
    company.phase("delivered", started)
    assert set(arrived.values()) == {1}
    accepted: Counter[str] = Counter()
    for host in company.fleet.hosts:
        log = (host.root / "var/log/exim4/mainlog").read_text()
        accepted.update(re.findall(r" <= b-\S+ .* id=(\S+@\S+)", log))
        panic = host.root / "var/log/exim4/paniclog"
        assert not panic.exists() or panic.read_text() == ""
    assert accepted.total() == len(accepted) == books["injected"]
    assert set(arrived) <= set(accepted)
    engine = open_engine(load_settings().url)
    with read(engine) as connection:
        injected = connection.scalar(select(func.sum(leases.c.injected)))
        servers = connection.scalar(select(func.count(leases.c.server_id.distinct())))
    engine.dispose()
    assert (int(injected or 0), servers) == (books["injected"], HOSTS)
    signed(company)


def received(fleet: Fleet) -> Counter[str]:
    """How often each Message-ID of the campaign lies with the providers."""
    found: Counter[str] = Counter()
    for provider in fleet.providers.values():
        for path in (provider.maildir / "new").iterdir():
            with path.open("rb") as file:
                headers = message_from_binary_file(file)
            if ":spring#1:" in (headers["Feedback-ID"] or ""):
                found[headers["Message-ID"].strip("<>")] += 1
    return found


def greylisted(fleet: Fleet) -> int:
    """What waits on the hosts for another attempt, a quarter of an hour later."""
    logs = [(host.root / "var/log/exim4/mainlog").read_text() for host in fleet.hosts]
    deferred = {found for log in logs for found in re.findall(r" (\S+) == \S+@isp-b\.test ", log)}
    over = {found for log in logs for found in re.findall(r" (\S+) Completed", log)}
    return len(deferred - over)


def signed(company: Company) -> None:
    """A message of each provider, as it arrived, against the key that DNS publishes."""
    for provider in company.fleet.providers.values():
        data = next(
            data
            for data in (path.read_bytes() for path in (provider.maildir / "new").iterdir())
            if ":spring#1:" in (message_from_bytes(data)["Feedback-ID"] or "")
        )
        assert dkim.verify(data, dnsfunc=lambda name, timeout=5: txt(company.fleet, name))


def txt(fleet: Fleet, name: bytes) -> bytes | None:
    from dns.resolver import Resolver

    resolver = Resolver(configure=False)
    resolver.nameservers = [fleet.switch.gateway]
    answer = resolver.resolve(name.decode(), "TXT")
    return b"".join(answer[0].strings)


def queues(company: Company) -> str:
    return "; ".join(company.fleet.run(host, "exim4 -bpc; ls /var/spool/exim4").stdout for host in company.fleet.hosts)


def fingerprint(fleet: Fleet, host: Host) -> str:
    """As the host's own console shows it."""
    said = fleet.run(host, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout
    return said.split()[1]
