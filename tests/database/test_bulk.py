"""The fast paths give the same on both databases."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection, Engine, insert, select

from mailer_lib.database import bulk
from mailer_lib.database.bulk_load import add_contacts, loading
from mailer_lib.database.engine import now, open_engine, read, write
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


def loaded(addresses: list[str]) -> dict[str, object]:
    rows = zip(*(contact(address, None) for address in addresses), strict=True)
    columns: dict[str, object] = {name: list(values) for name, values in zip(bulk.CONTACT_COLUMNS, rows, strict=True)}
    return columns


def ids_by_address(connection: Connection) -> dict[str, int]:
    return {row.address: row.id for row in connection.execute(select(contacts.c.address, contacts.c.id))}


def test_the_ids_of_loaded_contacts_are_known_without_reading_them(mariadb_url: str) -> None:
    with loading(open_engine(mariadb_url)) as quick, write(quick) as connection:
        add_contacts(connection, loaded(["x@x.org"]))
        given = add_contacts(connection, loaded(["c@x.org", "a@x.org", "b@x.org"]))
        stored = ids_by_address(connection)
    assert given is not None
    assert [*given] == [stored[address] for address in ("c@x.org", "a@x.org", "b@x.org")]


def test_ids_with_gaps_have_to_be_looked_up(mariadb_url: str) -> None:
    """As where several primaries share the numbers, or another writer's row came in between."""
    with loading(open_engine(mariadb_url)) as quick, write(quick) as connection:
        connection.exec_driver_sql("SET SESSION auto_increment_increment = 2")
        assert add_contacts(connection, loaded(["a@x.org", "b@x.org"])) is None
        assert len(ids_by_address(connection)) == 2


def test_somebody_who_is_there_already_has_to_be_looked_up(mariadb_url: str) -> None:
    with loading(open_engine(mariadb_url)) as quick, write(quick) as connection:
        add_contacts(connection, loaded(["a@x.org"]))
        assert add_contacts(connection, loaded(["a@x.org", "b@x.org"])) is None
        assert {*ids_by_address(connection)} == {"a@x.org", "b@x.org"}
