"""The fast paths give the same on both databases."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, insert, select

from mailer_lib.database import bulk
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import contacts, lists, subscriptions

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEFORE, AFTER = NOON - timedelta(hours=1), NOON + timedelta(hours=1)


def contact(address: str, given_name: str | None, state: str = "active") -> tuple[object, ...]:
    moment = bulk.moment_text(NOON)
    return (
        address, address, address.encode().ljust(16, b"\0")[:16], "x.org", "other", given_name, None, None, None,
        '{"city": "Zürich"}', state, moment, moment,
    )  # fmt: skip


def test_a_time_is_stored_as_the_column_type_stores_it(engine: Engine) -> None:
    moment = datetime(2026, 3, 1, 13, 0, 0, 123, tzinfo=timezone(timedelta(hours=1)))
    assert bulk.moment_text(moment) == "2026-03-01 12:00:00.000123"
    assert bulk.moment_text(None) is None
    with write(engine) as connection:
        bulk.upsert_contacts(connection, [contact("a@x.org", "Ann")])
        assert connection.scalar(select(contacts.c.created_at)) == NOON
        assert connection.scalar(select(contacts.c.id).where(contacts.c.created_at == NOON)) is not None


def test_contacts_are_inserted_or_updated_but_for_state(engine: Engine) -> None:
    with write(engine) as connection:
        bulk.upsert_contacts(connection, [contact("a@x.org", "Ann"), contact("b@x.org", None)])
        bulk.upsert_contacts(connection, [contact("a@x.org", "Anna", state="bounced")])
        rows = connection.execute(select(contacts).order_by(contacts.c.address)).all()
    assert [(row.address, row.given_name, row.state) for row in rows] == [
        ("a@x.org", "Anna", "active"), ("b@x.org", None, "active")
    ]  # fmt: skip
    assert rows[0].attributes == {"city": "Zürich"}


@pytest.mark.parametrize(
    ("unsubscribed_at", "confirmed_at", "state"),
    [
        (AFTER, NOON, "unsubscribed"),
        (NOON, NOON, "unsubscribed"),
        (BEFORE, NOON, "confirmed"),
        (BEFORE, None, "unsubscribed"),
    ],
)
def test_who_left_meanwhile_stays_out_unless_the_consent_is_newer(
    engine: Engine, unsubscribed_at: datetime, confirmed_at: datetime | None, state: str
) -> None:
    """The import has looked before; what it writes must not undo a refusal that was committed since."""
    with write(engine) as connection:
        bulk.upsert_contacts(connection, [contact("a@x.org", None)])
        person = connection.scalar(select(contacts.c.id))
        one = connection.execute(insert(lists).values(name="n", title="N", created_at=now())).inserted_primary_key[0]  # type: ignore[index]
        connection.execute(
            insert(subscriptions).values(
                contact_id=person, list_id=one, state="unsubscribed", unsubscribed_at=unsubscribed_at, updated_at=now()
            )
        )
        row = (person, one, "confirmed", "file", bulk.moment_text(confirmed_at), None, bulk.moment_text(now()))
        bulk.upsert_subscriptions(connection, [row])
    with read(engine) as connection:
        found = connection.execute(select(subscriptions)).one()
    assert (found.state, found.unsubscribed_at, found.confirmed_at) == (state, unsubscribed_at, confirmed_at)


def test_times_of_a_subscription_only_move_forward(engine: Engine) -> None:
    with write(engine) as connection:
        bulk.upsert_contacts(connection, [contact("a@x.org", None)])
        person = connection.scalar(select(contacts.c.id))
        one = connection.execute(insert(lists).values(name="n", title="N", created_at=now())).inserted_primary_key[0]  # type: ignore[index]
        for moment in (NOON, AFTER, BEFORE):
            row = (person, one, "confirmed", "file", bulk.moment_text(moment), None, bulk.moment_text(now()))
            bulk.upsert_subscriptions(connection, [row])
        assert connection.scalar(select(subscriptions.c.confirmed_at)) == AFTER


def test_nothing_to_write_is_no_statement(sqlite_engine: Engine) -> None:
    with write(sqlite_engine) as connection:
        bulk.upsert_contacts(connection, [])
        bulk.upsert_subscriptions(connection, [])
        bulk.insert_consent_events(connection, [])
