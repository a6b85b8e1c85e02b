"""Names that become parts of paths, labels and SMTP dialogues, and so are held to a narrow form."""

import ipaddress
import re

from mailer_lib.contacts.address import AddressError, normalise_domain

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")


class FleetError(ValueError):
    """A record of the fleet is wrong, missing or there already; the sentence says which and what to do."""


def check_name(kind: str, name: str) -> str:
    """The name itself, when it may name a folder and an Airflow map index.

    Raises:
        FleetError: it may not.
    """
    if _NAME.fullmatch(name) is None or ".." in name:
        raise FleetError(
            f"{name!r} can't name a {kind}: use 1–64 lower-case letters, digits, dots and hyphens, like main or mta-1"
        )
    return name


def check_host(text: str) -> str:
    """A host as a resolver takes it: an ASCII name, ``localhost`` or an IP address.

    Raises:
        FleetError: none of these.
    """
    host = text.strip()
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if host.lower() == "localhost":
        return "localhost"
    return check_domain(host)


def check_domain(text: str) -> str:
    """A domain in ASCII (IDNA), lower case.

    Raises:
        FleetError: it isn't one.
    """
    try:
        return normalise_domain(text)
    except AddressError as error:
        raise FleetError(f"{text!r} isn't a host or domain name: {error}") from None


def check_address(text: str) -> str:
    """An IP address.

    Raises:
        FleetError: it isn't one.
    """
    try:
        return str(ipaddress.ip_address(text.strip("[] ")))
    except ValueError:
        raise FleetError(f"{text!r} isn't an IP address") from None
