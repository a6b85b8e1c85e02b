"""The key with which the centre logs in to dispatch servers (``settings.ssh_key_ref``)."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from mailer_lib import secret_refs
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings


def make_login_key(path: Path) -> bool:
    """Write a fresh Ed25519 key, mode 0600, unless the file exists. Returns whether it was made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return True


def private_text(settings: Settings) -> str:
    """The private key in OpenSSH's form.

    Raises:
        SecretRefError: it isn't there.
    """
    return secret_refs.resolve(settings, settings.ssh_key_ref).strip() + "\n"


def public_line(settings: Settings) -> str:
    """A line for ``authorized_keys``.

    Raises:
        SecretRefError: the private key isn't there.
        FleetError: it isn't one.
    """
    return public_half(private_text(settings), f"{settings.ssh_key_ref} (MAILFLEET_SSH_KEY_REF)")


def public_half(private: str, where: str) -> str:
    """The line for ``authorized_keys`` of a private key; ``where`` it comes from is for the sentence.

    Raises:
        FleetError: it isn't one.
    """
    try:
        key = load_ssh_private_key((private.strip() + "\n").encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FleetError(f"{where} isn't a private key of OpenSSH without a passphrase") from None
    return f"{key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()} mailfleet"
