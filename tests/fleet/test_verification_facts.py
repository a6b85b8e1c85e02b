"""Gathering facts: real questions to a DNS server, and the script that runs on the server, here beside a sink."""

import ipaddress
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailer_lib.fleet import domain_dns, probe
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.resolver import NoResolverError, open_resolver
from mailer_lib.fleet.verification import Blocklist, Greeting
from mailer_lib.fleet.verification_facts import (
    ProbeError,
    gather_host,
    gather_sources,
    read_blocklists,
    run_probe,
    script_runner,
)
from mailer_lib.fleet.verification_seed import MaildirSeedBox, examine, make_message, wait_for
from mailer_lib.settings import Settings, address_and_port
from mailer_lib.sink.process import SinkProcess, start
from tests.fleet.dns_server import DnsServer
from tests.support import free_port

DOMAIN = SendingDomain(1, "news.fjord.test", "mf1", "file:k", "bounce.news.fjord.test", None)


@pytest.fixture
def dns_server() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


def run_here(script: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-"], input=script, capture_output=True, text=True, check=True)
    return done.stdout


def test_an_address_is_confirmed_when_one_of_its_names_resolves_back(dns_server: DnsServer) -> None:
    dns_server.publish("7.2.0.192.in-addr.arpa. PTR Other.fjord.test.")
    dns_server.publish("7.2.0.192.in-addr.arpa. PTR mta1.fjord.test.")
    dns_server.publish("mta1.fjord.test. A 192.0.2.7")
    dns_server.publish("8.2.0.192.in-addr.arpa. PTR mta1.fjord.test.")
    dns_server.publish("mta6.fjord.test. AAAA 2001:db8:0::7")
    six = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
    dns_server.publish(f"{six}. PTR mta6.fjord.test.")
    resolver = open_resolver(dns_server.address)
    found = gather_sources(resolver, ["192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::7"])
    assert sorted(found[0].ptr) == ["mta1.fjord.test", "other.fjord.test"]
    assert [source.confirmed for source in found] == [("mta1.fjord.test",), (), (), ("mta6.fjord.test",)]
    assert found[2].ptr == ()
    assert found[3].reverse_name == six


def test_what_was_published_a_moment_ago_is_seen(dns_server: DnsServer) -> None:
    resolver = open_resolver(dns_server.address)
    before = domain_dns.look_up(resolver, DOMAIN)
    assert (before.dkim, before.mx) == (None, ())
    assert before.spf.error is not None
    assert before.dmarc.error is not None
    key = "QUJD" * 90
    dns_server.publish(f'mf1._domainkey.news.fjord.test. TXT "v=DKIM1; k=rsa; p={key[:200]}" "{key[200:]}"')
    dns_server.publish('bounce.news.fjord.test. TXT "v=spf1 a:mta1.fjord.test ip4:198.51.100.0/24 -all"')
    dns_server.publish("bounce.news.fjord.test. MX 10 mta1.fjord.test.")
    dns_server.publish('_dmarc.news.fjord.test. TXT "v=DMARC1; p=none"')
    dns_server.publish("mta1.fjord.test. A 192.0.2.7")
    after = domain_dns.look_up(resolver, DOMAIN)
    assert after.dkim is not None
    assert domain_dns.publishes_key(after.dkim, key)
    assert not domain_dns.publishes_key(after.dkim, key[:-4] + "QUJE")
    assert (after.spf.error, after.dmarc.error, after.mx) == (None, None, ("mta1.fjord.test",))
    results = [domain_dns.spf_result(after.spf.parsed, a) for a in ("192.0.2.7", "198.51.100.200", "203.0.113.1")]
    assert results == ["pass", "pass", "fail"]


def test_a_blocklist_is_asked_about_its_test_points_first(dns_server: DnsServer) -> None:
    for zone, answer in (("good.test", "127.0.0.2"), ("all.test", "127.0.0.2"), ("shut.test", "127.255.255.254")):
        dns_server.publish(f"2.0.0.127.{zone}. A {answer}")
    dns_server.publish("1.0.0.127.all.test. A 127.0.0.2")
    dns_server.publish("7.2.0.192.good.test. A 127.0.0.4")
    dns_server.publish("8.2.0.192.good.test. A 127.255.255.252")  # a refusal, in the words of some lists
    resolver = open_resolver(dns_server.address)
    zones = ["good.test", "all.test", "shut.test", "gone.test"]
    good, everybody, shut, gone = read_blocklists(resolver, zones, ["192.0.2.7", "192.0.2.8", "192.0.2.9"])
    assert good == Blocklist("good.test", None, ("192.0.2.7",))
    assert everybody.unusable == "it lists 127.0.0.1, so it lists everybody"
    assert shut.unusable == "it answers 127.255.255.254: does it serve your resolver?"
    assert gone.unusable is not None
    assert "doesn't list its test point" in gone.unusable


def test_a_resolver_that_is_away_is_said() -> None:
    resolver = open_resolver(f"127.0.0.1:{free_port()}", timeout_s=0.2)
    with pytest.raises(NoResolverError, match=r"no answer about .* PTR from 127\.0\.0\.1"):
        gather_sources(resolver, ["192.0.2.7"])


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
    ],
)
def test_the_resolver_of_the_setting(text: str, means: tuple[str, int]) -> None:
    assert address_and_port(text) == means


