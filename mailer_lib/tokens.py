"""Signed tokens in links and return paths: what a recipient holds, and nobody else can make.

A token is 31 bytes of payload and 14 of BLAKE2b MAC, 60 characters of base64url. Agents get only the key of their own
send (``send_token_key``), so a lost dispatch server can forge nothing for another. MACs are compared in constant time.
"""

import base64
import binascii
import hashlib
import hmac
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

_PAYLOAD = struct.Struct(">BHIQ16s")
_HEAD, _TAIL = struct.Struct(">BHI"), struct.Struct(">Q16s")  # of the payload: what a send, and what a person decides
_MAC_BYTES = 14
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
TOKEN_CHARS = 60
_VERP_MAC_CHARS = 10
_VERP = re.compile(r"b-([0-9a-f]{32})-([0-9a-f]{1,8})-([0-9a-f]{10})")


class TokenKind(IntEnum):
    UNSUBSCRIBE = 1
    CLICK = 2
    OPEN = 3
    VIEW = 4  # the message as a web page, for its recipient
    CONFIRM = 5  # double opt-in: ``send_id`` is the list's id, ``message_key`` the address hash
    PREVIEW = 6  # for approvers: ``send_id`` is the send's id, ``contact_id`` a sample contact or 0


_KINDS = frozenset(map(int, TokenKind))
_CENTRAL = frozenset({TokenKind.CONFIRM, TokenKind.PREVIEW})  # never signed by an agent


class BadTokenError(ValueError):
    """A token that isn't ours, is damaged, or is of another kind."""


@dataclass(frozen=True)
class Token:
    kind: TokenKind
    send_id: int
    contact_id: int
    message_key: bytes  # 16 bytes
    link: int = 0  # number of the tracked link, CLICK only


def send_token_key(token_key: bytes, send_id: int) -> bytes:
    """32 bytes that sign what an agent puts into the messages of one send."""
    return hashlib.blake2b(struct.pack(">I", send_id), digest_size=32, key=token_key, person=b"mf-token").digest()


def signing_key(token_key: bytes, kind: TokenKind, number: int) -> bytes:
    """The key for tokens of ``kind`` about send ``number`` (CONFIRM: list ``number``).

    What no agent signs has keys of its own: with the key of send 7, a lost dispatch server must not be able to confirm
    subscriptions to list 7.
    """
    if kind in _CENTRAL:
        data = struct.pack(">BI", kind, number)
        return hashlib.blake2b(data, digest_size=32, key=token_key, person=b"mf-central").digest()
    return send_token_key(token_key, number)


def sign(key: bytes, token: Token) -> str:
    """The token as 60 URL-safe characters. ``key`` is ``signing_key`` of the token's kind and ``send_id``."""
    payload = _PAYLOAD.pack(token.kind, token.link, token.send_id, token.contact_id, token.message_key)
    mac = hashlib.blake2b(payload, digest_size=_MAC_BYTES, key=key).digest()
    return base64.urlsafe_b64encode(payload + mac).decode()


class Signer:
    """``sign`` for many messages of one send: the keyed hash is prepared once. The same tokens, at half the cost."""

    def __init__(self, key: bytes, send_id: int) -> None:
        self._key = key
        self._send_id = send_id
        self._mac = hashlib.blake2b(digest_size=_MAC_BYTES, key=key)

    def sign(self, kind: int, contact_id: int, message_key: bytes, link: int = 0) -> bytes:
        """The token as 60 ASCII bytes."""
        payload = _PAYLOAD.pack(kind, link, self._send_id, contact_id, message_key)
        mac = self._mac.copy()
        mac.update(payload)
        return binascii.b2a_base64(payload + mac.digest(), newline=False).translate(_URL_SAFE)

    def heads(self, wanted: Iterable[tuple[int, int]]) -> tuple[bytes, ...]:
        """What ``sign_all`` wants, of (kind, link) pairs."""
        return tuple(_HEAD.pack(kind, link, self._send_id) for kind, link in wanted)

    def sign_all(self, heads: Iterable[bytes], contact_id: int, message_key: bytes) -> list[bytes]:
        """A token for each head, as ``sign`` makes it: 45 bytes are 60 characters, so all are coded as one."""
        tail, begun = _TAIL.pack(contact_id, message_key), self._mac
        raw: list[bytes] = []
        for head in heads:
            mac = begun.copy()
            mac.update(payload := head + tail)
            raw += (payload, mac.digest())
        text = binascii.b2a_base64(b"".join(raw), newline=False).translate(_URL_SAFE)
        return [text[at : at + TOKEN_CHARS] for at in range(0, len(text), TOKEN_CHARS)]

    def verp_local_part(self, message_key: bytes) -> str:
        return verp_local_part(self._key, self._send_id, message_key)


def verify(token_key: bytes, text: str, *kinds: TokenKind) -> Token:
    """Open a token signed under the installation's ``token_key``.

    Raises:
        BadTokenError: malformed, not signed by us, or of a kind that isn't in ``kinds``.
    """
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadTokenError("not a token") from error
    canonical = base64.urlsafe_b64encode(raw).decode() == text  # the decoder passes over padding that is too much
    if len(raw) != _PAYLOAD.size + _MAC_BYTES or not canonical:
        raise BadTokenError("not a token")
    payload, mac = raw[: _PAYLOAD.size], raw[_PAYLOAD.size :]
    kind, link, send_id, contact_id, key = _PAYLOAD.unpack(payload)
    if kind not in _KINDS:
        raise BadTokenError("not a token")
    signed_by = signing_key(token_key, TokenKind(kind), send_id)
    expected = hashlib.blake2b(payload, digest_size=_MAC_BYTES, key=signed_by).digest()
    if not hmac.compare_digest(mac, expected):
        raise BadTokenError("the token's signature is wrong")
    if kind not in {int(wanted) for wanted in kinds}:
        raise BadTokenError("the token is for something else")
    return Token(TokenKind(kind), send_id, contact_id, key, link)


def verp_local_part(key: bytes, send_id: int, message_key: bytes) -> str:
    """Local part of the return path: ``b-<message key, 32 hex>-<send, hex>-<MAC, 10 hex>`` (at most 54 of 64 octets).

    Lower-case hex, because some receivers fold the case of a return path (variable envelope return path: D. J.
    Bernstein, 1997). ``key`` is ``send_token_key`` of the send.
    """
    mac = hashlib.blake2b(message_key, digest_size=_VERP_MAC_CHARS // 2, key=key, person=b"mf-verp").hexdigest()
    return f"b-{message_key.hex()}-{send_id:x}-{mac}"


def verify_verp(token_key: bytes, local_part: str) -> tuple[int, bytes]:
    """The send's id and the message key in a return path that ``verp_local_part`` made.

    Raises:
        BadTokenError: anything else.
    """
    match = _VERP.fullmatch(local_part.lower())
    if match is None:
        raise BadTokenError("not a return path of ours")
    message_key, send_id = bytes.fromhex(match[1]), int(match[2], 16)
    expected = verp_local_part(send_token_key(token_key, send_id), send_id, message_key)
    if not hmac.compare_digest(expected.encode(), local_part.lower().encode()):
        raise BadTokenError("the return path's signature is wrong")
    return send_id, message_key
