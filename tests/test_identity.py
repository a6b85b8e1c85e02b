"""Keyed hashes: known answers that may never change, and the independence of keys, people, sends and uses.

If a known answer fails, everybody who was ever suppressed would be forgotten: mend the code, never the answer.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.identity import IdentityKey, joined_message_keys, message_key, message_keys

KEY = IdentityKey(bytes(range(32)))

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
secrets = st.binary(min_size=32, max_size=32)


def test_known_answers() -> None:
    address_hash = KEY.address_hash("ann@example.org")
    send_key = KEY.send_key("spring-sale", "1")
    assert address_hash.hex() == "d0431258f91bc96c00ec5937e814785d"
    assert KEY.address_hash("müller@xn--bcher-kva.example").hex() == "a06f3f2ff62e9d72e0a136b95d8ed274"
    assert send_key.hex() == "4ca9fd1b675fb89162939b8b1618803b218d8472c7500fa16c4036fd1e2f7c41"
    assert message_key(send_key, address_hash).hex() == "1ba3f415f4b30fb36bc453eb45e98645"
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert message_key(bytes(range(32)), block).hex() == "8ea2b7ca516745bfeafc49904b496089", "of FIPS 197, C.3"


@given(secret=secrets, other=secrets, address=names)
def test_another_key_gives_other_hashes(secret: bytes, other: bytes, address: str) -> None:
    one, two = IdentityKey(secret), IdentityKey(other)
    assert (one.address_hash(address) == two.address_hash(address)) == (secret == other)
    assert (one.send_key(address, "1") == two.send_key(address, "1")) == (secret == other)


@given(one=names, two=names)
def test_people_differ_by_every_character_of_the_normalised_address(one: str, two: str) -> None:
    assert (KEY.address_hash(one) == KEY.address_hash(two)) == (one == two)


@given(one=st.tuples(names, names), two=st.tuples(names, names))
def test_sends_differ_by_campaign_and_edition_apart(one: tuple[str, str], two: tuple[str, str]) -> None:
    """("a", "bc") isn't ("ab", "c")."""
    assert (KEY.send_key(*one) == KEY.send_key(*two)) == (one == two)


@given(text=names)
def test_a_hash_for_one_use_is_no_hash_for_another(text: str) -> None:
    address_hash = KEY.address_hash(text)
    send_key = KEY.send_key(text, "1")
    assert len({address_hash, send_key[:16], message_key(send_key, address_hash)}) == 3


@given(hashes=st.lists(st.binary(min_size=16, max_size=16), unique=True), key=secrets)
def test_a_message_key_is_one_block_of_aes_whoever_makes_it(hashes: list[bytes], key: bytes) -> None:
    keys = [message_key(key, address_hash) for address_hash in hashes]
    assert message_keys(key, iter(hashes)) == keys
    assert joined_message_keys(key, b"".join(hashes)) == b"".join(keys)
    assert len(set(keys)) == len(hashes)


def test_half_an_address_hash_has_no_message_key() -> None:
    with pytest.raises(ValueError, match="16 bytes each; these are 24"):
        joined_message_keys(bytes(32), bytes(24))


@given(secret=st.binary(max_size=64).filter(lambda value: len(value) != 32))
def test_a_key_of_another_length_is_refused(secret: bytes) -> None:
    with pytest.raises(ValueError, match="must have 32"):
        IdentityKey(secret)


def test_the_key_shows_nowhere() -> None:
    key = IdentityKey(b"correct horse battery staple 32!")
    assert "horse" not in repr(key) + str(key) + f"{key}"
