"""Verify a dispatch server: gather, send test messages through it, judge, store, and move its state.

A server that isn't in service goes through the state `verifying` and comes out as `standby`, or `failed`. One in
service is looked at as it is: what an error means there is for a person to decide.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import dns.resolver
from sqlalchemy import Connection, Engine, select

from mailer_lib import secret_refs
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns
from mailer_lib.fleet import dkim_keys, domain_dns, domains, server_checks, servers
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.findings import is_error
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.resolver import NoResolverError, addresses, ask, open_resolver
from mailer_lib.fleet.server_checks import Check
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.fleet.verification import Facts, SendingDomainFacts, judge
from mailer_lib.fleet.verification_facts import (
    ProbeError,
    RunScript,
    gather_host,
    gather_sources,
    host_query,
    read_blocklists,
    run_probe,
    script_runner,
)
from mailer_lib.fleet.verification_seed import (
    MaildirSeedBox,
    SeedBox,
    SeedResult,
    examine,
    make_message,
    wait_for,
)
from mailer_lib.message.dkim import DkimKeyError, sign_message
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.settings import Settings
from mailer_lib.terms import MtaKind, ServerState, SmtpSecurity

_IN_PLACE = (ServerState.WARMING, ServerState.ACTIVE, ServerState.DRAINING, ServerState.RETIRED, ServerState.FENCED)


@dataclass(frozen=True)
class Options:
    sources: Sequence[str] = ()  # addresses that mail leaves from, as the world sees them; none: those of the server
    probe_host: str | None = None  # settings.probe_host when None
    seed_wait_s: float = 90.0


@dataclass(frozen=True)
class Verified:
    server: DispatchServer  # with its state after
    check: Check

    @property
    def passed(self) -> bool:
        return self.check.errors == 0


def verify_server(
    engine: Engine,
    settings: Settings,
    name: str,
    *,
    actor: str,
    options: Options | None = None,
    run: RunScript | None = None,
    seed_box: SeedBox | None = None,
) -> Verified:
    """Verify one server and store what was found. After a kill in the middle, call it again.

    Raises:
        FleetError: there is no such server, or it can't be verified in its state.
    """
    box = seed_box or configured_seed_box(settings)
    with write(engine) as connection:
        server = servers.get(connection, name)
        if server.state not in _IN_PLACE:
            servers.set_state(connection, name, ServerState.VERIFYING, actor=actor)
    with read(engine) as connection:
        sending = [
            dkim_keys.signed_by(connection, domain, server.id) for domain in domains_of_pool(connection, server.pool_id)
        ]
        outgoing = servers.outgoing_names(connection)
    facts = gather(
        settings,
        server,
        run or script_runner(server, settings),
        sending=sending,
        outgoing=outgoing,
        options=options or Options(),
        seed_box=box,
    )
    findings = judge(facts, now())
    with write(engine) as connection:
        check = server_checks.store(connection, server, findings, actor=actor)
        if servers.get(connection, name).state is ServerState.VERIFYING:
            after = ServerState.FAILED if check.errors else ServerState.STANDBY
            reason = f"verification found {check.errors} error(s)" if check.errors else "verified"
            servers.set_state(connection, name, after, actor=actor, reason=reason)
        return Verified(servers.get(connection, name), check)


def require_verified(done: Verified) -> None:
    """For whoever goes on only when it passed.

    Raises:
        FleetError: it didn't; the sentence holds the first error.
    """
    if not done.passed:
        first = next(finding.text for finding in done.check.findings if is_error(finding))
        more = f" (and {done.check.errors - 1} more)" if done.check.errors > 1 else ""
        raise FleetError(f"{done.server.name} may not send: {first}{more}; see `mailfleet server show`")


def domains_of_pool(connection: Connection, pool_id: int) -> list[SendingDomain]:
    """Sending domains that campaigns of the sending pool name; before there is a campaign, every one that is stored."""
    definitions = connection.scalars(select(campaigns.c.definition).where(campaigns.c.pool_id == pool_id)).all()
    named = {str(definition["sending_domain"]) for definition in definitions}
    return [domain for domain in domains.list_domains(connection) if not named or domain.name in named]


def configured_seed_box(settings: Settings) -> SeedBox | None:
    """
    Raises:
        FleetError: only half of it is set.
    """
    if (settings.seed_address is None) != (settings.seed_maildir is None):
        raise FleetError("MAILFLEET_SEED_ADDRESS and MAILFLEET_SEED_MAILDIR go together: set both, or neither")
    if settings.seed_address is None or settings.seed_maildir is None:
        return None
    return MaildirSeedBox(settings.seed_address, settings.seed_maildir)


def gather(
    settings: Settings,
    server: DispatchServer,
    run: RunScript,
    *,
    sending: Sequence[SendingDomain],
    outgoing: Sequence[str],
    options: Options,
    seed_box: SeedBox | None,
) -> Facts:
    """Everything that is judged. What can't be had is a fact too, with its sentence."""
    own_mta = server.mta is not MtaKind.RELAY
    facts = Facts(
        helo_name=server.helo_name, pool=server.pool, own_mta=own_mta, needs_source=False, host=None, host_problem=None,
        dns_problem=None, helo_addresses=(), sources=(), domains=(), blocklists=(), seeds=(), outgoing=tuple(outgoing),
        public_url=str(settings.public_url), has_seed_box=seed_box is not None,
    )  # fmt: skip
    named = dict(one.split() for one in server.sources)  # address: its name in EHLO
    try:
        query = host_query(server, settings, options.sources or list(named), options.probe_host or settings.probe_host)
        facts = replace(facts, host=gather_host(run, query))
    except ProbeError as problem:
        facts = replace(facts, host_problem=str(problem))
    sources = facts.host.sources if facts.host is not None else tuple(options.sources or named)
    facts = replace(facts, needs_source=facts.host is not None and not sources)
    try:
        resolver = open_resolver(settings.dns_server)
        zones = [zone.strip() for zone in (settings.blocklists or "").split(",") if zone.strip()]
        facts = replace(
            facts,
            helo_addresses=addresses(resolver, server.helo_name),
            sources=tuple(
                replace(source, helo_name=named.get(source.address)) for source in gather_sources(resolver, sources)
            ),
            domains=tuple(_domain_facts(settings, resolver, domain) for domain in sending),
            blocklists=read_blocklists(resolver, zones, sources),
        )
    except NoResolverError as problem:
        return replace(facts, dns_problem=str(problem))
    if seed_box is not None and facts.host is not None and facts.host.mta.error is None:
        signable = [domain for domain in facts.domains if domain.public_key is not None]
        seeds = send_seeds(
            settings,
            server,
            run,
            sending=[domain.published.domain for domain in signable],
            box=seed_box,
            txt=lambda name: next(iter(ask(resolver, name, "TXT")), None),
            wait_s=options.seed_wait_s,
        )
        facts = replace(facts, seeds=tuple(seeds))
    return facts


