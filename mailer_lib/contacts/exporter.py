"""Contacts as a file that ``contacts import`` takes again: import(export(x)) = x, as far as an import can say it.

With a list, that is everybody whose subscription to it is confirmed, with the evidence of that consent. Who is
suppressed is left out: the suppression can't travel in the file, and the place where it is imported would mail them.
Whoever waits for confirmation, or has left, has no consent that a file could bring.
"""

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select

from mailer_lib.contacts.attributes import ITEM_SEPARATOR, declared
from mailer_lib.contacts.columns import Field
from mailer_lib.contacts.precedence import EVERYWHERE
from mailer_lib.database.schema import consent_events, contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.terms import ConsentAction, SubscriptionState

PAGE_ROWS = 2000
HEADERS = {Field.ADDRESS: "email"} | {field: field.value for field in Field if field is not Field.ADDRESS}
_CONTACT_FIELDS = (Field.GIVEN_NAME, Field.FAMILY_NAME, Field.LOCALE, Field.TIMEZONE)


def export_header(connection: Connection) -> list[str]:
    """The columns: every field that an import knows, then every declared attribute by its key."""
    return [*HEADERS.values(), *declared(connection)]


def export_rows(
    connection: Connection,
    *,
    condition: ColumnElement[bool] | None = None,
    list_id: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[list[str]]:
    """A row of texts for each contact, in the order of ``export_header``, by contact id; a page at a time in memory.

    Args:
        connection: of ``database.engine.snapshot``, so that all pages see the same moment.
        condition: on ``contacts``; None takes everybody.
        list_id: only who is confirmed for this list and not suppressed, with the evidence. None: without consent.
    """
    keys = list(declared(connection))
    last_id, done = 0, 0
    while True:
        page = connection.execute(_page(condition, list_id, last_id)).all()
        if not page:
            return
        evidence = _evidence(connection, list_id, page) if list_id is not None else {}
        for row in page:
            consent = evidence.get(bytes(row.address_hash), ("", "", "", "")) if list_id is not None else ("",) * 4
            fields = (getattr(row, field.value) or "" for field in _CONTACT_FIELDS)
            yield [row.address_given, *fields, *consent, *(cell(row.attributes.get(key)) for key in keys)]
        last_id = page[-1].id
        done += len(page)
        if progress is not None:
            progress(done)


def _page(condition: ColumnElement[bool] | None, list_id: int | None, last_id: int) -> Any:
    c, s = contacts.c, subscriptions.c
    columns = [
        c.id, c.address_hash, c.address_given, c.given_name, c.family_name, c.locale, c.timezone, c.attributes,
    ]  # fmt: skip
    conditions = [c.id > last_id] + ([condition] if condition is not None else [])
    if list_id is None:
        return select(*columns).where(*conditions).order_by(c.id).limit(PAGE_ROWS)
    b = suppressions.c
    suppressed = exists().where(
        b.address_hash == c.address_hash, b.lifted_at.is_(None), or_(b.list_id == EVERYWHERE, b.list_id == list_id)
    )
    barred = exists().where(domain_suppressions.c.domain == c.domain)
    return (
        select(*columns, s.confirmed_at, s.source)
        .join_from(contacts, subscriptions, and_(s.contact_id == c.id, s.list_id == list_id))
        .where(*conditions, s.state == SubscriptionState.CONFIRMED.value, ~suppressed, ~barred)
        .order_by(c.id)
        .limit(PAGE_ROWS)
    )


def _evidence(connection: Connection, list_id: int, page: Sequence[Any]) -> dict[bytes, tuple[str, str, str, str]]:
    """(at, source, wording, ip) of the consent that each subscription rests on."""
    people = {bytes(row.address_hash): row for row in page}
    e = consent_events.c
    query = (
        select(e.address_hash, e.occurred_at, e.source, e.wording, e.ip)
        .where(
            e.address_hash.in_(list(people)), e.list_id == list_id, e.action == ConsentAction.CONFIRMED.value
        )
        .order_by(e.id)
    )  # fmt: skip
    found: dict[bytes, tuple[str, str, str, str]] = {}
    for event in connection.execute(query):
        key = bytes(event.address_hash)
        at = people[key].confirmed_at
        if at is None or at == event.occurred_at:
            when = at.isoformat() if at is not None else ""
            found[key] = (when, event.source or "", event.wording or "", event.ip or "")
    for key, row in people.items():
        if key not in found:
            found[key] = (
                row.confirmed_at.isoformat() if row.confirmed_at is not None else "",
                row.source or "",
                "",
                "",
            )
    return found


def cell(value: Any) -> str:
    """A stored attribute as the text that ``attributes`` reads it from."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ITEM_SEPARATOR.join(value) or ITEM_SEPARATOR
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)
