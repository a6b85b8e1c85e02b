"""What DNS publishes for a sending domain: SPF, DKIM, DMARC, and where bounces come back to.

Gathered once, and judged by who asks: pre-flight for a campaign, a verification for a server.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import dns.resolver

from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.resolver import ask


@dataclass(frozen=True)
class Published:
    """One record as checkdmarc reads it."""

    record: str | None = None
    error: str | None = None  # why receivers can't use it; None: they can
    warnings: tuple[str, ...] = ()
    parsed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DomainFacts:
    domain: SendingDomain
    dkim: str | None  # the TXT record of the selector
    spf: Published  # of the return path
    dmarc: Published
    mx: tuple[str, ...]  # hosts that take bounces


def look_up(resolver: dns.resolver.Resolver, domain: SendingDomain, *, timeout_s: float = 2.0) -> DomainFacts:
    """
    Raises:
        NoResolverError: no resolver answers.
    """
    import checkdmarc.dmarc
    import checkdmarc.spf
    import checkdmarc.utils

    checkdmarc.utils.DNS_CACHE.clear()  # it lasts half an hour: what was published a minute ago must be seen
    texts = ask(resolver, f"{domain.dkim_selector}._domainkey.{domain.name}", "TXT")
    options: dict[str, Any] = {"resolver": resolver, "timeout": timeout_s}
    return DomainFacts(
        domain,
        texts[0] if texts else None,
        _published(checkdmarc.spf.check_spf(domain.return_path_domain, **options)),
        _published(checkdmarc.dmarc.check_dmarc(domain.name, **options)),
        tuple(record.split()[-1] for record in ask(resolver, domain.return_path_domain, "MX")),
    )


def publishes_key(dkim: str, public_key: str) -> bool:
    return f"p={public_key}" in "".join(dkim.split())


def spf_result(parsed: Mapping[str, Any], address: str) -> str:
    """What SPF says of mail from this address: ``pass``, ``fail``, ``softfail`` or ``neutral``.

    The first mechanism that matches decides (RFC 7208 §4.6.2). Macros, ``exists`` and ``ptr`` match nothing here.
    """
    wanted = ipaddress.ip_address(address)
    for mechanism in parsed.get("mechanisms") or ():
        if mechanism["mechanism"] == "include":
            inner = mechanism.get("parsed")
            matches = bool(inner) and spf_result(inner, address) == "pass"
        else:
            matches = any(wanted in network for network in _networks(mechanism))
        if matches:
            return str(mechanism["action"])
    redirect = parsed.get("redirect") or {}
    if redirect.get("parsed"):
        return spf_result(redirect["parsed"], address)
    return str(parsed.get("all") or "neutral")


def _networks(mechanism: Mapping[str, Any]) -> Iterator[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    kind, value = mechanism["mechanism"], str(mechanism.get("value") or "")
    if kind in ("ip4", "ip6"):
        yield ipaddress.ip_network(value, strict=False)
        return
    found = list(mechanism.get("addresses") or ())
    found += [address for host in mechanism.get("hosts") or () for address in host.get("addresses") or ()]
    _, _, lengths = value.partition("/")
    for_4, _, for_6 = lengths.partition("//") if not lengths.startswith("/") else ("", "", lengths[1:])
    for text in found:
        length = for_6 if ":" in text else for_4
        yield ipaddress.ip_network(f"{text}/{length}" if length else text, strict=False)


def _published(result: Mapping[str, Any]) -> Published:
    wrong = result.get("error") or (None if result.get("valid", True) else "not valid")
    return Published(
        result.get("record"),
        None if wrong is None else str(wrong),
        tuple(map(str, result.get("warnings") or ())),
        result.get("parsed") or {},
    )
