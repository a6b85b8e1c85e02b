"""``/u/<token>``: leaving a list. GET shows a form and changes nothing; POST acts before it answers.

A POST is RFC 8058's one click (``List-Unsubscribe=One-Click``, form-urlencoded or multipart), or our form. Link
scanners follow GETs only, so they unsubscribe nobody.
"""

from datetime import UTC, datetime

from sqlalchemy import Connection, select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mailer_lib.contacts import consent
from mailer_lib.database.engine import read
from mailer_lib.database.retry import write_again
from mailer_lib.database.schema import contacts, subscriptions
from mailer_lib.terms import SubscriptionState
from mailer_lib.tokens import Token, TokenKind
from mailer_lib.web import pages
from mailer_lib.web.doors import Doors, client_ip, doors, texts
from mailer_lib.web.forms import read_form
from mailer_lib.web.people import Person, SendFacts, masked, person_of, send_facts


def show(request: Request) -> Response:
    """The form."""
    door = doors(request)
    token = door.token(request, TokenKind.UNSUBSCRIBE)
    facts, person = _look_up(door, token)
    words = texts(request, person.locale if person else None)
    if facts is None or person is None:
        return pages.note(words, words.nobody_title, words.nobody, status=410)
    return _form(door, request, facts, person)


async def leave(request: Request) -> Response:
    """One click, or the form sent."""
    door = doors(request)
    token = door.token(request, TokenKind.UNSUBSCRIBE)
    fields = await read_form(request)
    one_click = fields.get("List-Unsubscribe") == "One-Click"
    scope = "list" if one_click else fields.get("scope")
    return await run_in_threadpool(_leave, door, request, token, scope, one_click)


def _leave(door: Doors, request: Request, token: Token, scope: str | None, one_click: bool) -> Response:
    facts, person = _look_up(door, token)
    words = texts(request, person.locale if person else None)
    if facts is None or person is None:
        if one_click:
            return PlainTextResponse("This address is in none of our lists.\n", 410)
        return pages.note(words, words.nobody_title, words.nobody, status=410)
    if scope not in ("list", "all"):
        return _form(door, request, facts, person, status=400)
    unsubscribe(
        door,
        person.address_hash,
        facts.list_id if scope == "list" else None,
        method="one-click" if one_click else "web-form",
        source=f"send {facts.ref}",
        ip=client_ip(request),
    )
    door.note_event("unsubscribe", token, request)
    if one_click:
        return PlainTextResponse("Unsubscribed.\n")
    sentence = words.left_list.format(list=facts.list_title) if scope == "list" else words.left_all
    return pages.note(words, words.left_title, sentence, mood="good")


def unsubscribe(
    door: Doors, address_hash: bytes, list_id: int | None, *, method: str, source: str, ip: str | None
) -> None:
    """Committed when this returns. A second click at the same moment waits for the first, and then changes nothing."""
    at = datetime.now(UTC)

    def work(connection: Connection) -> None:
        connection.execute(  # the person's own row is the lock; SQLite's transaction is one already
            select(contacts.c.id).where(contacts.c.address_hash == address_hash).with_for_update()
        )
        consent.unsubscribe(
            connection, address_hash=address_hash, list_id=list_id, method=method, source=source, ip=ip, at=at
        )

    write_again(door.engine, work)


def _look_up(door: Doors, token: Token) -> tuple[SendFacts | None, Person | None]:
    with read(door.engine) as connection:
        facts = send_facts(connection, token.send_id)
        return facts, person_of(connection, door.settings, token, facts) if facts else None


def _form(door: Doors, request: Request, facts: SendFacts, person: Person, status: int = 200) -> Response:
    words = texts(request, person.locale)
    address = masked(person.address)
    with read(door.engine) as connection:
        state = connection.scalar(
            select(subscriptions.c.state)
            .join(contacts, contacts.c.id == subscriptions.c.contact_id)
            .where(contacts.c.address_hash == person.address_hash, subscriptions.c.list_id == facts.list_id)
        )
    left = state == SubscriptionState.UNSUBSCRIBED.value
    return pages.page(
        "leave",
        words,
        status=status,
        about=words.leave_address.format(address=address) if address else "",
        already=words.left_already.format(list=facts.list_title) if left else "",
        leave_this=words.leave_this.format(list=facts.list_title),
    )
