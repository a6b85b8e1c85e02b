"""Templates become final ones: tags survive MJML and CSS, links are counted, nothing that a mail owes is missing."""

import re

import pytest

from mailer_lib.message.builder import RenderError
from mailer_lib.message.campaign import Campaign, TemplateSource, Tracking, VariantSpec
from mailer_lib.message.islands import TemplateProblemError
from mailer_lib.message.templates import Compiled, compile_campaign
from mailer_lib.terms import TemplateKind
from tests.message.world import builder, bundle, parts, recipient

FOOTER = '<p><a href="{{ unsubscribe_url }}">Leave</a></p>'


def campaign(
    source: str, *, kind: TemplateKind = TemplateKind.HTML, text: str | None = None, **more: object
) -> Campaign:
    values = {
        "name": "sale",
        "list": "newsletter",
        "criteria": "all",
        "from": {"name": "Fjord", "address": "hello@news.fjordfern.example"},
        "subject": "Sale",
        "sending_domain": "news.fjordfern.example",
        "template": TemplateSource(kind=kind, source=source, text=text),
    }
    return Campaign.model_validate({**values, **more})


def compiled(source: str, **more: object) -> Compiled:
    return compile_campaign(campaign(source, **more))  # type: ignore[arg-type]


def html_of(source: str, **more: object) -> str:
    return compiled(source, **more).variants[0].html


def mjml(body: str, head: str = "") -> str:
    return f"<mjml><mj-head>{head}</mj-head><mj-body>{body}</mj-body></mjml>"


def page(body: str) -> str:
    return f"<html><head></head><body>{body}{FOOTER}</body></html>"


def rendered(made: Compiled, **attributes: object) -> tuple[str, str]:
    """(text, HTML) as a recipient with these attributes gets them."""
    out = builder(bundle(variants=made.variants, links=made.links)).build(recipient(attributes=attributes))
    return parts(out)


# --- tags survive -----------------------------------------------------------------------------------------------------


def test_a_loop_around_table_rows_stays_around_them() -> None:
    source = page("<table>{% for n in [1, 2] %}<tr><td>row {{ n }}</td></tr>{% endfor %}</table>")

    _, html = rendered(compiled(source))

    assert re.findall(r"<tr><td>row \d</td></tr>", html) == ["<tr><td>row 1</td></tr>", "<tr><td>row 2</td></tr>"]


def test_mjml_structure_may_depend_on_the_recipient() -> None:
    section = "<mj-section><mj-column><mj-text>Gold only</mj-text></mj-column></mj-section>"
    made = compiled(mjml("{% if contact.tier == 'gold' %}" + section + "{% endif %}"), kind=TemplateKind.MJML)

    assert "Gold only" in rendered(made, tier="gold")[1]
    assert "Gold only" not in rendered(made, tier="silver")[1]
    assert "Gold only" not in rendered(made, tier="silver")[0]


def test_braces_in_urls_attributes_and_styles_are_not_encoded() -> None:
    html = html_of(
        "<style>p { color: {{ campaign.colour }}; } @media print{#menu{display:none}}</style>"
        + page(
            '<p title="{{ contact.city }}" {% if 1 %}class="a"{% endif %}>x</p>'
            '<a href="https://x.example/?c={{ contact.city }}&amp;d=1">y</a>'
        )
    )

    assert 'title="{{ contact.city }}"' in html
    assert 'href="https://x.example/?c={{ contact.city }}&amp;d=1"' in html
    assert "color: {{ campaign.colour }}" in html
    assert "#menu" in html


def test_macros_before_the_document_work_in_both_parts() -> None:
    text, html = rendered(
        compiled("{% macro shout(x) %}{{ x|upper }}!{% endmacro %}" + page("<b>{{ shout('hey') }}</b>"))
    )

    assert "HEY!" in text
    assert "HEY!" in html


def test_raw_sections_and_entities_stay_literal() -> None:
    text, html = rendered(compiled(page("<p>{% raw %}{{ not.a.tag }}{% endraw %} &#123;&#123; nor.this }}</p>")))

    assert "{{ not.a.tag }} {{ nor.this }}" in text
    assert "{{ not.a.tag }} {{ nor.this }}" in html


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (page("\n<table>{{ contact.city }}<tr><td>x</td></tr></table>{% if 1 %}{% endif %}"), None),
        ("<html><body>\n{% if %}</body></html>", "line 2"),
        (page("\n\n<h{{ 1 }}>x</h1>"), "line 3.*touches an element's name"),
        (page("<p>{{ contact.</p>"), "line 1"),
    ],
)
def test_a_mistake_is_named_with_its_line(source: str, says: str | None) -> None:
    if says is None:
        compiled(source)
        return
    with pytest.raises(TemplateProblemError, match=says):
        compiled(source)


def test_broken_mjml_is_a_sentence() -> None:
    with pytest.raises(TemplateProblemError, match="MJML"):
        compiled("<mjml><mj-body><mj-section>", kind=TemplateKind.MJML)


def test_a_tag_that_a_parser_would_drop_is_refused() -> None:
    with pytest.raises(TemplateProblemError, match=r"line 1: \{\{ contact.city \}\} got lost"):
        compiled(page('<td title="{{ contact.city }}">a cell without a table</td>'))
    with pytest.raises(TemplateProblemError, match=r"line 2: \{% if 1 %\} can't stay"):
        compiled(page('\n<td {% if 1 %}title="x"{% endif %}>a cell without a table</td>'))


