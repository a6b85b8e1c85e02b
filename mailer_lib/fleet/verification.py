"""Whether a dispatch server may send: pure checks over what was gathered (``verification_facts.py``).

An error forbids sending; a warning is for a person to look at. What DNS lacks comes as zone lines to publish.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mailer_lib.fleet import dns as records
from mailer_lib.fleet.domain_dns import DomainFacts, Published, publishes_key, spf_result
from mailer_lib.fleet.findings import Finding, error, in_order, info, warning
from mailer_lib.fleet.verification_seed import SeedResult, judge_seed

CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0  # a signature from the future is refused; ledgers order by this clock
DISK_WARN, DISK_FAIL = 4 * 2**30, 2**30  # Exim of ours stops at 512 MiB; 10,000 messages of 35 KB are 350 MB
FILES_FAIL = 20_000  # two for each queued message
EXPIRES_SOON = timedelta(days=14)


@dataclass(frozen=True)
class Certificate:
    names: tuple[str, ...]
    not_after: datetime

    def covers(self, host: str) -> bool:
        return any(name == host or (name[:2] == "*." and host.partition(".")[2] == name[2:]) for name in self.names)


@dataclass(frozen=True)
class Greeting:
    """What an MTA says to whoever connects."""

    error: str | None = None
    banner: str = ""
    ehlo: str = ""
    certificate: Certificate | None = None


@dataclass(frozen=True)
class Disk:
    path: str
    free_bytes: int
    free_files: int


@dataclass(frozen=True)
class Outbound:
    """A connection to the port 25 of somebody else."""

    source: str | None
    host: str
    port: int
    error: str | None


@dataclass(frozen=True)
class HostFacts:
    """What the server said about itself."""

    clock_offset_s: float  # its clock minus ours
    clock_unsure_s: float  # by so much the offset may be wrong, because asking took time
    sources: tuple[str, ...]  # addresses that mail leaves from
    mta: Greeting
    tls: Greeting | None  # from the address that the world sees, when that is another
    disks: tuple[Disk, ...]
    outbound: tuple[Outbound, ...]


@dataclass(frozen=True)
class SourceFacts:
    """What DNS says about one address that mail leaves from."""

    address: str
    reverse_name: str
    ptr: tuple[str, ...]
    confirmed: tuple[str, ...]  # names of ``ptr`` that resolve back to the address
    helo_name: str | None = None  # its own in EHLO, when it isn't the server's


@dataclass(frozen=True)
class Blocklist:
    zone: str
    unusable: str | None  # why its answers mean nothing
    listed: tuple[str, ...] = ()  # addresses


@dataclass(frozen=True)
class SendingDomainFacts:
    published: DomainFacts
    public_key: str | None  # of the key that signs; None: it can't be read
    key_problem: str | None = None


@dataclass(frozen=True)
class Facts:
    helo_name: str
    pool: str
    own_mta: bool  # not somebody else's relay
    needs_source: bool  # no address is known that could be checked
    host: HostFacts | None
    host_problem: str | None
    dns_problem: str | None
    helo_addresses: tuple[str, ...]
    sources: tuple[SourceFacts, ...]
    domains: tuple[SendingDomainFacts, ...]
    blocklists: tuple[Blocklist, ...]
    seeds: tuple[SeedResult, ...]
    has_seed_box: bool
    outgoing: tuple[str, ...]  # names of every server in SPF, as `mailfleet domain dns` has them
    public_url: str


def judge(facts: Facts, at: datetime) -> list[Finding]:
    """Everything that was found, errors first."""
    found: list[Finding] = []
    if facts.host_problem is not None:
        found.append(error("host", facts.host_problem))
    if facts.host is not None:
        found += check_greeting(facts.host.mta, facts.helo_name, own_mta=facts.own_mta)
        found += check_tls(facts.host.tls or facts.host.mta, facts.helo_name, at, own_mta=facts.own_mta)
        found += check_clock(facts.host)
        found += [finding for disk in facts.host.disks for finding in check_disk(disk)]
        found += check_outbound(facts.host.outbound, own_mta=facts.own_mta)
    if facts.dns_problem is not None:
        found.append(error("dns", facts.dns_problem))
    else:
        found += check_sources(facts)
        for domain in facts.domains:
            found += check_domain(domain, facts)
        if not facts.domains:
            found.append(
                warning("domains", f"no sending domain to check: none is stored for the sending pool {facts.pool}")
            )
        found += check_blocklists(facts.blocklists)
    if facts.seeds or not facts.has_seed_box:  # else its MTA, its domains or DNS is at fault, and said already
        found += judge_seed(facts.seeds, [source.address for source in facts.sources])
    return in_order(found)


def check_greeting(mta: Greeting, helo_name: str, *, own_mta: bool) -> Iterator[Finding]:
    """Banner and answer to EHLO: both begin with the server's name (RFC 5321 §4.2, §4.1.1.1)."""
    if mta.error is not None:
        yield error("mta", f"its MTA doesn't answer ({mta.error}): start it, or provision the server again")
        return
    level = error if own_mta else info  # a relay of others has a name of its own
    wrong = [
        f"{what} calls itself {name or 'nothing'}"
        for what, said in (("banner", mta.banner), ("EHLO", mta.ehlo))
        if (name := said.split()[0].lower() if said.split() else "") != helo_name
    ]
    if wrong:
        yield level("helo", f"the MTA isn't {helo_name}: {', '.join(wrong)}; give both one name, and resolve it")
    else:
        yield info("helo", f"banner and EHLO say {helo_name}")


