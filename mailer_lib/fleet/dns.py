"""The DNS records that a sending domain needs, for its owner to publish. Pure functions of the records stored here."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from mailer_lib.fleet.domains import SendingDomain

_STRING_OCTETS = 255  # one character-string of a TXT record, RFC 1035 §3.3
_SPF_LOOKUPS = 10  # RFC 7208 §4.6.4


@dataclass(frozen=True)
class DnsRecord:
    name: str
    type: str
    value: str
    why: str

    def zone_line(self) -> str:
        """As a zone file has it (RFC 1035 §5); long texts in several strings."""
        if self.type == "TXT":
            parts = [self.value[at : at + _STRING_OCTETS] for at in range(0, len(self.value), _STRING_OCTETS)]
            value = " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
        else:
            value = self.value
        return f"{self.name}. 3600 IN {self.type} {value}"


def records(
    domain: SendingDomain,
    public_key: str,
    *,
    outgoing: Sequence[str],
    bounce_host: str | None,
    public_url: str,
) -> list[DnsRecord]:
    """What to publish for ``domain``.

    ``outgoing``: the names or IP addresses that mail leaves from (EHLO names of the dispatch servers). ``bounce_host``
    takes the mail of the return path; None leaves its MX out. ``public_url`` is where `mailfleet serve` is reached.
    """
    made = [
        dkim_record(domain, public_key),
        DnsRecord(
            domain.return_path_domain,
            "TXT",
            spf(outgoing),
            "SPF of the return path: who may send for it (RFC 7208)",
        ),
        DnsRecord(
            f"_dmarc.{domain.name}",
            "TXT",
            f"v=DMARC1; p=none; rua=mailto:dmarc@{domain.name}",
            "DMARC: begin with p=none and read the reports, then tighten (RFC 7489)",
        ),
    ]
    if bounce_host is not None:
        made.append(DnsRecord(domain.return_path_domain, "MX", f"10 {bounce_host}.", "where bounces come back to"))
    tracking, serving = (urlsplit(url or "").hostname or "" for url in (domain.tracking_url, public_url))
    if tracking and tracking != serving:
        kind, value = ("CNAME", f"{serving}.") if is_name(serving) else ("A", serving)
        made.append(DnsRecord(tracking, kind, value, "links, unsubscribe and pixel"))
    return made


def dkim_record(domain: SendingDomain, public_key: str, of: str = "") -> DnsRecord:
    """Of the selector that the domain has; ``of`` whom it is, for the reader."""
    return DnsRecord(
        f"{domain.dkim_selector}._domainkey.{domain.name}",
        "TXT",
        f"v=DKIM1; k=rsa; p={public_key}",
        f"DKIM{of}: receivers check signatures with it (RFC 6376 §3.6)",
    )


def spf(outgoing: Sequence[str]) -> str:
    """``v=spf1 … -all`` for the hosts that mail leaves from.

    IP addresses cost receivers no look-up, names one each; more than ten look-ups are a permanent error (RFC 7208
    §4.6.4), so then ``too_many_lookups`` should be told to the operator.
    """
    terms = [
        f"a:{host}" if is_name(host) else f"ip{ipaddress.ip_address(host).version}:{host}"
        for host in dict.fromkeys(outgoing)
    ]
    return " ".join(["v=spf1", *terms, "-all"])


def is_name(host: str) -> bool:
    """Whether the host is a name, not an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


def too_many_lookups(outgoing: Sequence[str]) -> bool:
    return spf(outgoing).count(" a:") > _SPF_LOOKUPS