# --- links ------------------------------------------------------------------------------------------------------------


def test_static_links_are_numbered_and_the_same_target_once() -> None:
    made = compiled(
        page(
            '<a href="https://shop.example/a?x=1&amp;y=2">1</a><a href="https://shop.example/b">2</a>'
            '<a href="https://shop.example/b">again</a><a href="mailto:a@b.example">m</a><a href="#top">t</a>'
            '<a href="{{ view_url }}">v</a><a href="https://shop.example/{{ contact.city }}">c</a>'
        ),
        text="Look: https://shop.example/b, or https://shop.example/c.\n{{ unsubscribe_url }}",
    )

    assert made.links == ("https://shop.example/a?x=1&y=2", "https://shop.example/b", "https://shop.example/c")
    assert made.untracked == ("https://shop.example/{{ contact.city }}",)
    html = made.variants[0].html
    assert re.findall(r"\{\{ link\((\d)\) \}\}", html) == ["0", "1", "1"]
    for kept in ("mailto:a@b.example", "#top", "{{ view_url }}"):
        assert f'href="{kept}"' in html
    assert made.variants[0].text.startswith("Look: {{ link(1) }}, or {{ link(2) }}.\n")


def test_tracking_is_optional() -> None:
    made = compiled(page('<a href="https://shop.example/a">1</a>'), tracking=Tracking(links=False, opens=False))

    assert made.links == ()
    assert 'href="https://shop.example/a"' in made.variants[0].html
    assert "open_pixel_url" not in made.variants[0].html


@pytest.mark.parametrize("attribute", ["href", "HREF", "src", "background", "formaction"])
@pytest.mark.parametrize("quote", ['"', "'", ""])
def test_a_url_from_data_can_not_run_code(attribute: str, quote: str) -> None:
    made = compiled(page(f"<table><tr><td {attribute}={quote}{{{{ contact.site }}}}{quote}>x</td></tr></table>"))

    assert "javascript" not in rendered(made, site="javascript:alert(1)")[1]
    assert "https://ann.example/?a=1&amp;b=2" in rendered(made, site="https://ann.example/?a=1&b=2")[1]


def test_nor_one_made_of_several_values_or_in_a_condition() -> None:
    made = compiled(
        page('<a href="{{ contact.a }}{{ contact.b }}">x</a>{% if 1 %}<a href="{{ contact.c }}">y</a>{% endif %}')
    )

    html = rendered(made, a="java", b="script:alert(1)", c="data:text/html,x")[1]
    assert html.count('href="#"') == 2


# --- what a message owes ----------------------------------------------------------------------------------------------


def test_a_footer_is_added_where_there_is_no_way_to_leave() -> None:
    made = compiled("<html><body><p>Buy</p></body></html>", text="Buy\n")
    text, html = rendered(made)

    assert made.footer_added
    assert "/u/" in text
    assert html.index("/u/") < html.index("</body>")


def test_a_written_way_to_leave_is_enough() -> None:
    made = compiled(page("x"), text="Leave: {{ unsubscribe_url }}")

    assert not made.footer_added
    assert made.variants[0].text == "Leave: {{ unsubscribe_url }}"


def test_the_pixel_is_last_and_the_preheader_first() -> None:
    html = html_of(page("<p>Body</p>"), preheader="Now & {{ contact.given_name }}")

    body = html[html.index("<body") :]
    assert body.index("Now &amp; {{ contact.given_name }}") < body.index("Body")
    assert body.rindex("open_pixel_url") > body.index("Leave")
    assert "display:none" in body[: body.index("Now &amp;")]


def test_a_derived_text_part_has_no_preheader_and_keeps_conditions() -> None:
    made = compiled(
        page("<h1>Hi</h1>{% if contact.vip %}<p>VIP</p>{% endif %}<ul><li>One</li></ul>"), preheader="hidden line"
    )

    assert made.text_derived
    assert rendered(made, vip=True)[0].split()[:5] == ["Hi", "VIP", "-", "One", "Leave"]
    assert "VIP" not in rendered(made, vip=False)[0]
    assert "hidden line" not in rendered(made)[0]


def test_variants_override_what_they_name() -> None:
    made = compile_campaign(
        campaign(
            page("<p>Same</p>"),
            preheader="all",
            variants=[
                VariantSpec(name="A", weight=2),
                VariantSpec(name="B", weight=1, subject="Other", preheader="b only"),
                VariantSpec(name="C", template=TemplateSource(kind=TemplateKind.HTML, source=page("<p>Different</p>"))),
            ],
        )
    )

    a, b, c = made.variants
    assert (a.subject, b.subject, c.subject) == ("Sale", "Other", "Sale")
    assert (a.preheader, b.preheader) == ("all", "b only")
    assert "b only" in b.html and "b only" not in a.html
    assert "Different" in c.html
    assert (a.weight, b.weight, c.weight) == (2, 1, 1)


def test_compiling_twice_gives_the_same() -> None:
    source = page('<style>p{color:red}</style><p>{{ contact.a }}</p><a href="https://x.example/">x</a>')

    assert compiled(source) == compiled(source)


def test_css_is_inlined() -> None:
    assert re.search(
        r'<p style="color: ?red', html_of("<html><head><style>p{color:red}</style></head><body><p>x</p></body></html>")
    )


def test_a_missing_field_fails_in_the_whole_message() -> None:
    with pytest.raises(RenderError, match=r"contact\.city"):
        rendered(compiled(page("<p>{{ contact.city }}</p>")))
