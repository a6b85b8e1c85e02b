"""What islands give is, byte for byte, what rendering the whole template gives."""

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from mailer_lib.message.builder import RenderError
from mailer_lib.message.islands import (
    Island,
    Static,
    TemplateProblemError,
    TokenSlot,
    UrlForm,
    compile_islands,
    looked_up,
)
from mailer_lib.message.language import TemplateLanguage
from tests.message.world import builder, bundle, parts, read, recipient, verifies

TEXT = st.text(
    st.one_of(st.sampled_from(" .\n\r\t\0From<&\"'é😀"), st.characters(exclude_categories=["Cs"])), max_size=120
)
STATIC = TEXT.map(lambda text: text.replace("{", "(").replace("}", ")").replace("\0", "").replace("\r", ""))
EXPRESSION = st.sampled_from(
    [
        "{{ contact.a }}",
        "{{ contact.b }}{{ contact.a }}",
        "{{- contact.b -}}",
        "{{ contact.a|upper }}",
        "{{ contact.a|e|safe }}",
        '{{ contact["b"] }}',
        "{{ contact.attributes.a }}",
        "{{ contact.missing or 'friend' }}",
        "{{ contact.missing|default('x' * 90) }}",
        "{{ contact.number * 2 }}",
        "{{ campaign.name }}",
        "{{ campaign.products|length }}",
        "{{ list_title }}",
        "{{ unsubscribe_url }}",
        "{{ link(3) }}",
        "{{ link(0)|upper }}",
        "{% set seen = contact.b %}",
        "{% set contact = {'a': contact.b, 'b': 1, 'number': 1, 'flag': true, 'locale': 'de', 'given_name': 'x',"
        " 'attributes': {'a': contact.a, 'given_name': 2}} %}",  # every field that the others ask for
        "{{ contact.number|number }}{{ contact.locale }}",
        "{{ contact.given_name }}{{ contact.attributes.given_name }}",
        "{{ contact.flag }}",
        "{{ seen }}",
        "{# a remark #}",
        "{% raw %}{{ not.a.field }}{% endraw %}",
        "{% macro shout(x) %}{{ x|upper }}!{% endmacro %}{{ shout(contact.a) }}",
        "{{ '\\r\\n' }}",
    ]
)


def wrap(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        inner.map(lambda t: "{% if contact.number > 1 %}" + t + "{% else %}no{% endif %}"),
        inner.map(
            lambda t: "{% for item in campaign.products %}" + t + "{{ item.name }}, {{ loop.index }}{% endfor %}"
        ),
        inner.map(lambda t: "{% for item in [1, contact.a] %}" + t + "{{ item }}{% endfor %}"),
        inner.map(lambda t: "{% filter upper %}" + t + "{% endfilter %}"),
        inner.map(lambda t: "{% with seen = contact.number %}" + t + "{{ seen }}{% endwith %}"),
        inner.map(lambda t: "{% autoescape false %}" + t + "{% endautoescape %}"),
        inner.map(lambda t: "{% set block %}" + t + "{% endset %}{{ block }}"),
    )


TEMPLATE = st.lists(
    st.recursive(
        st.one_of(STATIC, EXPRESSION), lambda inner: wrap(st.lists(inner, max_size=3).map("".join)), max_leaves=8
    ),
    max_size=8,
).map(lambda pieces: "{% set seen = 'start' %}" + "".join(pieces))

