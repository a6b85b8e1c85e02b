"""Keyed hashes that stand for a person: who is suppressed, and which message is whose.

The identity key is made once for an installation, backed up, and never rotated (docs/deployment.md): all suppressions
and message keys hang on it. It isn't the key that signs tokens (``tokens.py``).

BLAKE2b in keyed mode (RFC 7693 §2.9) costs 0.7 µs a call, HMAC-SHA-256 twice that; ``person`` separates the uses.
Message keys are made by the hundred thousand, so they are AES blocks: 0.004 µs a key, all of them in one call.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

ADDRESS_HASH_BYTES = 16
MESSAGE_KEY_BYTES = 16


@dataclass(frozen=True)
class IdentityKey:
    """The installation's identity key: 32 bytes that never appear in a repr."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != 32:
            raise ValueError(f"the identity key has {len(self.secret)} bytes; it must have 32")

    def __repr__(self) -> str:
        return "IdentityKey(…)"

    def address_hash(self, normalised_address: str) -> bytes:
        """16 bytes for one normalised address (``contacts.address.normalise``)."""
        return hashlib.blake2b(
            normalised_address.encode(), digest_size=ADDRESS_HASH_BYTES, key=self.secret, person=b"mf-address"
        ).digest()

    def send_key(self, campaign: str, edition: str) -> bytes:
        """32 bytes from which the message keys of one send are made; safe to hand to an agent."""
        return hashlib.blake2b(
            f"{campaign}\0{edition}".encode(), digest_size=32, key=self.secret, person=b"mf-send"
        ).digest()


def message_key(send_key: bytes, address_hash: bytes) -> bytes:
    """16 bytes that name one message: one person in one send, the same for ever, whatever is re-imported or merged."""
    return joined_message_keys(send_key, address_hash)


def message_keys(send_key: bytes, address_hashes: Iterable[bytes]) -> list[bytes]:
    """The message key of each address hash."""
    keys = joined_message_keys(send_key, b"".join(address_hashes))
    return [keys[start : start + MESSAGE_KEY_BYTES] for start in range(0, len(keys), MESSAGE_KEY_BYTES)]


def joined_message_keys(send_key: bytes, address_hashes: bytes) -> bytes:
    """Likewise of hashes that stand end to end: the keys in their order, end to end.

    Each key is AES-256 of one hash, its only block, under the send's key. Within a send this is a permutation: two
    people never have one key, and who doesn't hold the send's key sees random bytes. That ECB encrypts equal blocks
    equally is what is wanted of a name; nothing is hidden in it that could show through (docs/decisions/0002).
    """
    # Here, or every command would wait for it: settings import this module.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if len(address_hashes) % ADDRESS_HASH_BYTES:
        raise ValueError(f"address hashes have {ADDRESS_HASH_BYTES} bytes each; these are {len(address_hashes)} bytes")
    return Cipher(algorithms.AES256(send_key), modes.ECB()).encryptor().update(address_hashes)  # noqa: S305
