"""One address, three ways: as given, as the key a person is known by, and as SMTP wants it.

The key (``normalised``) has the domain in ASCII by UTS #46 and IDNA 2008, lower-cased, and the local part case-folded
in NFC. Nothing else is folded: dots and plus tags belong to the mailbox provider (DESIGN §4), and ``müller@`` is not
``muller@``. Most addresses are plain ASCII at a domain seen before; they cost about two microseconds.
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import idna
from email_validator import EmailNotValidError, validate_email

MAX_LOCAL_OCTETS = 64  # RFC 5321 §4.5.3.1.1
MAX_DOMAIN_OCTETS = 253  # 255 on the wire (RFC 5321 §4.5.3.1.2) with the root label and a length octet
MAX_ADDRESS_OCTETS = 254  # a path has 256, "<" and ">" included (RFC 5321 §4.5.3.1.3)

# dot-atom, RFC 5322 §3.2.3; quoted local parts ("a b"@c) are legal but, in a customer file, always a mistake
_LOCAL_ASCII = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL_ASCII = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ud800-\udfff]")


class AddressError(ValueError):
    """Not an e-mail address; the sentence says why and never contains the address itself."""


class Address(NamedTuple):
    given: str  # as written, white space around it removed
    normalised: str  # the key of the person: hashed, unique
    deliverable: str  # for SMTP: local part as given, domain in ASCII; a non-ASCII local part needs SMTPUTF8 (RFC 6531)
    domain: str  # ASCII, lower case


def normalise(text: str) -> Address:
    """Read one address.

    Raises:
        AddressError: a sentence for a person who mends a file.
    """
    given = text.strip()
    local, at, domain = given.rpartition("@")
    if not at:
        raise AddressError("there is nothing in it" if not given else "there is no @ in it")
    if _LOCAL_ASCII.fullmatch(local) is None:
        _check_unusual_local(given, local)
    ascii_domain = _ascii_domain(domain)
    deliverable = f"{local}@{ascii_domain}"
    if local.isascii():
        octets, folded = len(local), local.lower()
    else:
        octets, folded = len(local.encode()), _fold(local)
    if octets > MAX_LOCAL_OCTETS:
        raise AddressError(f"the part before the @ is longer than {MAX_LOCAL_OCTETS} octets")
    if octets + 1 + len(ascii_domain) > MAX_ADDRESS_OCTETS:
        raise AddressError(f"it is longer than {MAX_ADDRESS_OCTETS} octets")
    return Address(given, f"{folded}@{ascii_domain}", deliverable, ascii_domain)


def normalise_domain(text: str) -> str:
    """A domain as ``Address.domain`` has it; a leading @ is dropped.

    Raises:
        AddressError: not a domain.
    """
    return _ascii_domain(text.strip().removeprefix("@"))


def _fold(local: str) -> str:
    """Canonical caseless form (Unicode §3.13, D145), composed.

    Folding may decompose again, and composing may uncover something to fold, so it is repeated until it stands still:
    the key of a key must be the key itself.
    """
    while True:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", local).casefold())
        if folded == local:
            return folded
        local = folded


def _check_unusual_local(given: str, local: str) -> None:
    """Raise for a local part that is not an ASCII dot-atom, unless it is an internationalised one (RFC 6532 §3.2)."""
    if _SPACE_OR_CONTROL.search(given):
        raise AddressError("there is a space or an invisible character in it")
    if not local:
        raise AddressError("there is nothing before the @")
    if "@" in local:
        raise AddressError("there is more than one @ in it")
    if '"' in local or "(" in local or "<" in local:
        raise AddressError("quotes, brackets and comments are not taken: give the bare address")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise AddressError("the part before the @ begins or ends with a dot, or has two in a row")
    if local.isascii():
        raise AddressError("there is a character before the @ that an address can't have")
    if len(local.encode()) > MAX_LOCAL_OCTETS:
        raise AddressError(f"the part before the @ is longer than {MAX_LOCAL_OCTETS} octets")
    try:
        validate_email(f"{local}@mailfleet.com", check_deliverability=False, allow_smtputf8=True)
    except EmailNotValidError:
        raise AddressError("there is a character before the @ that an address can't have") from None


@lru_cache(maxsize=65_536)
def _ascii_domain(domain: str) -> str:
    if not domain:
        raise AddressError("there is nothing after the @")
    if _SPACE_OR_CONTROL.search(domain):
        raise AddressError("there is a space or an invisible character in it")
    if domain.startswith("["):
        raise AddressError("an address at a bare IP number is not taken")
    lowered = domain.lower()
    if not domain.isascii() or "xn--" in lowered:
        try:
            lowered = idna.encode(domain, uts46=True, transitional=False, std3_rules=True).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError):
            raise AddressError("what stands after the @ is not a domain name (IDNA 2008)") from None
    labels = lowered.split(".")
    if not all(labels):
        raise AddressError("the domain begins or ends with a dot, or has two in a row")
    if not all(_LABEL_ASCII.fullmatch(label) for label in labels):
        raise AddressError("there is a character after the @ that a domain can't have")
    if len(labels) < 2:
        raise AddressError("the domain has no dot")
    if any(len(label) > 63 for label in labels):
        raise AddressError("a part of the domain is longer than 63 octets")
    if labels[-1].isdigit():
        raise AddressError("the domain ends with a number")
    if len(lowered) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"the domain is longer than {MAX_DOMAIN_OCTETS} octets")
    return lowered
