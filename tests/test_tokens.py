"""Tokens: what is signed comes back, what is changed by a single bit doesn't, and the known answers never change.

If a known answer fails, the links in every mail that was ever sent would be dead: mend the code, never the answer.
"""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib import tokens
from mailer_lib.tokens import (
    BadTokenError,
    Signer,
    Token,
    TokenKind,
    send_token_key,
    sign,
    signing_key,
    verify,
    verify_verp,
    verp_local_part,
)

TOKEN_KEY = bytes(range(32, 64))
MESSAGE_KEY = bytes.fromhex("9b2ecbd8fafd3a238229e752a7adf0ab")

keys = st.binary(min_size=32, max_size=32)
send_ids = st.integers(min_value=0, max_value=2**32 - 1)
message_keys = st.binary(min_size=16, max_size=16)
whole_tokens = st.builds(
    Token,
    kind=st.sampled_from(TokenKind),
    send_id=send_ids,
    contact_id=st.integers(min_value=0, max_value=2**64 - 1),
    message_key=message_keys,
    link=st.integers(min_value=0, max_value=2**16 - 1),
)


@pytest.mark.parametrize(
    ("kind", "link", "text"),
    [
        (TokenKind.UNSUBSCRIBE, 0, "AQAAAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wqwmHhBcTOjZjCozO3aw7"),
        (TokenKind.CLICK, 3, "AgADAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wqwUn6bo2i_8XPMjV-Boi"),
        (TokenKind.OPEN, 0, "AwAAAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wq0vydPe--C2XcDC6tviI"),
        (TokenKind.VIEW, 0, "BAAAAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wqxJmgSgCtM12CR8j7KCX"),
        (TokenKind.CONFIRM, 0, "BQAAAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wqybrKMxsE4499PF8cXLT"),
        (TokenKind.PREVIEW, 0, "BgAAAAAABwAAAAAAADA5my7L2Pr9OiOCKedSp63wq4TVmg2_ZhcxbwS17t17"),
    ],
)
def test_known_answers(kind: TokenKind, link: int, text: str) -> None:
    token = Token(kind, 7, 12345, MESSAGE_KEY, link)
    assert sign(signing_key(TOKEN_KEY, kind, 7), token) == text
    assert verify(TOKEN_KEY, text, kind) == token


def test_known_answers_of_keys_and_return_paths() -> None:
    key = send_token_key(TOKEN_KEY, 7)
    assert key.hex() == "8a7feabe12a68c88b7fd9213b42f006a8b346543fc93d284726c0f974853989b"
    assert verp_local_part(key, 7, MESSAGE_KEY) == "b-9b2ecbd8fafd3a238229e752a7adf0ab-7-a1349b5eef"


def test_an_agents_key_confirms_no_subscription_and_opens_no_preview() -> None:
    """Sends and lists are both numbered from 1: the key of send 7 must not do for list 7."""
    for kind in (TokenKind.CONFIRM, TokenKind.PREVIEW):
        forged = sign(send_token_key(TOKEN_KEY, 7), Token(kind, 7, 12345, MESSAGE_KEY))
        with pytest.raises(BadTokenError):
            verify(TOKEN_KEY, forged, kind)


# --- tokens -----------------------------------------------------------------------------------------------------------


@given(token_key=keys, token=whole_tokens)
def test_what_is_signed_comes_back(token_key: bytes, token: Token) -> None:
    text = sign(signing_key(token_key, token.kind, token.send_id), token)
    assert len(text) == tokens.TOKEN_CHARS
    assert set(text) <= set(string.ascii_letters + string.digits + "-_")
    assert verify(token_key, text, token.kind) == token
    assert verify(token_key, text, *TokenKind) == token


@given(token=whole_tokens, bit=st.integers(min_value=0, max_value=45 * 8 - 1))
def test_a_single_flipped_bit_is_refused(token: Token, bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(sign(signing_key(TOKEN_KEY, token.kind, token.send_id), token)))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadTokenError):
        verify(TOKEN_KEY, base64.urlsafe_b64encode(raw).decode(), *TokenKind)


@given(token=whole_tokens, place=st.integers(min_value=0, max_value=59), character=st.characters())
def test_a_single_changed_character_is_refused(token: Token, place: int, character: str) -> None:
    text = sign(signing_key(TOKEN_KEY, token.kind, token.send_id), token)
    changed = text[:place] + character + text[place + 1 :]
    if changed != text:
        with pytest.raises(BadTokenError):
            verify(TOKEN_KEY, changed, *TokenKind)


