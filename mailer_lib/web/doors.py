"""What every endpoint has at hand: settings, engine, event log, tokens; and what it asks of a request."""

import logging
from dataclasses import dataclass
from ipaddress import ip_address

from sqlalchemy import Engine
from starlette.requests import Request

from mailer_lib import tokens
from mailer_lib.settings import Settings
from mailer_lib.tokens import Token, TokenKind
from mailer_lib.web.events import EventLog
from mailer_lib.web.languages import Texts, texts_for
from mailer_lib.web.people import Links
from mailer_lib.web.user_agents import AgentClass, classify

log = logging.getLogger("mailfleet.web")


@dataclass(frozen=True)
class Doors:
    settings: Settings
    engine: Engine
    events: EventLog
    links: Links
    token_key: bytes

    def token(self, request: Request, kind: TokenKind) -> Token:
        """The token in the path.

        Raises:
            BadTokenError: it isn't ours, or is for something else.
        """
        return tokens.verify(self.token_key, request.path_params["token"], kind)

    def note_event(self, kind: str, token: Token, request: Request) -> None:
        """Append an event; a full disk must not keep a person from the page."""
        try:
            self.events.add(kind, token, agent(request))
        except OSError as error:
            log.error("an event of kind %s was lost: %s", kind, error.strerror)


def doors(request: Request) -> Doors:
    found: Doors = request.app.state.doors
    return found


def texts(request: Request, locale: str | None = None) -> Texts:
    return texts_for(locale, request.headers.get("accept-language"))


def agent(request: Request) -> AgentClass:
    return classify(request.headers.get("user-agent"))


def client_ip(request: Request) -> str | None:
    """The address that a request came from, for consent evidence.

    Behind a proxy of ours (``settings.serve_behind_proxy``) that is what the proxy added to X-Forwarded-For, the last
    entry; the earlier ones are whatever the client says.
    """
    host = request.client.host if request.client else ""
    if doors(request).settings.serve_behind_proxy:
        host = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip() or host
    try:
        return str(ip_address(host))
    except ValueError:  # a Unix socket, or nonsense
        return None
