"""What a verification says of each fact: one table of cases, each a server in order with one thing changed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailer_lib.fleet.domain_dns import DomainFacts, Published, spf_result
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.findings import Finding
from mailer_lib.fleet.verification import (
    Blocklist,
    Certificate,
    Disk,
    Facts,
    Greeting,
    HostFacts,
    Outbound,
    SendingDomainFacts,
    SourceFacts,
    judge,
)
from mailer_lib.fleet.verification_seed import SeedResult
from mailer_lib.terms import FindingLevel

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
DOMAIN = SendingDomain(1, "news.fjord.test", "mf1", "file:k", "bounce.news.fjord.test", None)
SPF = {
    "mechanisms": [{"action": "pass", "mechanism": "a", "value": "mta1.fjord.test", "addresses": ["192.0.2.7"]}],
    "all": "fail",
}
PUBLISHED = DomainFacts(
    DOMAIN, "v=DKIM1; k=rsa; p=QUJD", Published("v=spf1 a:mta1.fjord.test -all", parsed=SPF),
    Published("v=DMARC1; p=none", warnings=("p=none is unenforced",)), ("mta1.fjord.test",),
)  # fmt: skip
CERTIFICATE = Certificate(("mta1.fjord.test",), AT + timedelta(days=200))
MTA = Greeting(None, "mta1.fjord.test ESMTP Exim 4.96", "mta1.fjord.test Hello probe.invalid", CERTIFICATE)
HOST = HostFacts(
    clock_offset_s=0.3, clock_unsure_s=0.4, sources=("192.0.2.7",), mta=replace(MTA, certificate=None), tls=MTA,
    disks=(Disk("/var/spool/exim4", 50 * 2**30, 10**6),), outbound=(Outbound("192.0.2.7", "mx.isp.test", 25, None),),
)  # fmt: skip
SOURCE = SourceFacts("192.0.2.7", "7.2.0.192.in-addr.arpa", ("mta1.fjord.test",), ("mta1.fjord.test",))
SEED = SeedResult("news.fjord.test", waited_s=1.5, arrived=True, peer="192.0.2.7", tls=True)
GOOD = Facts(
    helo_name="mta1.fjord.test", pool="main", own_mta=True, needs_source=False, host=HOST, host_problem=None,
    dns_problem=None, helo_addresses=("192.0.2.7",), sources=(SOURCE,),
    domains=(SendingDomainFacts(PUBLISHED, "QUJD"),), blocklists=(Blocklist("bl.test", None),), seeds=(SEED,),
    outgoing=("mta1.fjord.test",), public_url="https://links.fjord.test/",
    has_seed_box=True,
)  # fmt: skip

ERROR, WARNING = FindingLevel.ERROR, FindingLevel.WARNING


def host(**values: Any) -> dict[str, Any]:
    return {"host": replace(HOST, **values)}


def domain(**values: Any) -> dict[str, Any]:
    return {"domains": (SendingDomainFacts(replace(PUBLISHED, **values), "QUJD"),)}


def source(**values: Any) -> dict[str, Any]:
    return {"sources": (replace(SOURCE, **values),)}


def seed(**values: Any) -> dict[str, Any]:
    return {"seeds": (replace(SEED, **values),)}


def wrong(facts: Facts) -> list[Finding]:
    return [finding for finding in judge(facts, AT) if finding.level is not FindingLevel.INFO]


def test_a_server_in_order_has_nothing_wrong_and_says_what_was_seen() -> None:
    assert wrong(GOOD) == []
    said = [finding.text for finding in judge(GOOD, AT)]
    assert "192.0.2.7 is mta1.fjord.test, and mta1.fjord.test is 192.0.2.7" in said
    assert "SPF of bounce.news.fjord.test is valid" in said
    assert "the test message of news.fjord.test arrived after 1.5 s over TLS, and its signature verifies" in said


SPF_LINE = 'bounce.news.fjord.test. 3600 IN TXT "v=spf1 a:mta1.fjord.test -all"'
DKIM_LINE = 'mf1._domainkey.news.fjord.test. 3600 IN TXT "v=DKIM1; k=rsa; p=QUJD"'


@pytest.mark.parametrize(
    ("changed", "level", "check", "says", "publish"),
    [
        ({"host_problem": "mta-1 doesn't answer"}, ERROR, "host", "mta-1 doesn't answer", ()),
        (host(mta=Greeting("connection refused")), ERROR, "mta", "its MTA doesn't answer (connection refused)", ()),
        (host(mta=replace(MTA, banner="localhost ESMTP")), ERROR, "helo", "banner calls itself localhost;", ()),
        (host(mta=replace(MTA, ehlo="")), ERROR, "helo", "EHLO calls itself nothing;", ()),
        (host(tls=replace(MTA, certificate=None)), WARNING, "tls", "offers no STARTTLS", ()),
        (
            host(tls=replace(MTA, certificate=Certificate(("mta1.fjord.test",), AT))),
            ERROR, "tls", "expired on 2026-11-24", (),
        ),
        (
            host(tls=replace(MTA, certificate=Certificate(("mta1.fjord.test",), AT + timedelta(days=13)))),
            WARNING, "tls", "expires on 2026-12-07", (),
        ),
        (
            host(tls=replace(MTA, certificate=replace(CERTIFICATE, names=("*.fjord.example",)))),
            WARNING, "tls", "is for *.fjord.example, not for mta1.fjord.test", (),
        ),
        (host(clock_offset_s=-61.0, clock_unsure_s=0.5), ERROR, "clock", "60 s behind ours", ()),
        (host(clock_offset_s=3.0), WARNING, "clock", "2.6 s ahead of ours", ()),
        (host(disks=(Disk("/var", 2**30 - 1, 10**6),)), ERROR, "disk", "/var has 1.0 GiB free", ()),
        (host(disks=(Disk("/var", 3 * 2**30, 10**6),)), WARNING, "disk", "/var has 3.0 GiB free", ()),
        (host(disks=(Disk("/var", 50 * 2**30, 19_999),)), ERROR, "disk", "room for 19,999 files only", ()),
        (host(outbound=()), WARNING, "port-25", "MAILFLEET_PROBE_HOST", ()),
        (
            host(outbound=(Outbound("192.0.2.7", "mx.isp.test", 25, "timed out"),)),
            ERROR, "port-25", "mx.isp.test port 25 from 192.0.2.7 can't be reached (timed out): many hosting", (),
        ),
        ({"dns_problem": "no answer from 10.0.0.1"}, ERROR, "dns", "no answer from 10.0.0.1", ()),
        ({"needs_source": True, "sources": ()}, WARNING, "sources", "name it with --source", ()),
        (
            {"helo_addresses": ()}, ERROR, "helo-dns", "mta1.fjord.test doesn't resolve, not to an address",
            ("mta1.fjord.test. 3600 IN A 192.0.2.7",),
        ),
        (
            {"helo_addresses": ("192.0.2.8",)}, ERROR, "helo-dns", "resolves to 192.0.2.8, not to",
            ("mta1.fjord.test. 3600 IN A 192.0.2.7",),
        ),
        (
            source(ptr=(), confirmed=()), ERROR, "ptr", "192.0.2.7 has no PTR, so receivers refuse it",
            ("7.2.0.192.in-addr.arpa. 3600 IN PTR mta1.fjord.test.",),
        ),
        (
            source(ptr=("dyn7.isp.test",), confirmed=()), ERROR, "ptr", "doesn't resolve back to it",
            ("dyn7.isp.test. 3600 IN A 192.0.2.7",),
        ),
        (
            source(ptr=("other.fjord.test",), confirmed=("other.fjord.test",)), WARNING, "ptr", "better one name", (),
        ),
        ({"domains": ()}, WARNING, "domains", "none is stored for the sending pool main", ()),
        (domain(dkim=None), ERROR, "dkim", "mf1._domainkey.news.fjord.test isn't published", (DKIM_LINE,)),
        (domain(dkim="v=DKIM1; p=QUJE"), ERROR, "dkim", "publishes another key", (DKIM_LINE,)),
        (
            {"domains": (SendingDomainFacts(PUBLISHED, None, "it isn't there"),)},
            ERROR, "dkim", "the DKIM key of news.fjord.test can't be used: it isn't there", (),
        ),
        (domain(spf=Published(error="not found")), ERROR, "spf", "can't be used: not found", (SPF_LINE,)),
        (
            domain(spf=Published("v=spf1 ?all", parsed={"all": "neutral"})),
            ERROR, "spf", "says neutral to mail from 192.0.2.7", (SPF_LINE,),
        ),
        (
            domain(dmarc=Published(error="not found")), ERROR, "dmarc", "DMARC of news.fjord.test can't be used",
            ('_dmarc.news.fjord.test. 3600 IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@news.fjord.test"',),
        ),
        (
            domain(mx=()), WARNING, "mx", "bounces can't come back",
            ("bounce.news.fjord.test. 3600 IN MX 10 mta1.fjord.test.",),
        ),
        ({"blocklists": (Blocklist("bl.test", "refuses"),)}, WARNING, "blocklists", "can't be used: refuses", ()),
        (
            {"blocklists": (Blocklist("bl.test", None, ("192.0.2.7",)),)},
            ERROR, "blocklists", "192.0.2.7 is on bl.test", (),
        ),
        ({"seeds": (), "has_seed_box": False}, WARNING, "seed", "no test message was sent", ()),
        (seed(refused="550 no", arrived=False), ERROR, "seed", "was refused by its own MTA: 550 no", ()),
        (seed(arrived=False, waited_s=90.0), ERROR, "seed", "didn't arrive within 90 s", ()),
        (seed(dkim="without a DKIM signature"), ERROR, "seed", "arrived, but without a DKIM signature", ()),
        (
            seed(peer="203.0.113.9"), ERROR, "seed",
            "came from 203.0.113.9, which wasn't checked (192.0.2.7 were): verify with --source 203.0.113.9", (),
        ),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_finding(
    changed: dict[str, Any], level: FindingLevel, check: str, says: str, publish: tuple[str, ...]
) -> None:
    found = wrong(replace(GOOD, **changed))
    assert [(finding.level, finding.check, finding.publish) for finding in found] == [(level, check, publish)]
    assert says in found[0].text


def test_an_ipv6_address_without_ptr_may_be_turned_off() -> None:
    name = "8.b.d.0.1.0.0.2.ip6.arpa"
    facts = replace(GOOD, sources=(SOURCE, SourceFacts("2001:db8::7", name, (), ())))
    found = wrong(facts)
    assert {(finding.check, finding.level) for finding in found} == {("ptr", ERROR), ("spf", ERROR)}
    assert "turn IPv6 off in its MTA" in found[0].text
    assert found[0].publish == (f"{name}. 3600 IN PTR mta1.fjord.test.",)


def test_a_private_address_is_not_what_the_world_sees() -> None:
    facts = replace(GOOD, sources=(replace(SOURCE, address="10.0.0.7", ptr=(), confirmed=()),))
    texts = [finding.text for finding in wrong(facts) if finding.check == "ptr"]
    assert ["name the address that the world sees with --source" in text for text in texts] == [True]


def test_somebody_elses_relay_has_a_name_and_a_certificate_of_its_own() -> None:
    relay = replace(MTA, banner="smtp.relay.test ready", certificate=None)
    facts = replace(GOOD, own_mta=False, host=replace(HOST, mta=relay, tls=None, outbound=()))
    assert wrong(facts) == []


def test_a_message_that_could_not_be_sent_is_not_asked_for_again() -> None:
    facts = replace(GOOD, host=replace(HOST, mta=Greeting("connection refused")), seeds=())
    assert [finding.check for finding in wrong(facts)] == ["mta"]


def test_errors_come_first_and_nothing_twice() -> None:
    facts = replace(GOOD, domains=(), host=replace(HOST, clock_offset_s=100.0), seeds=())
    levels = [finding.level for finding in judge(facts, AT)]
    assert levels == sorted(levels, key=list(FindingLevel).index)
    assert len(set(judge(facts, AT))) == len(levels)


INCLUDED = {"mechanisms": [{"action": "pass", "mechanism": "ip4", "value": "198.51.100.0/24"}], "all": "fail"}


@pytest.mark.parametrize(
    ("parsed", "address", "result"),
    [
        (SPF, "192.0.2.7", "pass"),
        (SPF, "192.0.2.8", "fail"),
        (SPF, "2001:db8::1", "fail"),
        ({"mechanisms": [{"action": "softfail", "mechanism": "ip4", "value": "192.0.2.7"}], "all": "pass"},
         "192.0.2.7", "softfail"),
        ({"mechanisms": [{"action": "pass", "mechanism": "ip6", "value": "2001:db8::/32"}], "all": "fail"},
         "2001:db8::1", "pass"),
        ({"mechanisms": [{"action": "pass", "mechanism": "a", "value": "x.test/24", "addresses": ["192.0.2.1"]}],
          "all": "fail"}, "192.0.2.200", "pass"),
        ({"mechanisms": [{"action": "pass", "mechanism": "mx", "value": "x.test",
                          "hosts": [{"addresses": ["192.0.2.7"]}]}], "all": "fail"}, "192.0.2.7", "pass"),
        ({"mechanisms": [{"action": "pass", "mechanism": "include", "value": "x", "parsed": INCLUDED}], "all": "fail"},
         "198.51.100.9", "pass"),
        ({"mechanisms": [{"action": "pass", "mechanism": "include", "value": "x", "parsed": INCLUDED}],
          "all": "neutral"}, "192.0.2.7", "neutral"),
        ({"mechanisms": [], "all": "neutral", "redirect": {"parsed": INCLUDED}}, "198.51.100.9", "pass"),
        ({"mechanisms": [], "all": "neutral"}, "192.0.2.7", "neutral"),
    ],
)  # fmt: skip
def test_spf_is_decided_by_the_first_mechanism_that_matches(parsed: dict[str, Any], address: str, result: str) -> None:
    assert spf_result(parsed, address) == result
