"""The text part, derived from the HTML: paragraphs, lists, table rows as lines, links as "text (url)".

Works on shielded HTML: tokens of Jinja2 tags are kept where they stand in the flow, those inside attributes are dropped
(a link's own URL excepted).
"""

import re
from collections.abc import Callable
from html.parser import HTMLParser

_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "center", "dd", "div", "dl", "dt", "fieldset", "figure", "footer",
    "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "li", "main", "nav", "ol", "p", "pre", "section",
    "table", "tr", "ul",
})  # fmt: skip
_APART = frozenset({"blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "table", "ul"})
_SILENT = frozenset({"head", "style", "script", "title", "template"})
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
})  # fmt: skip
_HIDDEN = re.compile(r"display\s*:\s*none|mso-hide\s*:\s*all", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SPACE = re.compile(r"[ \t\r\n\f]+")
_FILLER = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad\u034f]")


def html_to_text(html: str, word: str, is_block: Callable[[str], bool]) -> str:
    """Plain text of ``html``, in which ``word<number>z`` are tokens; ``is_block`` tells those of ``{% … %}``."""

    def keep_line(match: re.Match[str]) -> str:
        alone = all(is_block(token) for token in re.findall(rf"{word}\d+z", match[1]))
        return match[1] if alone else match[0]  # a line of tags only must not leave an empty line behind

    parser = _TextParser(word)
    parser.feed(html)
    parser.close()
    text = "\n".join(line.strip(" ") for line in "".join(parser.out).split("\n"))
    text = _BLANK_LINES.sub("\n\n", text).strip("\n") + "\n"
    return re.sub(rf"(?m)^((?:{word}\d+z)+)\n", keep_line, text)


class _TextParser(HTMLParser):
    def __init__(self, word: str) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self._token = re.compile(rf"\s*({word}\d+z)\s*")
        self._silent: list[str] = []  # open elements whose content isn't read
        self._links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent:
            if tag not in _VOID:
                self._silent.append(tag)
            return
        values = {name: value or "" for name, value in attrs}
        if tag in _SILENT or (tag not in _VOID and _HIDDEN.search(values.get("style", ""))):
            self._silent.append(tag)
        elif tag == "br":
            self.out.append("\n")
        elif tag == "hr":
            self.out.append("\n\n---\n\n")
        elif tag == "img":
            self._words(values.get("alt", ""))
        elif tag == "a":
            self._links.append((values.get("href", ""), len(self.out)))
        elif tag in {"td", "th"}:
            self._words(" ")
        elif tag in _BLOCKS:
            self._break(tag)
            if tag == "li":
                self.out.append("- ")

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag in self._silent:
                while self._silent.pop() != tag:
                    pass
            return
        if tag == "a" and self._links:
            url, start = self._links.pop()
            words = "".join(self.out[start:]).strip()
            if url.startswith(("mailto:", "tel:")):
                url = url.partition(":")[2]
            if url and not url.startswith("#") and words and url != words:
                self.out.append(f" ({url})")
        elif tag in _BLOCKS:
            self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._words(data)
            return

    def handle_comment(self, data: str) -> None:
        match = self._token.fullmatch(data)
        if match is not None:
            self.out.append(match[1])

    def _words(self, data: str) -> None:
        text = _SPACE.sub(" ", _FILLER.sub("", data).replace("\u00a0", " "))
        if text.startswith(" ") and (not self.out or self.out[-1].endswith((" ", "\n"))):
            text = text[1:]
        if text:
            self.out.append(text)

    def _break(self, tag: str) -> None:
        """At least one line break, or an empty line around what stands apart."""
        have = 0
        for piece in reversed(self.out):
            if piece.strip("\n"):
                break
            have += len(piece)
        wanted = 2 if tag in _APART else 1
        if have < wanted:
            self.out.append("\n" * (wanted - have))