PRODUCTS = [{"name": "Tent  & peg"}, {"name": ".dot"}]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEMPLATE, TEXT, TEXT, st.one_of(st.integers(-5, 5), st.floats(-5, 5)))
@example("{{ contact.a }}\n{{ contact.b }}", "\r\n", ".\r\n.", 1)
@example("a {{ contact.a }} .{{ contact.b }}.\n.", "x" * 100_000, "é. " * 30_000, 1.5)
@example("{{ contact.a }}{{ contact.b }}", "", "From me", 2)
@example("{% for i in range(3) %}\n.{{ contact.a }}{% endfor %}", ".", "", 0)
def test_every_template_with_every_value(template: str, a: str, b: str, number: float) -> None:
    made = bundle(html=template, text=template, subject="Sale", values={"products": PRODUCTS})
    build = builder(made)
    others = (  # values that are kept for one recipient must not reach another
        recipient(attributes={"a": b, "b": a, "number": 1, "flag": 1, "given_name": "1"}, locale="de"),
        recipient(attributes={"a": a, "b": b, "number": True, "flag": True, "given_name": "2"}, locale="en"),
        recipient(attributes={"a": a, "b": b, "number": number, "flag": "1", "given_name": "2"}, locale="en"),
        recipient(attributes={"a": a, "b": b, "number": number, "flag": False, "given_name": "3"}, locale="nb"),
    )
    for person in others:
        built, rendered = build.build(person), build.render(person)
        assert parts(built) == (rendered.text, rendered.html)
    assert b"\n." not in built.data
    assert built.data.endswith(b"\r\n")
    assert b"\r" not in built.data.replace(b"\r\n", b"")
    assert b"\n" not in built.data.replace(b"\r\n", b"")


@settings(max_examples=60)
@given(st.one_of(TEMPLATE, st.lists(EXPRESSION, max_size=3).map("".join)))
@example("{{ range(contact.a) }}{{ link(x)|upper if (y is odd) else [z, {'k': w ~ v}] }}")
def test_the_names_that_a_template_looks_up_are_those_that_jinja_finds(template: str) -> None:
    language = TemplateLanguage(autoescape=True)

    assert looked_up(language.parse(template), language) == find_undeclared_variables(language.parse(template))


@settings(max_examples=8, deadline=None)
@given(TEMPLATE, TEXT, TEXT)
def test_every_template_verifies(template: str, a: str, b: str) -> None:
    made = bundle(html=template, text=template, subject="{{ contact.a }}", values={"products": PRODUCTS})
    person = recipient(
        given_name=b, locale="en", attributes={"a": a, "b": b, "number": 2, "flag": True, "given_name": b}
    )

    assert verifies(builder(made, signed=True).build(person).data)


URLS = {name: UrlForm(f"https://x/{name}/") for name in ("unsubscribe_url", "view_url", "open_pixel_url", "link")}


def segments(source: str, **constants: Any) -> list[object]:
    return list(compile_islands(TemplateLanguage(autoescape=True), source, constants, URLS).segments)


def test_what_only_the_send_decides_becomes_static() -> None:
    assert segments("Buy {{ n }}{% for p in ps %}<{{ p }}>{% endfor %} now", n="&", ps=["a", "<"]) == [
        Static("Buy &amp;<a><&lt;> now")
    ]


def test_bare_links_need_no_rendering() -> None:
    assert segments('<a href="{{ link(3) }}">x</a>{{ unsubscribe_url }}') == [
        Static('<a href="https://x/link/'),
        TokenSlot("link", 3),
        Static('">x</a>https://x/unsubscribe_url/'),
        TokenSlot("unsubscribe_url"),
    ]


def test_neighbours_without_text_between_them_are_one_island() -> None:
    assert segments("a{{ x }}{% if y %}b{% endif %}{{ z }}c{{ x }}") == [Static("a"), Island(0), Static("c"), Island(1)]


def test_a_name_that_the_template_sets_itself_is_no_constant() -> None:
    assert segments("{% set n = x %}{{ n }}", n="constant") == [Island(0)]
    assert segments("{% set link = x %}{{ link(3) }}") == [Island(0)]
    assert segments("{% macro range(n) %}{{ x }}{% endmacro %}{{ range(2) }}") == [Island(0)]


def test_chance_is_asked_again_for_each_recipient() -> None:
    assert segments("{{ xs|random }}", xs=[1, 2]) == [Island(0)]


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(TemplateSyntaxError) as caught:
        segments("one\n{% if %}")
    assert caught.value.lineno == 2


def test_nul_can_not_shift_islands() -> None:
    with pytest.raises(TemplateProblemError, match="NUL"):
        segments("a\0b")
    made = builder(bundle(html="{{ '%c'|format(0) }}{{ contact.a }}x{{ contact.b }}"))
    with pytest.raises(RenderError, match="NUL"):
        made.build(recipient(attributes={"a": "1", "b": "2"}))
    assert read(builder(bundle(html="{{ contact.a }}")).build(recipient(attributes={"a": "x\0y"})))
