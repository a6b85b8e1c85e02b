"""Jinja2 tags made inert while MJML and CSS run, and put back.

HTML parsers move text out of tables, encode braces in URLs and lower-case attribute names. So a tag becomes a token
that no parser has a reason to touch: an HTML comment for a block tag between elements (comments may stand anywhere,
also around a table row), a bare word everywhere else. ``Shielded.check`` refuses a result in which a block tag is
missing, doubled or out of order, because ``{% for %}`` around the wrong things is worse than an error.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from jinja2 import TemplateSyntaxError

from mailer_lib.message.islands import TemplateProblemError
from mailer_lib.message.language import TemplateLanguage

_RAW_TEXT = frozenset({"style", "script", "title", "textarea", "mj-style"})
_TAG_OPEN = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9:-]*)")
_UNFINISHED_NAME = re.compile(r"</?[A-Za-z0-9:-]*\Z")
_CSS_ID = re.compile(r"\{#(?![\s\S]*#\})")  # "@media{#menu{…" opens no comment that is ever closed
_DELIMITERS = re.compile(r"\{(?=[{%#])")
_DOCUMENT = re.compile(r"<(?:mjml|!doctype|html)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Tag:
    """``{{ … }}`` or ``{% … %}`` as it was written."""

    source: str
    line: int
    block: bool

    @property
    def expression(self) -> str:
        """What stands between the braces."""
        return self.source[2:-2].strip("-+ \t\r\n")


@dataclass
class Shielded:
    """A template whose tags are tokens. New ones may be added (tracked links, the pixel)."""

    text: str
    word: str  # tokens are word + number + "z"
    tags: list[Tag] = field(default_factory=list)
    before: str = ""  # what stood before the document: set, macro, import

    def add(self, source: str) -> str:
        """A token for a new ``{{ … }}``."""
        return self._token(Tag(source, 0, False))

    def tags_in(self, text: str) -> list[Tag]:
        return [self.tags[int(match[1] or match[2])] for match in self.pattern.finditer(text)]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Any token, with the comment or the empty attribute value around it; group 1 or 2 is its number."""
        return re.compile(rf'<!--\s*{self.word}(\d+)z\s*-->|{self.word}(\d+)z(?:="")?')

    def _token(self, tag: Tag) -> str:
        self.tags.append(tag)
        return f"{self.word}{len(self.tags) - 1}z"

    def check(self, html: str, what: str) -> None:
        """
        Raises:
            TemplateProblemError: a tag got lost, doubled or moved on the way; names its line.
        """
        found = [int(match) for match in re.findall(rf"{self.word}(\d+)z", html)]
        blocks = [number for number in found if self.tags[number].block]
        expected = [number for number, tag in enumerate(self.tags) if tag.block]
        if blocks != expected:
            wrong = next((n for n, m in zip(expected, [*blocks, -1], strict=False) if n != m), (blocks or expected)[-1])
            tag = self.tags[wrong]
            raise TemplateProblemError(
                f"line {tag.line}: {tag.source} can't stay where it is, because {what} moves or drops what stands "
                "there; put it between elements, inside a cell, or inside <mj-raw>"
            )
        for number, tag in enumerate(self.tags):
            if not tag.block and number not in found:
                raise TemplateProblemError(
                    f"line {tag.line}: {tag.source} got lost, because {what} drops what stands there; move it"
                )

    def restore(self, text: str) -> str:
        """The tags put back; braces that only look like tags are made literal."""
        pieces: list[str] = []
        position = 0
        for match in self.pattern.finditer(text):
            pieces += (_literal(text[position : match.start()]), self.tags[int(match[1] or match[2])].source)
            position = match.end()
        pieces.append(_literal(text[position:]))
        return "".join(pieces)