def check_tls(seen: Greeting, helo_name: str, at: datetime, *, own_mta: bool) -> Iterator[Finding]:
    """Receivers that bring bounces, and ask for a certificate, get one that is valid."""
    if seen.error is not None or not own_mta:
        return
    certificate = seen.certificate
    if certificate is None:
        yield warning("tls", "its MTA offers no STARTTLS to others: bounces come back in plain text")
        return
    until = f"{certificate.not_after:%Y-%m-%d}"
    if certificate.not_after <= at:
        yield error("tls", f"its TLS certificate expired on {until}: renew it (`mailfleet server provision`)")
    elif certificate.not_after - at < EXPIRES_SOON:
        yield warning("tls", f"its TLS certificate expires on {until}: renew it (`mailfleet server provision`)")
    elif not certificate.covers(helo_name):
        names = ", ".join(certificate.names) or "nobody"
        yield warning("tls", f"its TLS certificate is for {names}, not for {helo_name}")
    else:
        yield info("tls", f"STARTTLS with a certificate for {helo_name} until {until}")


def check_clock(host: HostFacts) -> Iterator[Finding]:
    offset = max(0.0, abs(host.clock_offset_s) - host.clock_unsure_s)
    way = "ahead of" if host.clock_offset_s > 0 else "behind"
    if offset > CLOCK_FAIL_S:
        yield error(
            "clock", f"its clock is {offset:.0f} s {way} ours: signatures would be refused; start its time service"
        )
    elif offset > CLOCK_WARN_S:
        yield warning("clock", f"its clock is {offset:.1f} s {way} ours: look at its time service")
    else:
        yield info("clock", f"its clock is ours, to {max(host.clock_unsure_s, abs(host.clock_offset_s)):.1f} s")


def check_disk(disk: Disk) -> Iterator[Finding]:
    room = f"{disk.free_bytes / 2**30:.1f} GiB"
    if disk.free_bytes < DISK_FAIL:
        yield error("disk", f"{disk.path} has {room} free: Exim stops taking mail soon; make room for at least 1 GiB")
    elif disk.free_files < FILES_FAIL:
        yield error("disk", f"{disk.path} has room for {disk.free_files:,} files only: a queued message needs two")
    elif disk.free_bytes < DISK_WARN:
        yield warning("disk", f"{disk.path} has {room} free: little for a queue that backs up")
    else:
        yield info("disk", f"{disk.path} has {room} free")


def check_outbound(outbound: Sequence[Outbound], *, own_mta: bool) -> Iterator[Finding]:
    """Port 25 towards others."""
    if not own_mta:
        return
    if not outbound:
        yield warning(
            "port-25", "whether it reaches others on port 25 wasn't tried: name a mail host in MAILFLEET_PROBE_HOST"
        )
    for tried in outbound:
        where = f"{tried.host} port {tried.port}" + (f" from {tried.source}" if tried.source else "")
        if tried.error is not None:
            yield error(
                "port-25",
                f"{where} can't be reached ({tried.error}): many hosting companies close port 25, and open it only for "
                "whom they allowed to send bulk mail; ask them first",
            )
        else:
            yield info("port-25", f"{where} answers")


def check_sources(facts: Facts) -> Iterator[Finding]:
    """The EHLO name and each address name each other (RFC 1912 §2.1; Gmail, Yahoo and Microsoft refuse otherwise)."""
    if facts.needs_source:
        yield warning(
            "sources", "no address that mail leaves from is known: name it with --source, and PTR and SPF are checked"
        )
        return
    missing = [address for address in facts.sources if address.address not in facts.helo_addresses]
    if facts.sources and len(missing) == len(facts.sources):
        says = f"resolves to {', '.join(facts.helo_addresses)}" if facts.helo_addresses else "doesn't resolve"
        yield error(
            "helo-dns",
            f"{facts.helo_name} {says}, not to an address that mail leaves from",
            [address_line(facts.helo_name, source.address) for source in facts.sources],
        )
    elif facts.sources:
        yield info("helo-dns", f"{facts.helo_name} resolves to an address that mail leaves from")
    for source in facts.sources:
        yield from check_ptr(source, source.helo_name or facts.helo_name)


