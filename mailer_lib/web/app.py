"""What recipients and approvers reach: ``create_app(settings)`` makes the ASGI app that ``mailfleet serve`` runs.

    GET  /u/<token>      a form for leaving; changes nothing          leaving.py
    POST /u/<token>      RFC 8058 one click, or the form: committed before the answer
    GET  /k/<token>      confirm a subscription: a button             confirming.py
    POST /k/<token>      confirms
    GET  /c/<token>      302 to a tracked link's target               tracking.py
    GET  /o/<token>.gif  the open pixel
    GET  /v/<token>      the message in the browser                   viewing.py
    GET  /p/<token>      the preview for approvers
    GET  /healthz        200 when the database answers

No GET changes what a person receives; HEAD changes nothing at all. A token that isn't ours is a 404 without a reason.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from mailer_lib.asgi_server import end_with_parent
from mailer_lib.database.engine import open_engine, read
from mailer_lib.settings import Settings, load_settings
from mailer_lib.tokens import BadTokenError
from mailer_lib.web import confirming, leaving, pages, tracking, viewing
from mailer_lib.web.doors import Doors, doors, log, texts
from mailer_lib.web.events import EventLog
from mailer_lib.web.middleware import App, BodyLimit, Message, Receive, Scope, SecurityHeaders, Send
from mailer_lib.web.people import Links


def create_app(settings: Settings) -> Starlette:
    """The ASGI app, with an engine of its own.

    Raises:
        SettingsError: there are no keys yet.
    """
    settings.identity()
    engine = open_engine(settings.url)
    found = Doors(settings, engine, EventLog(settings.storage), Links(engine), settings.tokens())

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        found.events.close()
        engine.dispose()

    app = Starlette(
        routes=[
            Route("/u/{token}", leaving.show, methods=["GET"]),
            Route("/u/{token}", leaving.leave, methods=["POST"]),
            Route("/k/{token}", confirming.show, methods=["GET"]),
            Route("/k/{token}", confirming.confirm, methods=["POST"]),
            Route("/c/{token}", tracking.click, methods=["GET"]),
            Route("/o/{token}.gif", tracking.opened, methods=["GET"]),
            Route("/v/{token}", viewing.view, methods=["GET"]),
            Route("/p/{token}", viewing.preview, methods=["GET"]),
            Route("/healthz", healthz, methods=["GET"]),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(BodyLimit), Middleware(FailurePage)],
        exception_handlers={BadTokenError: _bad_token, HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path that is no door is a 404, and its token isn't said back in a Location
    app.state.doors = found
    return app


def app_from_environment() -> Starlette:
    """The factory that the server's workers call."""
    end_with_parent()
    return create_app(load_settings())


def healthz(request: Request) -> Response:
    try:
        with read(doors(request).engine) as connection:
            connection.execute(select(1))
    except SQLAlchemyError:
        return PlainTextResponse("the database doesn't answer\n", 503)
    return PlainTextResponse("ok\n")


def _bad_token(request: Request, _error: Exception) -> Response:
    return pages.bad_link(texts(request))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return pages.bad_link(texts(request))
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


class FailurePage:
    """A polite page for what we got wrong.

    The path holds a token, and a database's message may hold an address: neither is logged, so the error ends here
    instead of in the server's log.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("%s %s…: %s", scope["method"], scope["path"][:3], type(error).__name__)
            if not started:
                words = texts(Request(scope))
                page = pages.note(words, words.error_title, words.error, status=500, mood="sorry")
                await page(scope, receive, send)