def send_seeds(
    settings: Settings,
    server: DispatchServer,
    run: RunScript,
    *,
    sending: Sequence[SendingDomain],
    box: SeedBox,
    txt: Callable[[str], str | None],
    wait_s: float,
) -> list[SeedResult]:
    """A signed message of each sending domain, through the server's MTA to the seed box."""
    at = now()
    messages = [make_message(domain, box.address, server.name, at) for domain in sending]
    if not messages:
        return []
    signed = [
        sign_message(
            one.data, one.domain.name, one.domain.dkim_selector, domains.dkim_private_key(settings, one.domain),
            at=int(at.timestamp()),
        )
        for one in messages
    ]  # fmt: skip
    query = {
        "do": "submit",
        "smtp_host": server.smtp_host,
        "smtp_port": server.smtp_port,
        "implicit_tls": server.smtp_security is SmtpSecurity.IMPLICIT,
        "starttls": server.smtp_security is SmtpSecurity.STARTTLS,
        "user": server.smtp_user,
        "password": secret_refs.resolve(settings, server.smtp_password_ref) if server.smtp_password_ref else None,
        "messages": [
            (one.sender, box.address, base64.b64encode(data).decode())
            for one, data in zip(messages, signed, strict=True)
        ],
    }
    try:
        replies = run_probe(run, query)["replies"]
    except ProbeError as problem:
        replies = [str(problem)] * len(messages)
    taken = [one.message_id for one, reply in zip(messages, replies, strict=True) if reply is None]
    arrived = wait_for(box, taken, wait_s)
    results = []
    for one, reply in zip(messages, replies, strict=True):
        if reply is not None:
            results.append(SeedResult(one.domain.name, refused=str(reply).replace(box.address, "<address>")))
        elif one.message_id not in arrived:
            results.append(SeedResult(one.domain.name, waited_s=wait_s))
        else:
            results.append(examine(one.domain, *arrived[one.message_id], txt))
    return results


def _domain_facts(settings: Settings, resolver: dns.resolver.Resolver, domain: SendingDomain) -> SendingDomainFacts:
    published = domain_dns.look_up(resolver, domain)
    try:
        key = domains.public_key_of(domains.dkim_private_key(settings, domain))
    except (FleetError, SecretRefError, DkimKeyError) as problem:
        return SendingDomainFacts(published, None, str(problem))
    return SendingDomainFacts(published, key)
