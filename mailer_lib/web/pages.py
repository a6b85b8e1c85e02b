"""Our pages as HTML: Jinja2 templates beside this module, autoescaped, their style inline and hashed into the CSP."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from mailer_lib.web.languages import Texts

_FOLDER = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_STYLE = (_FOLDER / "style.css").read_text("utf-8")
_PREVIEW_STYLE = _STYLE + (_FOLDER / "preview.css").read_text("utf-8")


def _hash(style: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"


_POLICY = f"default-src 'none'; style-src {_hash(_STYLE)}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
_PREVIEW_POLICY = (
    f"default-src 'none'; style-src {_hash(_PREVIEW_STYLE)}; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'"
)
# A message is a stranger in our house: its own origin, no scripts, no forms; pictures and inline styles only.
_MESSAGE_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation; default-src 'none'; "
    "img-src http: https: data:; style-src 'unsafe-inline' https:; font-src https: data:; base-uri 'none'; "
    "form-action 'none'"
)


def page(name: str, texts: Texts, *, status: int = 200, **values: object) -> HTMLResponse:
    """One of the pages for recipients; ``name`` is the template's, without its suffix."""
    html = _ENVIRONMENT.get_template(f"{name}.html").render(t=texts, style=_STYLE, **values)
    return HTMLResponse(html, status, {"Content-Security-Policy": _POLICY, "Content-Language": texts.language})


def note(texts: Texts, title: str, *paragraphs: str, status: int = 200, mood: str = "plain") -> HTMLResponse:
    """A page that only says something. ``mood``: good, plain or sorry."""
    return page("note", texts, status=status, title=title, paragraphs=paragraphs, mood=mood)


def bad_link(texts: Texts) -> HTMLResponse:
    """The same for every token that isn't ours: nothing to learn from it."""
    return note(texts, texts.bad_title, texts.bad, status=404, mood="sorry")


def preview(**values: object) -> HTMLResponse:
    """The page for approvers, around the message's frame."""
    html = _ENVIRONMENT.get_template("preview.html").render(style=_PREVIEW_STYLE, **values)
    return HTMLResponse(html, headers={"Content-Security-Policy": _PREVIEW_POLICY})


def message(html: str, *, framed: bool = False) -> HTMLResponse:
    """A campaign's own HTML, caged. ``framed``: for the frame of a page of ours."""
    ancestors = "frame-ancestors 'self'" if framed else "frame-ancestors 'none'"
    return HTMLResponse(html, headers={"Content-Security-Policy": f"{_MESSAGE_POLICY}; {ancestors}"})