@pytest.mark.parametrize("text", ["resolver.test", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:70000", ""])
def test_a_resolver_is_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="must be an IP address"):
        address_and_port(text)


def query(sink: SinkProcess, **values: object) -> dict[str, object]:
    return {
        "do": "look", "smtp_host": "127.0.0.1", "smtp_port": sink.port, "implicit_tls": False,
        "paths": [str(sink.folder), str(sink.folder / "not" / "yet")], "sources": ["127.0.0.1"], "tls_of_sources": True,
        "probe": ["127.0.0.1", sink.port],
    } | values  # fmt: skip


def test_the_script_sees_mta_certificate_disks_and_the_way_out(tmp_path: Path) -> None:
    with start(tmp_path, starttls=True) as sink:
        found = gather_host(run_here, query(sink))
    assert found.mta.banner.startswith("sink.localhost ")
    assert found.mta.ehlo.startswith("sink.localhost")
    assert found.tls is not None
    assert found.tls.certificate is not None
    assert "localhost" in found.tls.certificate.names
    assert timedelta(days=390) < found.tls.certificate.not_after - datetime.now(UTC) < timedelta(days=398)
    assert [disk.free_bytes > 0 for disk in found.disks] == [True, True]
    assert [(o.source, o.error) for o in found.outbound] == [("127.0.0.1", None)]
    assert abs(found.clock_offset_s) <= found.clock_unsure_s + 0.2


def test_a_clock_that_goes_wrong_is_seen_through_a_slow_connection(tmp_path: Path) -> None:
    ours = iter((1000.0, 1010.0))  # asked, answered
    answer = {
        "at": 1099.0,
        "took_s": 6.0,
        "sources": [],
        "mta": {"error": "x"},
        "tls": None,
        "disks": [],
        "outbound": [],
    }
    found = gather_host(lambda script: json.dumps(answer), {}, clock=lambda: next(ours))
    assert (found.clock_offset_s, found.clock_unsure_s) == (97.0, 2.0)
    assert found.mta == Greeting(error="x")


def test_what_can_not_be_reached_is_a_fact_with_words(tmp_path: Path) -> None:
    with start(tmp_path) as sink:
        gone = query(sink, smtp_port=free_port(), probe=["127.0.0.1", free_port()], sources=["127.0.0.1"])
        found = gather_host(run_here, gone)
    assert found.mta.error is not None
    assert "refused" in found.mta.error
    assert found.tls is None
    assert [o.error for o in found.outbound] == ["Connection refused"]


def test_an_address_before_the_machine_is_no_reason_to_fail(tmp_path: Path) -> None:
    """Behind NAT the address that the world sees isn't one that a socket can be bound to."""
    with start(tmp_path) as sink:
        assert probe.outbound("127.0.0.1", sink.port, "192.0.2.7")["error"] is None


def test_a_server_without_python_or_mailfleet_says_so() -> None:
    with pytest.raises(ProbeError, match="printed no answer but 'motd of the day'"):
        run_probe(lambda script: "motd of the day", {"do": "look"})


def test_a_server_without_a_pinned_key_is_not_asked(settings: Settings) -> None:
    from mailer_lib.fleet.servers import DispatchServer

    now = datetime.now(UTC)
    server = DispatchServer(
        id=1, pool_id=1, name="mta-1", pool="main", channel="ssh", host="192.0.2.7", helo_name="mta1.example.net",
        created_at=now, updated_at=now,
    )  # type: ignore[arg-type]  # fmt: skip
    with pytest.raises(ProbeError, match="no host key is pinned for mta-1"):
        script_runner(server, settings)("pass")


def test_the_addresses_of_this_machine_are_those_that_others_can_reach() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        try:
            out.connect(("192.0.2.1", 9))  # nothing is sent
            towards_others = [out.getsockname()[0]]
        except OSError:
            towards_others = []  # no route
    found = probe.own_addresses(ipv6=False)
    assert set(towards_others) <= set(found)
    assert not [address for address in found if ipaddress.ip_address(address).is_loopback or ":" in address]
    assert set(found) <= set(probe.own_addresses(ipv6=True))


def test_queued_messages_are_counted_in_every_named_queue(tmp_path: Path) -> None:
    for folder in ("input/a", "s7/input/b", "bounces/input"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1abcDE-000001-Xy-H").touch()
        (tmp_path / folder / "1abcDE-000001-Xy-D").touch()
    assert run_probe(run_here, {"do": "queue", "spool": str(tmp_path)}) == {"queued": 3, "error": None}
    gone = run_probe(run_here, {"do": "queue", "spool": str(tmp_path / "gone")})
    assert gone["queued"] is None
    assert "can't be read" in gone["error"]


def test_a_seed_box_finds_what_arrives_and_no_more(tmp_path: Path) -> None:
    message, second = (make_message(DOMAIN, "seed@box.test", "mta-1", datetime.now(UTC)) for _ in range(2))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1").write_bytes(b"Subject: other\r\n\r\nx")
    box = MaildirSeedBox("seed@box.test", tmp_path)
    assert wait_for(box, [message.message_id], 0.0) == {}

    def arrive(seconds: float) -> None:
        head = b"Received: from mta1.fjord.test ([IPv6:2001:db8::7]) by box with ESMTPS\r\n"
        (tmp_path / "new" / "2").write_bytes(head + message.data)
        (tmp_path / "new" / "3").write_bytes(head + second.data)

    found = wait_for(box, [message.message_id, second.message_id], 10.0, sleep=arrive)
    assert {message_id: data.endswith(second.data) for message_id, (data, _) in found.items()} == {
        message.message_id: False,
        second.message_id: True,
    }
    seen = examine(DOMAIN, *found[message.message_id], lambda name: None)
    assert (seen.arrived, seen.peer, seen.tls, seen.dkim) == (True, "2001:db8::7", True, "without a DKIM signature")
