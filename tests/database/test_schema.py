"""What every table promises, on both databases."""

import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import DatabaseError, IntegrityError, StatementError

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import attribute_types, audit_log, consent_events, contacts, lists, subscriptions
from mailer_lib.settings import Settings

AT = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)


def _contact(address: str) -> dict[str, object]:
    return {
        "address_given": address,
        "address": address,
        "address_hash": hashlib.blake2b(address.encode(), digest_size=16).digest(),
        "domain": address.rsplit("@", 1)[1],
        "provider": "other",
        "attributes": {"city": "Ålesund", "points": 3, "vip": True},
        "created_at": AT,
        "updated_at": AT,
    }


# --- times ------------------------------------------------------------------------------------------------------------


@given(moment=st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2199, 1, 1), timezones=st.timezones()))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_time_comes_back_as_the_same_moment_in_utc_to_the_microsecond(engine: Engine, moment: datetime) -> None:
    with write(engine) as connection:
        connection.execute(delete(attribute_types))
        connection.execute(insert(attribute_types).values(key="k", type="text", created_at=moment))
        found = connection.execute(select(attribute_types.c.created_at)).scalar_one()
    assert found == moment.astimezone(UTC)  # across zones Python calls no moment in a gap of summer time equal
    assert found.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    with write(engine) as connection, pytest.raises(StatementError, match="without a time zone"):
        connection.execute(insert(attribute_types).values(key="k", type="text", created_at=datetime(2026, 1, 1)))


def test_times_are_compared_as_moments(engine: Engine) -> None:
    later_by_the_clock_on_the_wall = AT.astimezone(timezone(timedelta(hours=5))) - timedelta(minutes=1)
    with write(engine) as connection:
        connection.execute(insert(attribute_types).values(key="k", type="text", created_at=AT))
        count = select(func.count()).where(attribute_types.c.created_at > later_by_the_clock_on_the_wall)
        assert connection.execute(count).scalar_one() == 1


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["muller@example.org", "MÜLLER@example.org"])
def test_addresses_differ_by_every_byte(engine: Engine, other: str) -> None:
    with write(engine) as connection:
        connection.execute(insert(contacts), [_contact("müller@example.org"), _contact(other)])
    with read(engine) as connection:
        found = connection.execute(select(contacts.c.address).where(contacts.c.address == other)).scalars().all()
    assert found == [other]


def test_the_same_address_twice_is_refused(engine: Engine) -> None:
    with write(engine) as connection:
        connection.execute(insert(contacts), _contact("ann@example.org"))
    with pytest.raises(IntegrityError), write(engine) as connection:
        connection.execute(insert(contacts), _contact("ann@example.org"))


def test_a_row_comes_back_as_it_went_in(engine: Engine) -> None:
    wanted = _contact("åse@bücher.example") | {"given_name": "Åse 🌿", "family_name": 'O\'Neil \\ "x"'}
    with write(engine) as connection:
        connection.execute(insert(contacts), wanted)
    with read(engine) as connection:
        found = connection.execute(select(contacts)).mappings().one()
    assert {key: found[key] for key in wanted} == wanted


# --- consent ----------------------------------------------------------------------------------------------------------


def _consent(connection_engine: Engine) -> None:
    with write(connection_engine) as connection:
        connection.execute(
            insert(consent_events).values(
                address_hash=b"a" * 16, action="confirmed", occurred_at=AT, recorded_at=AT, method="form"
            )
        )


@pytest.mark.parametrize(
    "statement",
    [
        update(consent_events).values(method="never"),
        update(consent_events).values(address_hash=b"b" * 16),
        update(consent_events).values(method="FORM"),
        update(consent_events).values(ip="192.0.2.1"),
        update(consent_events).values(ip=None, method="never"),
        delete(consent_events),
        text(
            "REPLACE INTO consent_events (id, address_hash, action, occurred_at, recorded_at, method) "
            "SELECT id, address_hash, 'unsubscribed', occurred_at, recorded_at, method FROM consent_events"
        ),
    ],
    ids=["update", "update-key", "update-case", "update-ip", "more-than-the-ip", "delete", "replace"],
)
def test_a_consent_event_can_be_neither_changed_nor_deleted(engine: Engine, statement: object) -> None:
    _consent(engine)
    with pytest.raises(DatabaseError, match="append-only"), write(engine) as connection:
        connection.execute(statement)  # type: ignore[call-overload]
    with read(engine) as connection:
        assert connection.execute(select(consent_events.c.action)).scalars().all() == ["confirmed"]


