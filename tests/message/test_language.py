"""The template language: no URL from data runs code, numbers and dates speak the recipient's language."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup, escape

from mailer_lib.message.language import Fields, TemplateLanguage, safe_url


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/a?b=c&d=e",
        "http://x",
        "mailto:care@x.example",
        "tel:+4755",
        "/path:with-colon",
        "page.html",
        "#top",
        "?a=b:c",
        "",
    ],
)
def test_harmless_urls_pass(url: str) -> None:
    assert safe_url(url) == url
    assert safe_url(escape(url)) == escape(url)


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        " JaVaScRiPt:alert(1)",
        "java\nscript:alert(1)",
        "java\u200bscript:alert(1)",
        "\x01javascript:alert(1)",
        "data:text/html,<script>",
        "vbscript:x",
        "file:///etc/passwd",
    ],
)
def test_urls_that_run_code_do_not(url: str) -> None:
    assert safe_url(url) == "#"
    assert safe_url(escape(url)) == Markup("#")


def test_entities_do_not_hide_a_scheme() -> None:
    assert safe_url(Markup("java&#115;cript:alert(1)")) == "#"
    assert safe_url(Markup("javascript&colon;alert(1)")) == "#"


@given(st.text(st.sampled_from("jJavascript:\n\t \x00&#;x6colon/"), max_size=30))
@example("javascript:")
def test_whatever_is_in_front_of_it(noise: str) -> None:
    passed = str(safe_url(noise + "javascript:alert(1)"))
    compact = "".join(c for c in passed if c > " ").lower()
    assert not compact.startswith("javascript:")


def render(source: str, locale: str | None = None, **contact: object) -> str:
    fields = Fields({**contact, **({"locale": locale} if locale else {})}, "contact")
    return TemplateLanguage(autoescape=False).from_string(source).render(contact=fields)


@pytest.mark.parametrize(
    ("source", "locale", "text"),
    [
        ("{{ contact.n|number }}", "en-GB", "1,234,567.5"),
        ("{{ contact.n|number }}", "de", "1.234.567,5"),
        ("{{ contact.n|number }}", "nb_NO", "1\u202f234\u202f567,5"),
        ("{{ contact.n|number(2) }}", None, "1,234,567.50"),
        ('{{ contact.n|number(0, language="de") }}', "en", "1.234.568"),
        ("{{ contact.n|number }}", "xx", "1\u202f234\u202f567.5"),
        ("{{ contact.d|date }}", "en", "24 November 2026"),
        ("{{ contact.d|date }}", "de-AT", "24. November 2026"),
        ("{{ contact.d|date }}", "es", "24 de noviembre de 2026"),
        ("{{ contact.d|date }}", "xx", "2026-11-24"),
        ('{{ contact.d|date("fr") }}', "xx", "24 novembre 2026"),
        ("{{ contact.word|date }} {{ contact.word|number }}", "en", "soon soon"),
        ("{{ -0.0|number }} {{ 0|number }} {{ (1 == 1)|number }} {{ 1.0|number }}", "en", "0 0 True 1"),
    ],
)
def test_numbers_and_dates(source: str, locale: str | None, text: str) -> None:
    assert render(source, locale, n=1234567.5, d="2026-11-24", word="soon") == text


def test_a_field_may_be_called_like_a_method() -> None:
    assert render("{{ contact.items }} {{ contact['keys'] }} {{ contact.data }}", items=1, keys=2, data=3) == "1 2 3"