@given(token=whole_tokens, cut=st.integers(min_value=0, max_value=59), more=st.text(min_size=1, max_size=4))
def test_a_shorter_or_longer_token_is_refused(token: Token, cut: int, more: str) -> None:
    text = sign(signing_key(TOKEN_KEY, token.kind, token.send_id), token)
    for other in (text[:cut], text + more, more + text):
        with pytest.raises(BadTokenError):
            verify(TOKEN_KEY, other, *TokenKind)


@given(text=st.text(max_size=80))
def test_no_text_from_outside_breaks_the_verifier(text: str) -> None:
    with pytest.raises(BadTokenError):
        verify(TOKEN_KEY, text, *TokenKind)
    with pytest.raises(BadTokenError):
        verify_verp(TOKEN_KEY, text)


@given(token=whole_tokens)
def test_a_token_of_one_kind_opens_no_other_door(token: Token) -> None:
    text = sign(signing_key(TOKEN_KEY, token.kind, token.send_id), token)
    with pytest.raises(BadTokenError, match="something else"):
        verify(TOKEN_KEY, text, *(kind for kind in TokenKind if kind is not token.kind))


@given(token=whole_tokens, other=send_ids)
def test_the_key_of_one_send_signs_for_no_other(token: Token, other: int) -> None:
    """What a lost dispatch server could do with the key in its job folder."""
    text = sign(signing_key(TOKEN_KEY, token.kind, other), token)
    if other == token.send_id:
        assert verify(TOKEN_KEY, text, token.kind) == token
    else:
        with pytest.raises(BadTokenError, match="signature"):
            verify(TOKEN_KEY, text, token.kind)


@given(token=whole_tokens, token_key=keys)
def test_another_installations_token_is_refused(token: Token, token_key: bytes) -> None:
    if token_key != TOKEN_KEY:
        with pytest.raises(BadTokenError):
            verify(TOKEN_KEY, sign(signing_key(token_key, token.kind, token.send_id), token), token.kind)


@given(token=whole_tokens)
def test_the_signer_for_many_messages_makes_the_same_tokens(token: Token) -> None:
    key = send_token_key(TOKEN_KEY, token.send_id)
    signer = Signer(key, token.send_id)
    for _ in range(2):  # the prepared hash isn't used up
        made = signer.sign(token.kind, token.contact_id, token.message_key, token.link)
        assert made.decode() == sign(key, token)
    heads = signer.heads([(token.kind, token.link), (TokenKind.OPEN, 0), (token.kind, token.link)])
    assert signer.sign_all(heads, token.contact_id, token.message_key) == [
        made,
        signer.sign(TokenKind.OPEN, token.contact_id, token.message_key),
        made,
    ]
    assert signer.sign_all((), token.contact_id, token.message_key) == []
    assert signer.verp_local_part(token.message_key) == verp_local_part(key, token.send_id, token.message_key)


# --- return paths -----------------------------------------------------------------------------------------------------


@given(send_id=send_ids, message_key=message_keys)
def test_a_return_path_comes_back_whatever_the_receiver_does_to_its_case(send_id: int, message_key: bytes) -> None:
    local_part = verp_local_part(send_token_key(TOKEN_KEY, send_id), send_id, message_key)
    assert len(local_part) <= 64  # RFC 5321 §4.5.3.1.1
    assert verify_verp(TOKEN_KEY, local_part) == (send_id, message_key)
    assert verify_verp(TOKEN_KEY, local_part.upper()) == (send_id, message_key)


@given(
    send_id=send_ids,
    message_key=message_keys,
    place=st.integers(min_value=0, max_value=53),
    character=st.sampled_from("0123456789abcdef-"),
)
def test_a_changed_return_path_is_refused(send_id: int, message_key: bytes, place: int, character: str) -> None:
    local_part = verp_local_part(send_token_key(TOKEN_KEY, send_id), send_id, message_key)
    changed = local_part[:place] + character + local_part[place + 1 :]
    if changed != local_part:
        with pytest.raises(BadTokenError):
            verify_verp(TOKEN_KEY, changed)


@given(send_id=send_ids, message_key=message_keys)
def test_a_zero_before_the_sends_number_makes_another_return_path(send_id: int, message_key: bytes) -> None:
    """One message has one return path: no second spelling passes."""
    local_part = verp_local_part(send_token_key(TOKEN_KEY, send_id), send_id, message_key)
    head, key, number, mac = local_part.split("-")
    with pytest.raises(BadTokenError):
        verify_verp(TOKEN_KEY, f"{head}-{key}-0{number}-{mac}")