def test_only_the_ip_can_be_taken_out_of_a_consent_event(engine: Engine) -> None:
    with write(engine) as connection:
        row = {"address_hash": b"a" * 16, "action": "confirmed", "occurred_at": AT, "recorded_at": AT, "method": "form"}
        connection.execute(insert(consent_events).values(**row, ip="192.0.2.1", wording="News, please"))
        connection.execute(update(consent_events).values(ip=None))
    with read(engine) as connection:
        found = connection.execute(select(consent_events.c.ip, consent_events.c.wording)).one()
    assert tuple(found) == (None, "News, please")


def test_a_foreign_key_is_held(engine: Engine) -> None:
    with pytest.raises(IntegrityError), write(engine) as connection:
        made = connection.execute(insert(contacts).values(_contact("ann@example.org"))).inserted_primary_key
        row = {"contact_id": made[0], "list_id": 99, "state": "confirmed", "updated_at": AT}
        connection.execute(insert(subscriptions).values(row))


# --- transactions -----------------------------------------------------------------------------------------------------


def test_an_exception_takes_everything_back(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), write(engine) as connection:
        connection.execute(insert(lists).values(name="newsletter", title="News", created_at=now()))
        raise ZeroDivisionError
    with read(engine) as connection:
        assert connection.execute(select(func.count()).select_from(lists)).scalar_one() == 0


def test_a_reader_sees_what_others_committed_in_the_meantime(engine: Engine) -> None:
    """A slot that polls must see a pause; every read is a transaction of its own."""
    count = select(func.count()).select_from(lists)
    with read(engine) as connection:
        assert connection.execute(count).scalar_one() == 0
    with write(engine) as connection:
        connection.execute(insert(lists).values(name="newsletter", title="News", created_at=now()))
    with read(engine) as connection:
        assert connection.execute(count).scalar_one() == 1


WRITER = """
import sys
from sqlalchemy import insert, select, update
from mailer_lib.database.audit import record
from mailer_lib.database.engine import open_engine, write
from mailer_lib.database.schema import sending_pools, provider_limits
from mailer_lib.settings import load_settings

engine = open_engine(load_settings().url)
sys.stdin.readline()  # all start together
for number in range(int(sys.argv[2])):
    with write(engine) as connection:
        # Read, then write what was read: loses counts unless writers wait for each other.
        row = select(provider_limits.c.per_hour).where(provider_limits.c.provider == "gmail").with_for_update()
        seen = connection.execute(row).scalar_one()
        connection.execute(update(provider_limits).values(per_hour=seen + 1))
        record(connection, sys.argv[1], "count", f"row:{number}")
"""


def test_four_processes_write_at_once_and_nothing_is_lost(engine: Engine, settings: Settings) -> None:
    from mailer_lib.database.schema import provider_limits, sending_pools

    writers, rows = 4, 25
    with write(engine) as connection:
        connection.execute(insert(sending_pools).values(id=1, name="main", created_at=AT))
        connection.execute(insert(provider_limits).values(pool_id=1, provider="gmail", per_hour=0))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"writer-{n}", str(rows)], stdin=subprocess.PIPE, env=os.environ
        )
        for n in range(writers)
    ]
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.close()
        assert [process.wait(120) for process in processes] == [0] * writers
    finally:
        for process in processes:
            process.kill()
            process.wait()
    with read(engine) as connection:
        assert connection.execute(select(provider_limits.c.per_hour)).scalar_one() == writers * rows
        by_writer = select(audit_log.c.actor, func.count()).group_by(audit_log.c.actor)
        assert sorted(connection.execute(by_writer).all()) == [(f"writer-{n}", rows) for n in range(writers)]
