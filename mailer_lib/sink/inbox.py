"""A web page on what the sinks took, for development: search, read, check the signature, leave by one click.

    GET  /                      the newest messages; ?q= words, ?sink=, ?page=
    GET  /m/<id>                one message; ?show=html|text|headers|source
    GET  /m/<id>/html           its HTML for the frame, caged: no scripts, nothing remote unless ?remote=1
    GET  /m/<id>/raw            the file
    POST /m/<id>/unsubscribe    sends the real RFC 8058 POST to the message's List-Unsubscribe URL
    GET  /healthz

No log-in: listen on localhost only. Plain pages, no scripts, nothing fetched from elsewhere.
"""

import base64
import hashlib
import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from mailer_lib.asgi_server import end_with_parent
from mailer_lib.sink.content import Content, read_content
from mailer_lib.sink.store import Entry, NoSuchMessageError, SinkStore, header_fields
from mailer_lib.sink.verify import PublicKeys, Verdict, as_sent, check, unsubscribe_url

ROOT_VARIABLE = "MAILFLEET_INBOX_ROOT"
KEYS_VARIABLE = "MAILFLEET_INBOX_KEYS"
PAGE = 50
SHOWS = ("html", "text", "headers", "source")
UNSUBSCRIBE_TIMEOUT_S = 15

_FOLDER = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_STYLE = (_FOLDER / "inbox.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_CAGE = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src {images}; "
    "style-src 'unsafe-inline'{styles}; font-src {images}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


@dataclass(frozen=True)
class Inbox:
    store: SinkStore
    keys: PublicKeys


def create_inbox(root: Path, keys_folder: Path) -> Starlette:
    """The ASGI app. ``keys_folder``: home/keys/dkim, for checking signatures."""
    store = SinkStore(root)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # The first look reads every file: begin before the first page is asked for.
        threading.Thread(target=store.refresh, daemon=True).start()
        yield

    app = Starlette(
        routes=[
            Route("/", listing),
            Route("/m/{id}", message),
            Route("/m/{id}/html", framed),
            Route("/m/{id}/raw", raw),
            Route("/m/{id}/unsubscribe", unsubscribe, methods=["POST"]),
            Route("/healthz", lambda _request: PlainTextResponse("ok\n")),
        ],
        exception_handlers={NoSuchMessageError: _no_such_message, FileNotFoundError: _no_such_message},
        lifespan=lifespan,
    )
    app.state.inbox = Inbox(store, PublicKeys(keys_folder))
    return app


def app_from_environment() -> Starlette:
    """The factory that the server's worker calls."""
    end_with_parent()
    return create_inbox(Path(os.environ[ROOT_VARIABLE]), Path(os.environ[KEYS_VARIABLE]))


def listing(request: Request) -> Response:
    inbox: Inbox = request.app.state.inbox
    inbox.store.refresh()
    query, sink = request.query_params.get("q", "").strip()[:200], request.query_params.get("sink", "")
    words = query.lower().split()
    entries = inbox.store.entries()
    found = [e for e in reversed(entries) if (not sink or e.sink == sink) and e.matches(words)]
    pages = max((len(found) + PAGE - 1) // PAGE, 1)
    asked = request.query_params.get("page", "1")
    number = min(max(int(asked) if asked.isdecimal() and len(asked) < 9 else 1, 1), pages)
    shown = found[(number - 1) * PAGE : number * PAGE]

    def address(page: int = 1, of_sink: str = sink) -> str:
        values = {"q": query, "sink": of_sink, "page": str(page) if page > 1 else ""}
        return "/?" + urlencode({name: value for name, value in values.items() if value})

    return _page(
        "inbox.html",
        entries=shown,
        total=len(found),
        all=len(entries),
        first=(number - 1) * PAGE + 1,
        query=query,
        sink=sink,
        sinks=inbox.store.sinks(),
        number=number,
        pages=pages,
        address=address,
    )


def message(request: Request) -> Response:
    entry, data = _load(request)
    content = read_content(data)
    default = "html" if content.html else "text" if content.text else "source"
    show = request.query_params.get("show", default)
    verdict: Verdict = check(data, request.app.state.inbox.keys)
    return _page(
        "message.html",
        entry=entry,
        content=content,
        show=show if show in SHOWS else default,
        shows=[name for name in SHOWS if name != "html" or content.html],
        source=data.decode("utf-8", "replace") if show == "source" else "",
        verdict=verdict,
        unsubscribe=unsubscribe_url(header_fields(as_sent(data))),
        said=request.query_params.get("said", "")[:300],
        remote=request.query_params.get("remote") == "1",
        has_remote=_has_remote(content),
    )


def framed(request: Request) -> Response:
    _, data = _load(request)
    html = read_content(data).html or "<p>There is no HTML part.</p>"
    remote = request.query_params.get("remote") == "1"
    images, styles = ("data: http: https:", " http: https:") if remote else ("data:", "")
    return HTMLResponse(
        html,
        headers={
            "Content-Security-Policy": _CAGE.format(images=images, styles=styles),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def raw(request: Request) -> Response:
    entry, data = _load(request)
    return Response(
        data,
        media_type="text/plain; charset=utf-8",
        headers={"Content-Disposition": f'inline; filename="{entry.id}.eml"', "X-Content-Type-Options": "nosniff"},
    )


def unsubscribe(request: Request) -> Response:
    """What a mailbox provider does when its "Unsubscribe" is pressed (RFC 8058 §3.2), and what was answered."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return PlainTextResponse("another site can't press this button\n", 403)
    entry, data = _load(request)
    url = unsubscribe_url(header_fields(as_sent(data)))
    said = "this message names no http URL in List-Unsubscribe" if url is None else one_click(url)
    return RedirectResponse(f"/m/{entry.id}?{urlencode({'said': said})}", 303)


def one_click(url: str) -> str:
    """POST ``List-Unsubscribe=One-Click`` without following redirects; a sentence on what came back."""
    asked = urllib.request.Request(  # noqa: S310 - unsubscribe_url gives http and https only
        url,
        data=b"List-Unsubscribe=One-Click",
        method="POST",
        headers={"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "Mailfleet-inbox"},
    )
    try:
        with urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({})).open(
            asked, timeout=UNSUBSCRIBE_TIMEOUT_S
        ) as answer:
            text = answer.read(200).decode("utf-8", "replace").strip()
            return f"the sender answered {answer.status}: {text}"
    except urllib.error.HTTPError as error:
        with error:
            return f"the sender answered {error.code}: this is not unsubscribed"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"the sender couldn't be reached ({reason}); is `mailfleet serve` running?"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: object, **_more: object) -> None:
        return None


def _load(request: Request) -> tuple[Entry, bytes]:
    entry = request.app.state.inbox.store.get(request.path_params["id"])
    return entry, entry.path.read_bytes()


def _has_remote(content: Content) -> bool:
    html = (content.html or "").lower()
    return any(mark in html for mark in ('src="http', "src='http", "url(http", 'background="http'))


def _no_such_message(_request: Request, _error: Exception) -> Response:
    return _page("missing.html", status=404)


def _page(template: str, status: int = 200, **values: object) -> HTMLResponse:
    html = _ENVIRONMENT.get_template(template).render(style=_STYLE, **values)
    headers = {
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(html, status, headers)
