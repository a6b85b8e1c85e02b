"""One recipient's message: its headers, its links, its signature, and what refuses to be built."""

import re
from email.message import EmailMessage

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mailer_lib.message.builder import RenderError
from mailer_lib.message.bundle import BundleVariant, Mailbox
from mailer_lib.message.mime import clean
from mailer_lib.tokens import (
    Signer,
    Token,
    TokenKind,
    send_token_key,
    sign,
    verify,
    verify_verp,
    verp_local_part,
)
from tests.message.world import DOMAIN, SEND_ID, TOKEN_KEY, builder, bundle, parts, read, recipient, verifies

ANYTHING = st.text(st.one_of(st.sampled_from('\r\n\t\0 :<>"\\,;=?é😀\u2028'), st.characters()), max_size=80)


def built(**of_recipient: object) -> EmailMessage:
    return read(builder(bundle()).build(recipient(**of_recipient)))


def test_headers() -> None:
    message = built(given_name="Änn", family_name="O'Hara, jr")

    key = bytes(range(16)).hex()
    assert message["From"] == f'"Fjord & Fern" <hello@{DOMAIN}>' or message["From"] == f"Fjord & Fern <hello@{DOMAIN}>"
    assert message["To"].addresses[0].display_name == "Änn O'Hara, jr"
    assert message["To"].addresses[0].addr_spec == "ann@example.com"
    assert message["Date"] == "Tue, 24 Nov 2026 06:00:00 +0000"
    assert message["Message-ID"] == f"<{key}.{SEND_ID}@{DOMAIN}>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["List-ID"] == f"Fjord & Fern News <newsletter.{DOMAIN}>"
    assert message["Feedback-ID"] == f"{key}:spring-sale#1:newsletter:newsfjordfernex"
    assert message["MIME-Version"] == "1.0"
    assert message.get_content_type() == "multipart/alternative"
    assert message["Precedence"] is None
    assert message["Reply-To"] is None
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_reply_to_and_non_ascii_names() -> None:
    made = bundle(
        sender=Mailbox(name="Fjörd & Fern", address=f"hello@{DOMAIN}"),
        reply_to=Mailbox(name="Kundenpflege für alle", address=f"care@{DOMAIN}"),
        list_title="Neues aus Bergen – für dich",
    )
    raw = builder(made, signed=True).build(recipient())
    message = read(raw)

    assert message["From"].addresses[0].display_name == "Fjörd & Fern"
    assert message["Reply-To"].addresses[0].display_name == "Kundenpflege für alle"
    assert "Neues aus Bergen – für dich" in str(message["List-ID"])
    assert verifies(raw.data)


def test_every_link_is_a_token_of_this_message() -> None:
    html = '<a href="{{ link(0) }}">x</a><a href="{{ unsubscribe_url }}">u</a>{% if 1 %}{{ link(1) }}{% endif %}'
    made = bundle(html=html + "{{ view_url }}", text="{{ link(0) }} {{ open_pixel_url }}")
    out = builder(made).build(recipient())
    text, page = parts(out)

    tokens = {
        path: verify(TOKEN_KEY, token.removesuffix(".gif"), *TokenKind)
        for path, token in re.findall(r"https://links\.fjordfern\.example/(\w)/([\w-]{60}(?:\.gif)?)", text + page)
    }
    assert {path: token.kind for path, token in tokens.items()} == {
        "c": TokenKind.CLICK, "u": TokenKind.UNSUBSCRIBE, "v": TokenKind.VIEW, "o": TokenKind.OPEN,
    }  # fmt: skip
    assert all((t.send_id, t.contact_id, t.message_key) == (SEND_ID, 42, bytes(range(16))) for t in tokens.values())
    assert [verify(TOKEN_KEY, t, TokenKind.CLICK).link for t in re.findall(r"/c/([\w-]{60})", text + page)] == [0, 0, 1]
    one_click = str(read(out)["List-Unsubscribe"]).strip("<>")
    assert verify(TOKEN_KEY, one_click.rsplit("/", 1)[1], TokenKind.UNSUBSCRIBE).contact_id == 42


def test_the_return_path_names_send_and_message() -> None:
    out = builder(bundle()).build(recipient())

    local, _, domain = out.envelope_from.partition("@")
    assert domain == f"bounce.{DOMAIN}"
    assert verify_verp(TOKEN_KEY, local) == (SEND_ID, bytes(range(16)))
    assert out.envelope_to == "ann@example.com"


@settings(max_examples=100, deadline=None)
@given(ANYTHING, ANYTHING, ANYTHING)
@example("Ann\r\nBcc: all@example.com\r\n\r\n<b>body</b>", "x", "y\nSubject: z")
def test_data_can_not_make_a_header(given_name: str, family_name: str, word: str) -> None:
    made = bundle(subject="Hi {{ contact.word }}", html="<p>{{ contact.word }}</p>")
    plain = read(builder(made).build(recipient(attributes={"word": "x"})))
    out = builder(made).build(recipient(given_name=given_name, family_name=family_name, attributes={"word": word}))
    message = read(out)

    assert message.keys() == plain.keys()
    head = out.data.split(b"\r\n\r\n", 1)[0]
    assert re.search(rb"\r(?!\n)|(?<!\r)\n|\0", head) is None
    assert clean(str(message["Subject"])).split() == clean("Hi " + word.replace("\0", "")).split() or "=?" in word
    assert [a.addr_spec for a in message["To"].addresses] == ["ann@example.com"]