def shield(source: str) -> Shielded:
    """Take the tags out of a template, after it was found to be well-formed.

    Raises:
        TemplateProblemError: a syntax error, with its line; a tag inside an element's name.
    """
    language = TemplateLanguage(autoescape=True)
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    source = _CSS_ID.sub("{ #", source)
    try:
        language.parse(source)
        pieces = _pieces(language, source)
    except TemplateSyntaxError as error:
        raise TemplateProblemError(f"line {error.lineno}: {error.message}") from None
    word = "mfj"
    while word in source.lower():
        word += "j"
    result = Shielded("", word)
    start = next((n for n, p in enumerate(pieces) if isinstance(p, str) and _DOCUMENT.search(p)), None)
    if start is not None:
        opening = pieces[start]
        assert isinstance(opening, str)
        match = _DOCUMENT.search(opening)
        assert match is not None
        result.before = _unshielded(pieces[:start]) + _literal(opening[: match.start()])
        pieces = [opening[match.start() :], *pieces[start + 1 :]]
    place, out = _Place(), []
    for piece in pieces:
        if isinstance(piece, str):
            place.feed(piece)
            out.append(piece)
        elif place.in_name:
            raise TemplateProblemError(
                f"line {piece.line}: {piece.source} touches an element's name; put a space before it"
            )
        else:
            token = result._token(piece)
            if place.state == "text" and piece.block:
                token = f"<!--{token}-->"
            elif place.state == "tag":
                token = f" {token} "
            out.append(token)
    result.text = "".join(out)
    return result


def map_text(source: str, change: Callable[[str], str]) -> str:
    """``source`` with its static text changed and its tags left alone."""
    pieces = _pieces(TemplateLanguage(autoescape=True), source)
    return "".join(_literal(change(piece)) if isinstance(piece, str) else piece.source for piece in pieces)


def _pieces(language: TemplateLanguage, source: str) -> list[str | Tag]:
    """Static text and tags, in order; comments are gone, raw sections are text."""
    pieces: list[str | Tag] = []
    buffer: list[str] = []
    start_line, kind = 1, ""
    for line, token, value in language.lex(source):
        if token in {"variable_begin", "block_begin"}:
            kind, start_line, buffer = token, line, [value]
        elif token in {"variable_end", "block_end"}:
            tag = "".join([*buffer, value])
            pieces.append(Tag(tag.rstrip(), start_line, kind == "block_begin"))
            kind = ""
        elif token in {"raw_begin", "raw_end", "comment_begin", "comment", "comment_end"}:
            continue
        elif kind:
            buffer.append(value)
        elif token == "data":  # noqa: S105 - a lexer's token
            pieces.append(value)
    return pieces


def _unshielded(pieces: list[str | Tag]) -> str:
    return "".join(_literal(piece) if isinstance(piece, str) else piece.source for piece in pieces)


def _literal(text: str) -> str:
    """Static text that must not be read as a tag (CSS such as ``@media{#main{…}}``, raw sections)."""
    return _DELIMITERS.sub(lambda match: "{{ '" + match[0] + "' }}", text) if "{" in text else text


class _Place:
    """Where in an HTML or MJML text we are."""

    def __init__(self) -> None:
        self.state = "text"
        self.in_name = False  # the text so far ends inside an element's name
        self._element = ""
        self._closing = False

    def feed(self, data: str) -> None:
        position = 0
        while position < len(data):
            position = getattr(self, f"_in_{self.state}")(data, position)
        self.in_name = self.state == "tag" and _UNFINISHED_NAME.search(data) is not None

    def _in_text(self, data: str, position: int) -> int:
        start = data.find("<", position)
        if start < 0:
            return len(data)
        if data.startswith("<!--", start):
            self.state = "comment"
            return start + 4
        match = _TAG_OPEN.match(data, start)
        if match is None:
            return start + 1
        self.state, self._closing, self._element = "tag", bool(match[1]), match[2].lower()
        return match.end()

    def _in_tag(self, data: str, position: int) -> int:
        for index in range(position, len(data)):
            character = data[index]
            if character == ">":
                raw = self._element in _RAW_TEXT and not self._closing and data[index - 1 : index] != "/"
                self.state = "raw" if raw else "text"
                return index + 1
            if character in "\"'":
                self.state = "double" if character == '"' else "single"
                return index + 1
        return len(data)

    def _in_double(self, data: str, position: int) -> int:
        return self._until(data, position, '"', "tag")

    def _in_single(self, data: str, position: int) -> int:
        return self._until(data, position, "'", "tag")

    def _in_comment(self, data: str, position: int) -> int:
        return self._until(data, position, "-->", "text")

    def _in_raw(self, data: str, position: int) -> int:
        end = data.lower().find(f"</{self._element}", position)
        if end < 0:
            return len(data)
        self.state = "text"
        return end

    def _until(self, data: str, position: int, mark: str, then: str) -> int:
        end = data.find(mark, position)
        if end < 0:
            return len(data)
        self.state = then
        return end + len(mark)
