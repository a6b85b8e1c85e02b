"""Links of a shielded HTML document: static ones are numbered and tracked, URLs that hold data pass a filter."""

import html
import re
from dataclasses import dataclass, field

from mailer_lib.message.shield import Shielded

_OUR_URLS = frozenset({"unsubscribe_url", "view_url", "open_pixel_url"})
_URL_ATTRIBUTES = "href|src|action|formaction|background|poster|cite|data|xlink:href"
_TAG = re.compile(
    r"<([A-Za-z][A-Za-z0-9:-]*)((?:\s+[^\s=>\"'/]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?|\s*/)*)\s*>"
)
_ATTRIBUTE = re.compile(rf"(\s(?:{_URL_ATTRIBUTES})\s*=\s*)(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))", re.IGNORECASE)
_FIXED_SCHEME = re.compile(r"\s*(?:https?://|mailto:|tel:|sms:|cid:|/|#|\?|\./)", re.IGNORECASE)
_WEB = re.compile(r"https?://", re.IGNORECASE)
_TEXT_URL = re.compile(r"https?://[^\s<>\"']+", re.IGNORECASE)
_TRAILING = ".,;:!?)]}"


@dataclass
class Links:
    """Targets by number; the same target has one number, whatever part or variant it stands in."""

    track: bool = True
    targets: list[str] = field(default_factory=list)
    untracked: list[str] = field(default_factory=list)  # links that hold Jinja2, as written

    def number(self, url: str) -> int:
        if url not in self.targets:
            self.targets.append(url)
        return self.targets.index(url)


def rewrite_html(document: Shielded, page: str, links: Links) -> str:
    """``page`` (shielded) with tracked links as ``{{ link(n) }}`` and data in URLs behind ``safe_url``."""

    def attribute(match: re.Match[str], element: str) -> str:
        name = match[1].strip().rstrip("=").strip().lower()
        value = next(group for group in match.groups()[1:] if group is not None)
        tags = document.tags_in(value)
        if not tags:
            url = html.unescape(value).strip()
            if links.track and name == "href" and element in {"a", "area", "v:roundrect", "v:rect"} and _WEB.match(url):
                return f'{match[1]}"{document.add(_link(links.number(url)))}"'
            return match[0]
        if tags[0].expression in _OUR_URLS or tags[0].expression.startswith("link("):
            return match[0]
        if name == "href" and element in {"a", "area"}:
            links.untracked.append(document.restore(html.unescape(value)))
        if _FIXED_SCHEME.match(value):
            return match[0]
        opening, closing = document.add("{% filter safe_url %}"), document.add("{% endfilter %}")
        return f'{match[1]}"{opening}{value.strip()}{closing}"'

    def element(match: re.Match[str]) -> str:
        return f"<{match[1]}" + _ATTRIBUTE.sub(lambda a: attribute(a, match[1].lower()), match[0][len(match[1]) + 1 :])

    return _TAG.sub(element, page)


def rewrite_text(document: Shielded, text: str, links: Links) -> str:
    """The written text part (shielded), its static URLs tracked."""
    if not links.track:
        return text

    def url(match: re.Match[str]) -> str:
        whole = match[0]
        if document.tags_in(whole):
            links.untracked.append(document.restore(whole))
            return whole
        target = whole.rstrip(_TRAILING)
        return document.add(_link(links.number(target))) + whole[len(target) :]

    return _TEXT_URL.sub(url, text)


def _link(number: int) -> str:
    return f"{{{{ link({number}) }}}}"