def test_a_signed_message_verifies_and_is_dot_safe() -> None:
    lines = "\n".join(f".line {n}  {'é' * n}" for n in range(80))
    out = builder(bundle(html=f"<pre>{lines}</pre>{{{{ contact.a }}}}", text=lines), signed=True).build(
        recipient(attributes={"a": "..\n.\n."})
    )

    assert verifies(out.data)
    assert not any(line.startswith(b".") for line in out.data.split(b"\r\n"))
    assert max(map(len, out.data.split(b"\r\n"))) <= 998
    assert parts(out)[0] == lines


def test_defaults_stand_in_for_what_is_missing_or_empty() -> None:
    made = builder(bundle(text="{{ contact.given_name }}/{{ contact.tier }}/{{ contact.points }}/{{ contact.vip }}",
                          defaults={"given_name": "friend", "tier": "bronze", "points": 0, "vip": False}))  # fmt: skip

    assert parts(made.build(recipient(given_name=None)))[0] == "friend/bronze/0/False"
    filled = recipient(given_name="Ann", attributes={"tier": "gold", "points": 12.0, "vip": True})
    assert parts(made.build(filled))[0] == "Ann/gold/12/True"
    assert parts(made.build(recipient(attributes={"tier": ""})))[0] == "Ann/bronze/0/False"


@pytest.mark.parametrize(
    ("html", "says"),
    [
        ("{{ contact.tier }}", "contact.tier has no value and no default"),
        ("{{ contact.tier|upper }}", "contact.tier has no value"),
        ("{{ contact.attributes.tier }}", "contact.attributes.tier has no value"),
        ("{{ typo }}", "'typo' is undefined"),
        ("{{ contact.given_name.__class__ }}", "unsafe"),
        ("{{ contact.given_name.format.__globals__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for i in range(9000) %}{{ 'x' * 200 }}{% endfor %}", "at most"),
        ("{{ range(10000000) }}", "Range too big|OverflowError"),
    ],
)
def test_what_can_not_be_rendered_fails_with_a_sentence(html: str, says: str) -> None:
    with pytest.raises(RenderError, match=says):
        builder(bundle(html=html)).build(recipient())


def test_a_missing_field_may_be_tested() -> None:
    text = '{{ contact.tier or "none" }} {% if contact.tier == "gold" %}gold{% endif %}{{ contact.tier|default("-") }}'

    assert parts(builder(bundle(text=text)).build(recipient()))[0] == "none -"


def test_errors_hold_no_personal_data() -> None:
    with pytest.raises(RenderError) as caught:
        builder(bundle(html="{{ contact.tier.x }}")).build(recipient(attributes={"tier": "secret"}))
    assert "secret" not in str(caught.value)
    assert "ann@" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["a b@x.example", "a@x\r\nBcc: b", "a,b@x.example", "<a@x.example>", "nobody", "a@"]
)
def test_an_address_that_could_break_a_header_is_refused(address: str) -> None:
    with pytest.raises(RenderError, match="header"):
        builder(bundle()).build(recipient(address=address))


def test_an_internationalised_local_part_is_kept() -> None:
    out = builder(bundle()).build(recipient(address="jörg@example.com"))

    assert "\r\nTo: Ann Lee <jörg@example.com>\r\n".encode() in out.data  # UTF-8 headers: RFC 6532


def test_variants() -> None:
    variants = tuple(
        BundleVariant(name=name, weight=1, subject=f"Subject {name}", html=name, text=name) for name in "AB"
    )
    made = builder(bundle(variants=variants))

    assert read(made.build(recipient(variant=1)))["Subject"] == "Subject B"
    assert parts(made.build(recipient(variant=0))) == ("A", "A")
    with pytest.raises(RenderError, match="variant number 2"):
        made.build(recipient(variant=2))


def test_values_are_escaped_in_html_and_not_in_text() -> None:
    out = builder(bundle(html="<p>{{ contact.a }}</p>", text="{{ contact.a }}")).build(
        recipient(attributes={"a": "<script>alert('x')</script>"})
    )

    text, html = parts(out)
    assert text == "<script>alert('x')</script>"
    assert html == "<p>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</p>"


def test_the_same_recipient_gives_the_same_bytes() -> None:
    made = bundle(html="{{ contact.given_name }}")

    assert builder(made, signed=True).build(recipient()) == builder(made, signed=True).build(recipient())


def test_the_dynamic_share_is_what_differs() -> None:
    made = builder(bundle(html="x" * 9000 + "{{ contact.given_name }}"))

    assert 0 < made.dynamic_share(recipient()) < 0.01


@given(
    st.sampled_from(TokenKind), st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16), st.integers(0, 65535)
)
def test_the_quick_signer_signs_the_same_tokens(kind: TokenKind, contact_id: int, key: bytes, link: int) -> None:
    secret = send_token_key(TOKEN_KEY, SEND_ID)
    quick = Signer(secret, SEND_ID)

    assert quick.sign(kind, contact_id, key, link).decode() == sign(secret, Token(kind, SEND_ID, contact_id, key, link))
    assert quick.verp_local_part(key) == verp_local_part(secret, SEND_ID, key)
