"""The centre of an installation inside the test fleet's network: Airflow, contacts, campaigns, and servers over SSH."""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_binary_file
from functools import cached_property
from pathlib import Path

import pytest
from rich.console import Console

from examples.demo.airflow_api import AirflowApi
from examples.demo.commands import DemoError, mailfleet, python_module
from examples.demo.stack import OPERATOR, PROJECT, Stack, free_port
from examples.demo.up import make_pools
from mailer_lib.settings import load_settings
from tests.hosts.base import CACHE
from tests.hosts.fleet import Fleet
from tests.hosts.host import Host

DOMAIN, RETURN_PATH = "news.shop.test", "bounce.news.shop.test"
CAMPAIGN = """\
name: {name}
list: newsletter
criteria: everybody
seed_list: team
from: {{name: Shop, address: hello@{domain}}}
sending_domain: {domain}
sending_pool: main
subject: "Hello {{{{ contact.given_name }}}}"
template: {{html: letter.html}}
tracking: {{links: false, opens: false}}
postal_address: Shop AS, Strandgaten 21, 5013 Bergen, Norway
defaults: {{given_name: friend}}
expires_after: 24h
approval: {{required: false}}
{more}
"""
LETTER = """\
<html><body><p>Hello {{ contact.given_name }}</p><p>{{ postal_address }}</p>
<p><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>
"""


@dataclass
class Company:
    """``phases``: seconds of each step, printed as it ends."""

    root: Path
    fleet: Fleet
    stack: Stack
    phases: dict[str, float] = field(default_factory=dict)

    @cached_property
    def api(self) -> AirflowApi:
        return AirflowApi(self.stack.url, OPERATOR, self.stack.password())

    @property
    def names(self) -> list[str]:
        return [host.name for host in self.fleet.hosts]

    def command(self, *arguments: str) -> str:
        return mailfleet(Console(quiet=True), *arguments, show=False)

    def phase(self, name: str, since: float) -> None:
        self.phases[name] = time.monotonic() - since
        print(f"{name}: {self.phases[name]:.1f} s")

    def set_up(self, people: int) -> None:
        """``people`` confirmed subscribers, spread evenly over the providers."""
        self.command("init")
        (CACHE / "wheelhouse").mkdir(parents=True, exist_ok=True)
        (self.root / "home").mkdir(exist_ok=True)
        (self.root / "home/wheelhouse").symlink_to(CACHE / "wheelhouse")
        self.command("lists", "add", "newsletter", "--title", "News")
        self.command("domain", "add", DOMAIN, "--return-path", RETURN_PATH)
        self.command("pool", "add", "main")
        self.command("seeds", "add", "team", "seed@isp-a.test", "--name", "Seed")
        domains = list(self.fleet.providers)
        rows = [f"person{n}@{domains[n % len(domains)]},Person {n},2026-01-01T10:00:00Z" for n in range(people)]
        path = self.root / "people.csv"
        path.write_text("E-Mail,First name,Signed up at\n" + "\n".join(rows) + "\n")
        consent = ("--consent", "confirmed", "--consent-at", "Signed up at", "--consent-source", "test")
        self.command("contacts", "import", str(path), "--list", "newsletter", *consent)
        rules = self.root / "everybody.json"
        rules.write_text('{"combinator": "and", "rules": [{"field": "given_name", "operator": "notNull"}]}')
        self.command("criteria", "save", "everybody", str(rules))
        self.stack.processes.start("serve", python_module("serve"), self.stack.env, cwd=PROJECT)

    def campaign(self, name: str, more: str = "") -> None:
        """To everybody."""
        folder = self.root / "campaigns" / name
        folder.mkdir(parents=True)
        (folder / "letter.html").write_text(LETTER)
        (folder / "campaign.yaml").write_text(CAMPAIGN.format(name=name, domain=DOMAIN, more=more))
        self.command("campaign", "create", str(folder / "campaign.yaml"))

    def provision(self) -> None:
        """What an operator does: put our key on the machines, pin theirs, provision them all at once."""
        started = time.monotonic()
        key = self.command("server", "key")
        for host in self.fleet.hosts:
            theirs = (self.fleet.folder / "key.pub").read_text()
            host.write("/root/.ssh/authorized_keys", theirs + key, mode=0o600)
            self.command(
                *("server", "add", host.name, "--pool", "main", "--channel", "ssh", "--host", host.address),
                *("--helo-name", f"{host.name}.fleet.test", "--state", "standby"),
            )
            self.command("server", "pin", host.name, "--fingerprint", fingerprint(self.fleet, host))
        self.command("server", "provision", *self.names)
        self.phase("provisioned", started)

    def verify(self) -> None:
        """Verification prints the records that are missing; once they are published, it passes."""
        started = time.monotonic()
        with pytest.raises(DemoError) as missing:
            self.command("server", "verify", self.names[0])
        lines = str(missing.value).partition("to publish in DNS:")[2].strip().splitlines()
        self.fleet.publish(line for line in lines if re.match(r"\S+\s+(\d+\s+)?(IN\s+)?(TXT|MX|A|PTR)\s", line))
        for name in self.names:
            self.command("server", "verify", name)
            self.command("server", "activate", name, "--warmed")
        self.phase("verified", started)

    def wait_for_airflow(self) -> None:
        started = time.monotonic()
        self.stack.wait_healthy()
        self.api.wait_for_dags({"campaign_send"})
        make_pools(self.api)
        self.phase("Airflow up", started)

    def trigger(self, name: str) -> str:
        """Send a campaign without asking; returns the run's id."""
        conf = {"campaign": name, "edition": "1", "mode": "send", "approval": False}
        return self.api.trigger("campaign_send", conf)

    def main_log(self, host: Host) -> str:
        """Of its Exim, read from outside: the host may be off."""
        return (host.root / "var/log/exim4/mainlog").read_text(errors="replace")

    def received(self, campaign: str) -> dict[str, Counter[str]]:
        """What lies with the providers of a campaign: by Message-ID, under which of Exim's queue ids and how often."""
        found: dict[str, Counter[str]] = {}
        for provider in self.fleet.providers.values():
            for path in (provider.maildir / "new").iterdir():
                with path.open("rb") as file:
                    headers = message_from_binary_file(file)
                if f":{campaign}#1:" in (headers["Feedback-ID"] or ""):
                    queue_ids = [
                        i for text in headers.get_all("Received") for i in re.findall(r"\bid (\w+-\w+-\w+)", text)
                    ]
                    found.setdefault(headers["Message-ID"].strip("<>"), Counter()).update(queue_ids[-1:])
        return found


@contextmanager
def a_company(
    root: Path, internet: Path, hosts: int, providers: Mapping[str, str], shard_rows: int
) -> Iterator[Company]:
    """Bare hosts, providers and a starting Airflow; torn down whole."""
    pytest.importorskip("airflow")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)  # Airflow shows every word of everybody
    before = dict(os.environ)
    with Fleet(internet, hosts=hosts, providers=providers) as fleet, fleet.switch.inside():
        port = free_port()
        env = {
            "MAILFLEET_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "MAILFLEET_SERVE_PORT": str(port),
            "MAILFLEET_HOME": str(root / "home"),
            "MAILFLEET_SHARD_ROWS": str(shard_rows),
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


def fingerprint(fleet: Fleet, host: Host) -> str:
    """As the host's own console shows it."""
    said = fleet.run(host, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout
    return said.split()[1]
