"""The resolver that checks ask: the system's, or the one that ``MAILFLEET_DNS_SERVER`` names."""

import ipaddress
from collections.abc import Iterable

import dns.exception
import dns.resolver
import dns.reversename

from mailer_lib.settings import address_and_port

TIMEOUT_S = 3.0  # for one question, all its retries included


class NoResolverError(RuntimeError):
    """Nobody answers questions about DNS; the sentence says what to do."""


def open_resolver(dns_server: str | None = None, *, timeout_s: float = TIMEOUT_S) -> dns.resolver.Resolver:
    """
    Raises:
        NoResolverError: the system has none configured.
    """
    if dns_server is None:
        try:
            resolver = dns.resolver.Resolver()
        except (dns.exception.DNSException, OSError):
            raise NoResolverError(
                "this machine has no resolver (/etc/resolv.conf): set MAILFLEET_DNS_SERVER to one"
            ) from None
    else:
        resolver = dns.resolver.Resolver(configure=False)
        address, resolver.port = address_and_port(dns_server)
        resolver.nameservers = [address]
    resolver.lifetime = timeout_s
    return resolver


def ask(resolver: dns.resolver.Resolver, name: str, kind: str) -> tuple[str, ...]:
    """The records of a name as text, without final dots; none when there is no such name or record.

    Raises:
        NoResolverError: no answer.
    """
    try:
        answer = resolver.resolve(name, kind, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return ()
    except (dns.exception.DNSException, OSError) as error:
        servers = ", ".join(map(str, resolver.nameservers))
        raise NoResolverError(f"no answer about {name} {kind} from {servers} ({type(error).__name__})") from None
    if kind == "TXT":
        return tuple(b"".join(record.strings).decode("utf-8", "replace") for record in answer)
    return tuple(record.to_text().rstrip(".") for record in answer)


def addresses(resolver: dns.resolver.Resolver, name: str) -> tuple[str, ...]:
    """IPv4 and IPv6."""
    return (*ask(resolver, name, "A"), *ask(resolver, name, "AAAA"))


def reverse_name(address: str) -> str:
    """``7.2.0.192.in-addr.arpa``, without the final dot."""
    return dns.reversename.from_address(address).to_text().rstrip(".")


def names_of(resolver: dns.resolver.Resolver, address: str) -> tuple[str, ...]:
    """What its PTR records say."""
    return ask(resolver, reverse_name(address), "PTR")


def same_address(address: str, others: Iterable[str]) -> bool:
    wanted = ipaddress.ip_address(address)
    return any(ipaddress.ip_address(other) == wanted for other in others)
