"""``/k/<token>``: the answer to a double opt-in mail. GET shows a button, POST confirms.

Refused when the person left, complained or was suppressed after the sign-up that the link answers.
"""

from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, or_, select
from starlette.requests import Request
from starlette.responses import Response

from mailer_lib.contacts import consent
from mailer_lib.database.engine import read
from mailer_lib.database.retry import write_again
from mailer_lib.database.schema import consent_events, contacts, lists, subscriptions
from mailer_lib.terms import ConsentAction, SubscriptionState
from mailer_lib.tokens import TokenKind
from mailer_lib.web import pages
from mailer_lib.web.doors import client_ip, doors, texts
from mailer_lib.web.languages import Texts
from mailer_lib.web.people import masked


class Answer(StrEnum):
    CONFIRMED = "confirmed"
    LEFT_SINCE = "left-since"
    KEPT_OUT = "kept-out"
    NOBODY = "nobody"


def show(request: Request) -> Response:
    door = doors(request)
    token = door.token(request, TokenKind.CONFIRM)
    with read(door.engine) as connection:
        title = connection.scalar(select(lists.c.title).where(lists.c.id == token.send_id))
        person = connection.execute(
            select(contacts.c.address_given, contacts.c.locale).where(contacts.c.address_hash == token.message_key)
        ).first()
    words = texts(request, person.locale if person else None)
    if title is None or person is None:
        return pages.note(words, words.nobody_title, words.nobody, status=410)
    intro = words.confirm_intro.format(list=title, address=masked(person.address_given))
    return pages.page("confirm", words, intro=intro)


def confirm(request: Request) -> Response:
    door = doors(request)
    token = door.token(request, TokenKind.CONFIRM)
    user_agent = request.headers.get("user-agent", "")[:150]
    source = f"confirmation mail, user agent {user_agent or 'not given'}"

    def work(connection: Connection) -> tuple[Answer, str | None, str]:
        person = connection.execute(  # locked: the same link pressed twice is one confirmation
            select(contacts.c.locale).where(contacts.c.address_hash == token.message_key).with_for_update()
        ).first()
        title = connection.scalar(select(lists.c.title).where(lists.c.id == token.send_id))
        if person is None or title is None:
            return Answer.NOBODY, None, ""
        answer = _confirm(
            connection, address_hash=token.message_key, list_id=token.send_id, source=source, ip=client_ip(request)
        )
        return answer, person.locale, title

    answer, locale, title = write_again(door.engine, work)
    return _say(texts(request, locale), answer, title)


def _confirm(connection: Connection, *, address_hash: bytes, list_id: int, source: str, ip: str | None) -> Answer:
    if _refused_since_request(connection, address_hash, list_id):
        return Answer.LEFT_SINCE
    result = consent.confirm(
        connection,
        address_hash=address_hash,
        list_id=list_id,
        method="confirmation-link",
        source=source,
        ip=ip,
        at=datetime.now(UTC),
    )
    if result is consent.ConsentResult.NO_CONTACT:
        return Answer.NOBODY
    return Answer.KEPT_OUT if result is consent.ConsentResult.KEPT_OUT else Answer.CONFIRMED


def _refused_since_request(connection: Connection, address_hash: bytes, list_id: int) -> bool:
    """Whether the person's last word on this list is a refusal: then an older link must not bring them back."""
    requested_at = connection.scalar(
        select(consent_events.c.occurred_at)
        .where(
            consent_events.c.address_hash == address_hash,
            consent_events.c.list_id == list_id,
            consent_events.c.action == ConsentAction.REQUESTED.value,
        )
        .order_by(consent_events.c.occurred_at.desc())
        .limit(1)
    )
    subscription = connection.execute(
        select(subscriptions.c.state, subscriptions.c.unsubscribed_at)
        .join(contacts, contacts.c.id == subscriptions.c.contact_id)
        .where(contacts.c.address_hash == address_hash, subscriptions.c.list_id == list_id)
    ).first()
    if requested_at is None:  # nobody asked; who is in stays in, who isn't must sign up
        return subscription is None or subscription.state != SubscriptionState.CONFIRMED.value
    refusals = connection.scalars(
        select(consent_events.c.occurred_at).where(
            consent_events.c.address_hash == address_hash,
            or_(consent_events.c.list_id == list_id, consent_events.c.list_id.is_(None)),
            consent_events.c.action.in_((ConsentAction.UNSUBSCRIBED.value, ConsentAction.COMPLAINED.value)),
        )
    ).all()
    times = [
        *refusals,
        *(b.refused_at for b in consent.active_barriers(connection, address_hash) if b.list_id in (0, list_id)),
    ]
    if subscription is not None and subscription.unsubscribed_at is not None:
        times.append(subscription.unsubscribed_at)
    return any(time >= requested_at for time in times)


def _say(words: Texts, answer: Answer, title: str) -> Response:
    if answer is Answer.CONFIRMED:
        return pages.note(words, words.confirmed_title, words.confirmed.format(list=title), mood="good")
    if answer is Answer.LEFT_SINCE:
        return pages.note(words, words.refused_title, words.refused_left.format(list=title), status=409, mood="sorry")
    if answer is Answer.KEPT_OUT:
        return pages.note(words, words.refused_title, words.refused_other.format(list=title), status=409, mood="sorry")
    return pages.note(words, words.nobody_title, words.nobody, status=410)
