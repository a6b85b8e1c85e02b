"""What is an address, and when two spellings are one person."""

import string
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mailer_lib.contacts.address import AddressError, normalise, normalise_domain

ATOM = st.text(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~", min_size=1, max_size=12)
LOCAL = st.lists(ATOM, min_size=1, max_size=3).map(".".join)
LABEL = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)
DOMAIN = st.lists(LABEL, min_size=2, max_size=3).map(".".join)
LETTERS = st.text(st.characters(categories=("Ll", "Lu", "Lo"), max_codepoint=0x1EFF), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "normalised", "deliverable"),
    [
        ("  Lena.Berg@Example.ORG ", "lena.berg@example.org", "Lena.Berg@example.org"),
        ("o'neill+trail@mail.example.org", "o'neill+trail@mail.example.org", "o'neill+trail@mail.example.org"),
        ("l.e.n.a@gmail.com", "l.e.n.a@gmail.com", "l.e.n.a@gmail.com"),  # dots are the provider's business
        ("Info@MÜLLER.example", "info@xn--mller-kva.example", "Info@xn--mller-kva.example"),
        ("info@faß.example", "info@xn--fa-hia.example", "info@xn--fa-hia.example"),  # IDNA 2008: ß is not ss
        ("ΣΊΣΥΦΟΣ@例え.example", "σίσυφοσ@xn--r8jz45g.example", "ΣΊΣΥΦΟΣ@xn--r8jz45g.example"),
        ("u@XN--mller-kva.example", "u@xn--mller-kva.example", "u@xn--mller-kva.example"),
        ("a@b.co", "a@b.co", "a@b.co"),
    ],
)
def test_keeps_what_was_given_and_folds_the_key(text: str, normalised: str, deliverable: str) -> None:
    address = normalise(text)
    assert address.given == text.strip()
    assert (address.normalised, address.deliverable) == (normalised, deliverable)


def test_umlauts_are_letters_of_their_own() -> None:
    assert normalise("müller@example.org").normalised != normalise("muller@example.org").normalised
    assert normalise("MÜLLER@example.org").normalised == normalise("müller@example.org").normalised


def test_one_letter_in_two_unicode_forms_is_one_person() -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert normalise(f"ren{composed}@example.org").normalised == normalise(f"ren{decomposed}@example.org").normalised


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "nothing in it"),
        ("lena.example.org", "no @"),
        ("lena@berg@example.org", "more than one @"),
        ("@example.org", "nothing before the @"),
        ("lena@", "nothing after the @"),
        ("lena @example.org", "a space"),
        ("lena@exa mple.org", "a space"),
        ("lena\u200b@example.org", "invisible"),
        ("lena\x00@example.org", "invisible"),
        ("le\r\nBcc:na@example.org", "invisible"),
        ("lena\ud800@example.org", "invisible"),
        ('"lena berg"@example.org', "space"),
        ('"lena"@example.org', "quotes"),
        ("Lena<lena@example.org", "quotes"),
        ("lena(work)@example.org", "quotes"),
        (".lena@example.org", "dot"),
        ("lena.@example.org", "dot"),
        ("le..na@example.org", "dot"),
        ("le,na@example.org", "before the @"),
        ("lena@localhost", "no dot"),
        ("lena@example..org", "two in a row"),
        ("lena@example.org.", "dot"),
        ("lena@-example.org", "after the @"),
        ("lena@exa_mple.org", "after the @"),
        ("lena@example,org", "after the @"),
        ("lena@[192.0.2.1]", "IP number"),
        ("lena@192.0.2.1", "ends with a number"),
        ("lena@xn--zzzzzzzzz999.example", "domain name"),
        ("lena@\u202eevil.example", "invisible"),
        ("x" * 65 + "@example.org", "longer than 64"),
        ("ü" * 33 + "@example.org", "longer than 64"),
        ("lena@" + "x" * 64 + ".org", "longer than 63"),
        ("x" * 60 + "@" + ".".join(["y" * 60] * 4), "longer than 254"),
    ],
)
def test_refuses_with_a_sentence_that_does_not_repeat_the_address(text: str, reason: str) -> None:
    with pytest.raises(AddressError) as refused:
        normalise(text)
    assert reason in str(refused.value)
    assert "lena" not in str(refused.value)


@given(LOCAL, DOMAIN)
def test_every_dot_atom_at_a_domain_is_an_address(local: str, domain: str) -> None:
    assume(len(local) <= 64)
    address = normalise(f"{local}@{domain}")
    assert address.deliverable == f"{local}@{domain}"
    assert address.domain == domain


@given(LOCAL, DOMAIN)
def test_case_never_makes_two_people(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    assert normalise(text.upper()).normalised == normalise(text.swapcase()).normalised == normalise(text).normalised


@given(LETTERS, DOMAIN)
def test_the_key_of_a_key_is_the_key(local: str, domain: str) -> None:
    try:
        address = normalise(f"{local}@{domain}")
    except AddressError:
        return
    again = normalise(address.normalised)
    assert again.normalised == address.normalised
    assert normalise(address.deliverable).normalised == address.normalised
    assert normalise(f"{local.casefold()}@{domain}").normalised == address.normalised


@given(st.text(max_size=60))
def test_anything_else_is_refused_not_mangled(text: str) -> None:
    try:
        address = normalise(text)
    except AddressError:
        return
    assert address.given == text.strip()
    assert address.domain.isascii()
    assert not any(c.isspace() or ord(c) < 32 for c in address.deliverable)
    assert address.deliverable.count("@") == 1


@pytest.mark.parametrize("text", ["@Example.ORG", " example.org", "EXAMPLE.org"])
def test_a_domain_alone(text: str) -> None:
    assert normalise_domain(text) == "example.org"


def test_a_domain_alone_is_checked_too() -> None:
    with pytest.raises(AddressError):
        normalise_domain("@localhost")
