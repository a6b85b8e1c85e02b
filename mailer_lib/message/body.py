"""The body of a variant, as segments: encoded once, joined for each recipient.

--boundary, text/plain, text/html, --boundary--      all quoted-printable, all in DKIM canonical form
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import escape as escape_html

from mailer_lib.message import mime
from mailer_lib.message.bundle import BundleVariant
from mailer_lib.message.islands import Island, Islands, PureIsland, Render, Static, UrlForm, compile_islands
from mailer_lib.message.language import TemplateLanguage
from mailer_lib.message.memo import Memo

TokenName = tuple[str, int]  # ("link", 3), ("unsubscribe_url", 0)


_ANY_TEXT = ("utf-8", "surrogatepass")


@dataclass(frozen=True)
class _PureGroup:
    """The pure islands of one part that are functions of the same fields."""

    render: Render
    places: list[int]
    bare: bool
    escape: Callable[[str], str]


class Body:
    """Body and subject of one variant."""

    def __init__(
        self,
        variant: BundleVariant,
        *,
        html_language: TemplateLanguage,
        text_language: TemplateLanguage,
        constants: Mapping[str, Any],
        urls: Mapping[str, UrlForm],
        boundary: str,
    ) -> None:
        """
        Raises:
            jinja2.TemplateSyntaxError, TemplateProblemError: a template can't be used.
        """
        self._text = compile_islands(text_language, variant.text, constants, urls)
        self._html = compile_islands(html_language, variant.html, constants, urls)
        self._subject = compile_islands(text_language, variant.subject, constants, {})
        self._segments: list[bytes] = []
        self._slots: list[tuple[int, TokenName]] = []
        self._pure: dict[tuple[str, ...], list[_PureGroup]] = {}
        self._text_places = self._add_part(f"--{boundary}", "text/plain", self._text, str)
        self._html_places = self._add_part(f"--{boundary}", "text/html", self._html, _escaped)
        self._add_raw(f"--{boundary}--\r\n")
        self._memos = [self._memo(fields, groups) for fields, groups in self._pure.items()]
        self._subject_memo = _subject_memo(self._subject)
        self.static_bytes = sum(map(len, self._segments))
        self.variables = frozenset().union(self._text.variables, self._html.variables, self._subject.variables)

    @property
    def token_names(self) -> tuple[TokenName, ...]:
        """The tokens that ``build`` wants, each once."""
        return tuple(dict.fromkeys(name for _, name in self._slots))

    def build(self, variables: dict[str, Any], tokens: Mapping[TokenName, bytes]) -> tuple[str, bytes]:
        """(subject as rendered, body). Raises what the template raises."""
        segments = self._segments.copy()
        for places, islands in ((self._text_places, self._text), (self._html_places, self._html)):
            for place, value in zip(places, islands.render(variables), strict=True):
                segments[place] = _encoded(value)
        contact = variables["contact"].data
        for memo, places_of_it in self._memos:
            for place, encoded in zip(places_of_it, memo.values(contact, variables), strict=True):
                segments[place] = encoded
        for place, name in self._slots:
            segments[place] = tokens[name]
        if self._subject_memo is None:
            return self._subject.text(variables), b"".join(segments)
        return self._subject_memo.values(contact, variables)[0].decode(*_ANY_TEXT), b"".join(segments)

    def _memo(self, fields: tuple[str, ...], groups: "list[_PureGroup]") -> tuple[Memo, tuple[int, ...]]:
        """(values of all the body's islands that are functions of ``fields``, their places)."""
        escapes = [group.escape for group in groups for _ in group.places]
        bare = tuple(escapes) if all(group.bare for group in groups) else ()
        places = tuple(place for group in groups for place in group.places)
        return Memo(fields, tuple(group.render for group in groups), _encoded, bare), places

    def _add_part(self, delimiter: str, content_type: str, islands: Islands, escape: Callable[[str], str]) -> list[int]:
        """Add the part's segments; returns the places of islands that aren't pure."""
        self._add_raw(
            f"{delimiter}\r\nContent-Type: {content_type}; charset=utf-8\r\n"
            "Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        )
        places = []
        pure_places: dict[tuple[str, ...], list[int]] = {fields: [] for fields in islands.pure}
        segments = list(islands.segments)
        ending = ""
        if segments and isinstance(last := segments[-1], Static):
            ending = last.text
            segments.pop()
        for segment in segments:
            if isinstance(segment, Static):
                self._segments.append(mime.quoted_printable(segment.text))
                continue
            place = len(self._segments)
            self._segments.append(b"")
            if isinstance(segment, Island):
                places.append(place)
            elif isinstance(segment, PureIsland):
                pure_places[segment.fields].append(place)
            else:
                self._slots.append((place, (segment.name, segment.number)))
        self._segments.append(mime.quoted_printable(ending, last=True) + b"\r\n")  # this CRLF is the delimiter's
        for fields, render in islands.pure.items():
            group = _PureGroup(render, pure_places[fields], fields in islands.bare, escape)
            self._pure.setdefault(fields, []).append(group)
        return places

    def _add_raw(self, text: str) -> None:
        self._segments.append(text.encode())


def _encoded(value: str) -> bytes:
    return mime.quoted_printable_value(value) if value else b""


def _escaped(value: str) -> str:
    return str(escape_html(value))


def _subject_memo(subject: Islands) -> Memo | None:
    """The whole subject as one value, where it is a function of a few fields."""
    if not subject.pure or any(isinstance(segment, Island) for segment in subject.segments):
        return None
    fields = tuple(sorted({name for group in subject.pure for name in group}))
    return Memo(fields, (lambda variables: [subject.text(variables)],), lambda text: text.encode(*_ANY_TEXT))
