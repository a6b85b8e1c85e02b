"""From a campaign to the templates that agents build messages from.

A template is shielded, MJML or CSS runs over it, links are numbered, preheader, footer and pixel take their places, and
the tags are put back. The same campaign gives the same bundle, byte for byte, so its content hash is what approval
covers.
"""

import re
from dataclasses import dataclass

import css_inline
import mrml
from jinja2 import TemplateSyntaxError
from markupsafe import escape

from mailer_lib.message.bundle import BundleVariant
from mailer_lib.message.campaign import Campaign, TemplateSource, VariantSpec
from mailer_lib.message.html_text import html_to_text
from mailer_lib.message.islands import TemplateProblemError
from mailer_lib.message.language import TemplateLanguage
from mailer_lib.message.links import Links, rewrite_html, rewrite_text
from mailer_lib.message.shield import Shielded, map_text, shield
from mailer_lib.terms import TemplateKind

_BODY = re.compile(r"<body\b[^>]*>", re.IGNORECASE)
_BODY_END = re.compile(r"</body\s*>", re.IGNORECASE)
_USES_UNSUBSCRIBE = re.compile(r"\bunsubscribe_url\b")
_FILLER = "&#847;&zwnj;&nbsp;" * 30  # keeps the clients' preview line from reading on into the body
_HIDDEN = "display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;mso-hide:all"
_PIXEL = (
    '<img src="{{ open_pixel_url }}" width="1" height="1" alt="" style="display:block;border:0;width:1px;height:1px">'
)
_FOOTER_STYLE = "padding:24px;text-align:center;font-family:sans-serif;font-size:12px;line-height:18px;color:#666666"
_FOOTER_HTML = (
    f'<div style="{_FOOTER_STYLE}">' + "{{ list_title }}{% if postal_address %}<br>{{ postal_address }}{% endif %}"
    '<br><a href="{{ unsubscribe_url }}" style="color:#666666">Unsubscribe</a></div>'
)
_FOOTER_TEXT = (
    "\n-- \n{{ list_title }}\n{% if postal_address %}{{ postal_address }}\n{% endif %}"
    "Unsubscribe: {{ unsubscribe_url }}\n"
)


@dataclass(frozen=True)
class Compiled:
    """The final templates of a campaign, before a send gives them a number."""

    variants: tuple[BundleVariant, ...]
    links: tuple[str, ...]
    untracked: tuple[str, ...]  # links that hold merge fields, as written
    footer_added: bool  # to one part at least, because it had no unsubscribe link
    text_derived: bool


def compile_campaign(campaign: Campaign) -> Compiled:
    """
    Raises:
        TemplateProblemError: names the template and the line.
    """
    links = Links(track=campaign.tracking.links)
    variants = []
    footer_added = text_derived = False
    for variant in campaign.effective_variants:
        source = variant.template or campaign.template
        html, text, footer = _compile_template(campaign, variant, source, links)
        variants.append(
            BundleVariant(
                name=variant.name,
                weight=variant.weight,
                subject=variant.subject or campaign.subject,
                preheader=_preheader(campaign, variant),
                html=html,
                text=text,
            )
        )
        footer_added |= footer
        text_derived |= source.text is None
    untracked = tuple(dict.fromkeys(links.untracked))
    return Compiled(tuple(variants), tuple(links.targets), untracked, footer_added, text_derived)


def _preheader(campaign: Campaign, variant: VariantSpec) -> str:
    return variant.preheader if variant.preheader is not None else campaign.preheader


def _compile_template(
    campaign: Campaign, variant: VariantSpec, source: TemplateSource, links: Links
) -> tuple[str, str, bool]:
    """(HTML, text, whether a footer was added)."""
    preheader = _preheader(campaign, variant)
    for what, line in (("subject", variant.subject or campaign.subject), ("preheader", preheader)):
        _parse(line, f"the {what} of variant {variant.name}")
    where = source.file or f"the template of {campaign.name}"
    try:
        document = shield(source.source)
        page = _page(document, source.kind)
        html = rewrite_html(document, page, links)
    except TemplateProblemError as error:
        raise TemplateProblemError(f"{where}, {error}") from None
    if source.text is None:
        text = document.before + document.restore(
            html_to_text(html, document.word, lambda token: document.tags_in(token)[0].block)
        )
    else:
        text_where = source.text_file or f"the text part of {campaign.name}"
        try:
            written = shield(source.text)
            text = written.before + written.restore(rewrite_text(written, written.text, links))
        except TemplateProblemError as error:
            raise TemplateProblemError(f"{text_where}, {error}") from None
    html = document.before + document.restore(html)
    footer = False
    if _USES_UNSUBSCRIBE.search(html) is None:
        html, footer = _before_body_end(html, _FOOTER_HTML), True
    if _USES_UNSUBSCRIBE.search(text) is None:
        text, footer = text.rstrip("\n") + "\n" + _FOOTER_TEXT, True
    if preheader:
        safe = map_text(preheader, lambda static: str(escape(static)))
        html = _after_body_start(html, f'<div style="{_HIDDEN}">{safe}{_FILLER}</div>')
    if campaign.tracking.opens:
        html = _before_body_end(html, _PIXEL)
    _parse(html, f"{where}, compiled")
    _parse(text, f"the text part of {where}")
    return html, text, footer


def _page(document: Shielded, kind: TemplateKind) -> str:
    """Shielded HTML with its CSS inlined."""
    if kind is TemplateKind.MJML:
        try:
            output = mrml.to_html(document.text)
        except OSError as error:
            raise TemplateProblemError(f"MJML: {error}") from None
        document.check(output.content, "MJML")
        return str(output.content)
    inliner = css_inline.CSSInliner(keep_style_tags=True, keep_at_rules=True, load_remote_stylesheets=False)
    try:
        page = inliner.inline(document.text)
    except css_inline.InlineError as error:
        raise TemplateProblemError(f"CSS: {error}") from None
    document.check(page, "the HTML parser")
    return page


def _parse(source: str, what: str) -> None:
    try:
        TemplateLanguage(autoescape=True).parse(source)
    except TemplateSyntaxError as error:
        raise TemplateProblemError(f"{what}, line {error.lineno}: {error.message}") from None


def _after_body_start(html: str, addition: str) -> str:
    match = _BODY.search(html)
    at = match.end() if match else 0
    return html[:at] + addition + html[at:]


def _before_body_end(html: str, addition: str) -> str:
    matches = list(_BODY_END.finditer(html))
    at = matches[-1].start() if matches else len(html)
    return html[:at] + addition + html[at:]
