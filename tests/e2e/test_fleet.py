"""From bare hosts to a finished campaign: provisioned, verified, sent over SSH from Airflow to four mailbox providers.

``make e2e`` runs it with three hosts and 10,000 people. Everything, Airflow too, lives in the test fleet's network,
which has no way out. What faults do to such a fleet: ``test_fleet_faults.py``.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes

import dkim
import pytest
from dns.resolver import Resolver
from sqlalchemy import func, select

from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.schema import leases
from mailer_lib.settings import load_settings
from tests.e2e.company import Company, a_company
from tests.hosts.fleet import Fleet

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.fleet,
    pytest.mark.timeout(1800),
]
HOSTS = int(os.environ.get("MAILFLEET_E2E_HOSTS", "1"))
PEOPLE = int(os.environ.get("MAILFLEET_E2E_PEOPLE", "400"))
PROVIDERS = {
    "isp-a.test": "",
    "isp-b.test": "domains: {isp-b.test: {defer: {first: 1, share: 0.2}}}",
    "isp-c.test": 'domains: {isp-c.test: {unknown: {pattern: "6$"}}}',
    "isp-d.test": "domains: {isp-d.test: {slow: {after_dot_ms: 20}}}",
}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    root, internet = tmp_path_factory.mktemp("company"), tmp_path_factory.mktemp("internet")
    with a_company(root, internet, HOSTS, PROVIDERS, max(50, PEOPLE // 12)) as company:
        yield company


def test_bare_hosts_become_a_fleet_that_sends_a_campaign_from_airflow(company: Company) -> None:
    company.set_up(PEOPLE)
    company.campaign("spring")
    company.provision()
    company.verify()
    company.wait_for_airflow()
    books = send(company)
    assert books["frozen"] == books["injected"] == PEOPLE
    assert books["duplicates"] == 0
    balance(company, books)


def send(company: Company) -> dict[str, int]:
    started = time.monotonic()
    run_id = company.trigger("spring")
    assert company.api.wait("campaign_send", run_id, 1200) == "success", company.api.explain("campaign_send", run_id)
    company.phase("sent", started)
    books: dict[str, int] = company.api.xcom("campaign_send", run_id, "report")
    return books


def balance(company: Company, books: dict[str, int]) -> None:
    """Frozen rows, ledgers, Exim's logs and what the providers got, to the recipient."""
    started = time.monotonic()
    refused = sum(n % len(PROVIDERS) == 2 and str(n).endswith("6") for n in range(PEOPLE))
    wanted = books["injected"] - refused
    deadline = time.monotonic() + 240
    while (arrived := times_received(company)).total() + greylisted(company) < wanted:
        assert time.monotonic() < deadline, f"{arrived.total()} of {wanted} arrived; {queues(company)}"
        time.sleep(1)
    assert arrived.total() + greylisted(company) == wanted
    company.phase("delivered", started)
    assert set(arrived.values()) == {1}
    accepted: Counter[str] = Counter()
    for host in company.fleet.hosts:
        accepted.update(re.findall(r" <= b-\S+ .* id=(\S+@\S+)", company.main_log(host)))
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


def times_received(company: Company) -> Counter[str]:
    """How often each Message-ID of the campaign lies with the providers."""
    return Counter({message_id: ids.total() for message_id, ids in company.received("spring").items()})


def greylisted(company: Company) -> int:
    """What waits on the hosts for another attempt, a quarter of an hour later."""
    logs = [company.main_log(host) for host in company.fleet.hosts]
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
    resolver = Resolver(configure=False)
    resolver.nameservers = [fleet.switch.gateway]
    answer = resolver.resolve(name.decode(), "TXT")
    return b"".join(answer[0].strings)


def queues(company: Company) -> str:
    return "; ".join(company.fleet.run(host, "exim4 -bpc; ls /var/spool/exim4").stdout for host in company.fleet.hosts)
