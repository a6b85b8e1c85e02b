"""The checks that leave this machine: does the unsubscribe page answer, and what does DNS say."""

import ipaddress
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.message.findings import Finding, error, info, warning

if TYPE_CHECKING:
    from mailer_lib.fleet.domain_dns import Published

TIMEOUT_S = 5.0
DNS_TIMEOUT_S = 2.0
GONE = 410  # our page for a signed link of a send that isn't there: it answers, and knows our signature
_RESERVED = ("example", "test", "invalid", "localhost", "local", "example.com", "example.org", "example.net")


def check_unsubscribe(url: str, *, needed: bool) -> Iterator[Finding]:
    """GET the one-click URL (RFC 8058): a page must come back. A GET never unsubscribes anybody."""
    host = urlsplit(url).hostname or ""
    base = url.rsplit("/u/", 1)[0]
    if urlsplit(url).scheme != "https":
        level = info if _is_loopback(host) else warning
        yield level("unsubscribe-https", f"{base} isn't https, which one-click unsubscribing wants (RFC 8058)")
    level = error if needed else warning
    handlers = [urllib.request.ProxyHandler({})] if _is_loopback(host) else []
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=TIMEOUT_S) as answer:
            status = answer.status
    except urllib.error.HTTPError as problem:
        status = problem.code
        problem.close()
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        yield level(
            "unsubscribe-unreachable",
            f"the unsubscribe page at {base} doesn't answer ({reason}); start `mailfleet serve`, or set "
            "MAILFLEET_PUBLIC_URL",
        )
        return
    if 200 <= status < 300 or status == GONE:
        yield info("unsubscribe", f"the unsubscribe page at {base} answers")
    else:
        yield level(
            "unsubscribe-refused",
            f"the unsubscribe page at {base} answers {status}; it must be `mailfleet serve` with this installation's "
            "token key",
        )


def check_dns(domain: SendingDomain, public_key: str | None, dns_server: str | None = None) -> Iterator[Finding]:
    """SPF and MX of the return path, DKIM and DMARC of the From domain, where a resolver is there."""
    if _is_reserved(domain.name):
        yield info("dns", f"DNS not checked: {domain.name} is a name reserved for examples and tests")
        return
    from mailer_lib.fleet import domain_dns
    from mailer_lib.fleet.resolver import NoResolverError, ask, open_resolver

    try:
        resolver = open_resolver(dns_server, timeout_s=DNS_TIMEOUT_S)
        ask(resolver, domain.name, "SOA")
        published = domain_dns.look_up(resolver, domain, timeout_s=DNS_TIMEOUT_S)
    except NoResolverError:
        yield info("dns", "DNS not checked: no resolver answers here")
        return
    name = f"{domain.dkim_selector}._domainkey.{domain.name}"
    if published.dkim is None:
        yield error("dkim-dns", f"{name} isn't published; `mailfleet domain dns {domain.name}` prints the record")
    elif public_key is not None and not domain_dns.publishes_key(published.dkim, public_key):
        yield error("dkim-dns", f"{name} publishes another key than the one that signs")
    else:
        yield info("dkim-dns", f"{name} publishes the key that signs")
    yield from _judge("SPF", domain.return_path_domain, published.spf)
    yield from _judge("DMARC", domain.name, published.dmarc)
    if not published.mx:
        yield warning("mx", f"{domain.return_path_domain} has no MX record, so bounces can't come back")


def _judge(what: str, name: str, published: "Published") -> Iterator[Finding]:
    code = what.lower()
    if published.error is not None:
        yield error(code, f"{what} of {name}: {published.error}")
        return
    for problem in published.warnings:
        yield warning(code, f"{what} of {name}: {problem}")
    yield info(code, f"{what} of {name} is valid")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_reserved(name: str) -> bool:
    """RFC 2606, RFC 6761."""
    return any(name == reserved or name.endswith("." + reserved) for reserved in _RESERVED)