def check_ptr(source: SourceFacts, helo_name: str) -> Iterator[Finding]:
    address = ipaddress.ip_address(source.address)
    advice = "have whoever owns the address publish it"
    if address.is_private:
        advice += ", or name the address that the world sees with --source"
    if address.version == 6:
        advice += ", or turn IPv6 off in its MTA"
    if not source.ptr:
        line = records.DnsRecord(source.reverse_name, "PTR", f"{helo_name}.", "").zone_line()
        yield error("ptr", f"{address} has no PTR, so receivers refuse it: {advice}", [line])
    elif not source.confirmed:
        yield error(
            "ptr",
            f"{address} is {source.ptr[0]} by its PTR, but that name doesn't resolve back to it: {advice}",
            [address_line(source.ptr[0], source.address)],
        )
    elif helo_name not in source.confirmed:
        yield warning("ptr", f"{address} is {source.confirmed[0]} by its PTR, and {helo_name} in EHLO: better one name")
    else:
        yield info("ptr", f"{address} is {helo_name}, and {helo_name} is {address}")


def check_domain(domain: SendingDomainFacts, facts: Facts) -> Iterator[Finding]:
    """SPF of the return path for each address, DKIM and DMARC of the From domain."""
    published, stored = domain.published, domain.published.domain
    lines = {
        record.name: record.zone_line()
        for record in records.records(
            stored, domain.public_key or "", outgoing=facts.outgoing, bounce_host=None, public_url=facts.public_url
        )
        if record.type == "TXT"
    }
    yield from check_spf(published, [source.address for source in facts.sources], lines[stored.return_path_domain])
    name = f"{stored.dkim_selector}._domainkey.{stored.name}"
    if domain.public_key is None:
        yield error("dkim", f"the DKIM key of {stored.name} can't be used: {domain.key_problem}")
    elif published.dkim is None:
        yield error("dkim", f"{name} isn't published", [lines[name]])
    elif not publishes_key(published.dkim, domain.public_key):
        yield error("dkim", f"{name} publishes another key than the one that signs", [lines[name]])
    else:
        yield info("dkim", f"{name} publishes the key that signs")
    yield from _check_record("dmarc", "DMARC", stored.name, published.dmarc, lines[f"_dmarc.{stored.name}"])
    if not published.mx:
        text = f"{stored.return_path_domain} has no MX record, so bounces can't come back"
        mx = records.DnsRecord(stored.return_path_domain, "MX", f"10 {facts.helo_name}.", "").zone_line()
        yield warning("mx", text, [mx] if facts.own_mta else [])


def check_spf(published: DomainFacts, addresses: Sequence[str], line: str) -> Iterator[Finding]:
    name = published.domain.return_path_domain
    if published.spf.error is not None:
        yield from _check_record("spf", "SPF", name, published.spf, line)
        return
    refused = {
        address: result for address in addresses if (result := spf_result(published.spf.parsed, address)) != "pass"
    }
    for address, result in refused.items():
        yield error("spf", f"SPF of {name} says {result} to mail from {address}", [line])
    if not refused:
        yield from _check_record("spf", "SPF", name, published.spf, line)


def _check_record(check: str, what: str, name: str, record: Published, line: str) -> Iterator[Finding]:
    if record.error is not None:
        yield error(check, f"{what} of {name} can't be used: {record.error}", [line])
        return
    for problem in record.warnings:  # DMARC's begin with p=none, which is how one begins
        yield (info if check == "dmarc" else warning)(check, f"{what} of {name}: {problem}")
    yield info(check, f"{what} of {name} is valid")


def check_blocklists(blocklists: Sequence[Blocklist]) -> Iterator[Finding]:
    if not blocklists:
        yield info("blocklists", "no blocklist was read (MAILFLEET_BLOCKLISTS)")
    for blocklist in blocklists:
        if blocklist.unusable is not None:
            yield warning("blocklists", f"{blocklist.zone} can't be used: {blocklist.unusable}")
        for address in blocklist.listed:
            yield error(
                "blocklists", f"{address} is on {blocklist.zone}: ask there why, and don't send from it until then"
            )
        if blocklist.unusable is None and not blocklist.listed:
            yield info("blocklists", f"{blocklist.zone} lists none of its addresses")


def address_line(name: str, address: str) -> str:
    kind = "AAAA" if ipaddress.ip_address(address).version == 6 else "A"
    return records.DnsRecord(name, kind, address, "").zone_line()
