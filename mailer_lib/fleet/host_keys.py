"""Host keys as they are pinned: type and key, as in ``known_hosts``, and the fingerprint that a person compares."""

import base64
import binascii
import hashlib
import re

from mailer_lib.fleet.names import FleetError

_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_FORM = re.compile(r"(\S+) ([A-Za-z0-9+/]+=*)(?: .*)?")


def check_host_key(text: str) -> str:
    """``type key``, without the comment that may follow.

    Raises:
        FleetError: it isn't a public key of a type that sshd has.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or match[1] not in _TYPES or _type_inside(match[2]) != match[1]:
        raise FleetError(
            "a host key is given as in /etc/ssh/ssh_host_ed25519_key.pub: type and key, like 'ssh-ed25519 AAAA…'"
        )
    return f"{match[1]} {match[2]}"


def fingerprint(host_key: str) -> str:
    """As ``ssh-keygen -l`` prints it: ``SHA256:…``."""
    digest = hashlib.sha256(base64.b64decode(host_key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _type_inside(encoded: str) -> str | None:
    """The type that the key itself names first (RFC 4253 §6.6)."""
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return None
    size = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + size].decode("ascii", "replace")
