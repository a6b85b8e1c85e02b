"""``/c/<token>`` sends a click on its way, ``/o/<token>.gif`` is the open pixel. Both note an event, HEAD none."""

from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mailer_lib.tokens import TokenKind
from mailer_lib.web import pages
from mailer_lib.web.doors import doors, texts

PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")


async def click(request: Request) -> Response:
    """302 to the link's target as it was frozen with the send; only http and https."""
    door = doors(request)
    token = door.token(request, TokenKind.CLICK)
    url = door.links.known(token) or await run_in_threadpool(door.links.find, token)
    if url is None or not is_web_url(url):
        return pages.bad_link(texts(request))
    if request.method != "HEAD":
        door.note_event("click", token, request)
    return RedirectResponse(url, 302)


async def opened(request: Request) -> Response:
    door = doors(request)
    token = door.token(request, TokenKind.OPEN)
    if request.method != "HEAD":
        door.note_event("open", token, request)
    return Response(PIXEL, media_type="image/gif")


def is_web_url(url: str) -> bool:
    """Whether a browser may be sent there."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.lower() in ("http", "https") and bool(parts.netloc)
