"""The schedule against both databases: what is due is found, what is too late is marked, once."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, campaigns, lists, sending_pools, sends
from mailer_lib.dispatch.schedule import due_now, expire_overdue
from mailer_lib.terms import SendMode, SendState

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def campaign(engine):
    """Makes a campaign row; returns its id."""
    with write(engine) as connection:
        list_id = connection.execute(insert(lists).values(name="l", title="L", created_at=now())).inserted_primary_key[
            0
        ]
        pool_id = connection.execute(insert(sending_pools).values(name="p", created_at=now())).inserted_primary_key[0]

    def make(name: str, *, expires_after: str | None = None, **columns) -> int:
        definition = {
            "name": name,
            "list": "l",
            "criteria": "c",
            "from": {"address": "a@example.org"},
            "subject": "s",
            "template": {"kind": "html", "name": name},
            "sending_domain": "example.org",
        }
        if expires_after:
            definition["expires_after"] = expires_after
        row = {"name": name, "definition": definition, "list_id": list_id, "pool_id": pool_id, "updated_by": "t"}
        row |= {"created_at": NOON - timedelta(days=30), "updated_at": NOON - timedelta(days=30)}
        with write(engine) as connection:
            return connection.execute(insert(campaigns).values(row | columns)).inserted_primary_key[0]

    return make


def send_row(engine, campaign_id: int, **columns) -> None:
    values = {"campaign_id": campaign_id, "edition": "1", "mode": SendMode.SEND, "state": SendState.PLANNED}
    with write(engine) as connection:
        connection.execute(insert(sends).values(values | {"created_at": NOON} | columns))


def states(engine) -> dict[str, str]:
    with read(engine) as connection:
        rows = connection.execute(select(campaigns.c.name, sends.c.edition, sends.c.state).join_from(sends, campaigns))
        return {f"{name}#{edition}": state for name, edition, state in rows}


def test_what_is_due_is_found_until_its_send_exists(engine, campaign):
    one = campaign("sale", starts_at=NOON)
    campaign("weekly", cron="0 9 * * TUE", timezone="Europe/Oslo")
    campaign("by-hand")
    before = due_now(engine, NOON - timedelta(hours=5))
    assert [(d.campaign, d.edition) for d in before] == [("weekly", "2026-11-17T0900")]
    assert [(d.campaign, d.edition) for d in due_now(engine, NOON)] == [("weekly", "2026-11-24T0900"), ("sale", "1")]
    send_row(engine, one)
    assert [d.campaign for d in due_now(engine, NOON)] == ["weekly"]


def test_a_slot_that_nobody_started_in_time_expires_once_and_is_audited(engine, campaign):
    campaign("flash", starts_at=NOON, expires_after="2h")
    late = NOON + timedelta(hours=2)
    assert due_now(engine, late) == []
    assert [sentence.split(":")[0] for sentence in expire_overdue(engine, late)] == ["flash#1"]
    assert expire_overdue(engine, late) == []
    assert states(engine) == {"flash#1": "expired"}
    with read(engine) as connection:
        assert connection.scalars(select(audit_log.c.object)).all() == ["send:flash#1"]


@pytest.mark.parametrize(
    ("columns", "after"),
    [
        ({"state": SendState.AWAITING_APPROVAL}, "expired"),
        ({"state": SendState.AWAITING_APPROVAL, "claim": "airflow:x"}, "awaiting-approval"),  # its run ends it
        ({"state": SendState.RUNNING, "started_at": NOON}, "running"),
        ({"state": SendState.FINISHED}, "finished"),
        ({"state": SendState.PLANNED, "expires_at": None}, "planned"),
    ],
)
def test_a_send_that_waited_too_long_expires(engine, campaign, columns, after):
    send_row(engine, campaign("sale"), **{"expires_at": NOON} | columns)
    expire_overdue(engine, NOON + timedelta(seconds=1))
    assert states(engine) == {"sale#1": after}
