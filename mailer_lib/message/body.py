"""The body of a variant, as segments: encoded once, joined for each recipient.

--boundary, text/plain, text/html, --boundary--      all quoted-printable, all in DKIM canonical form
"""

from collections.abc import Mapping
from typing import Any

from mailer_lib.message import mime
from mailer_lib.message.bundle import BundleVariant
from mailer_lib.message.islands import Island, Islands, PureIsland, Render, Static, UrlForm, compile_islands
from mailer_lib.message.language import TemplateLanguage
from mailer_lib.message.memo import Memo

TokenName = tuple[str, int]  # ("link", 3), ("unsubscribe_url", 0)


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
        pure: dict[tuple[str, ...], list[tuple[Render, list[int]]]] = {}
        self._text_places = self._add_part(f"--{boundary}", "text/plain", self._text, pure)
        self._html_places = self._add_part(f"--{boundary}", "text/html", self._html, pure)
        self._add_raw(f"--{boundary}--\r\n")
        self._memos = [
            (
                Memo(fields, tuple(render for render, _ in parts), _encoded),
                tuple(place for _, places in parts for place in places),
            )
            for fields, parts in pure.items()
        ]
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
        return self._subject.text(variables), b"".join(segments)

    def _add_part(
        self,
        delimiter: str,
        content_type: str,
        islands: Islands,
        pure: dict[tuple[str, ...], list[tuple[Render, list[int]]]],
    ) -> list[int]:
        """Add the part's segments, and to ``pure`` its renders with their places; returns the other islands' places."""
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
            pure.setdefault(fields, []).append((render, pure_places[fields]))
        return places

    def _add_raw(self, text: str) -> None:
        self._segments.append(text.encode())


def _encoded(value: str) -> bytes:
    return mime.quoted_printable_value(value) if value else b""
