"""What is known of a person is told whole, and of nobody else."""

import json

import pytest
from sqlalchemy import insert, select

from mailer_lib.contacts.consent import unsubscribe
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, contacts
from mailer_lib.dispatch.dossier import dossier
from mailer_lib.dispatch.erasure import erase
from mailer_lib.terms import Outcome
from tests.dispatch.ledgers import deferral, final, intents, leased, write_ledger
from tests.dispatch.world import World

P1 = "p1@outlook.example"


def sent(world: World) -> None:
    """P1 was deferred once, then injected; they clicked; then they left."""
    send_id = world.send()
    world.publish(send_id, [3])
    lease = leased(world, send_id)
    records = [*intents(world, lease, [1]), deferral(1), *intents(world, lease, range(3))]
    keys = {record.row: record.message_key for record in intents(world, lease, range(3))}  # type: ignore[union-attr]
    records += [final(0, Outcome.FAILED), final(1, text="OK"), final(2)]
    write_ledger(world, lease, records)
    identity = world.settings.identity()
    row = {
        "address_given": "P1@outlook.example", "address": P1, "address_hash": identity.address_hash(P1),
        "domain": "outlook.example", "provider": "outlook", "given_name": "Pia", "attributes": {"city": "Linz"},
        "created_at": now(), "updated_at": now(),
    }  # fmt: skip
    with write(world.engine) as connection:
        connection.execute(insert(contacts).values(row))
        unsubscribe(
            connection, address_hash=identity.address_hash(P1), list_id=world.list_id, method="form", source=None,
            ip="192.0.2.7", at=now(),
        )  # fmt: skip
    day = world.settings.storage / "events" / "raw" / "2026-11-24"
    day.mkdir(parents=True)
    events = [
        {"t": 1795490000.1, "kind": "click", "message_key": keys[n].hex(), "link": n, "agent": "person"} for n in (0, 1)
    ]
    (day / "1.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"torn')


@pytest.mark.usefixtures("any_store")
def test_contact_consent_messages_and_events(world: World) -> None:
    sent(world)
    found = dossier(world.engine, world.settings, "P1@Outlook.example", actor="ann")
    assert json.loads(json.dumps(found)) == found
    assert (found["contact"]["given_name"], found["contact"]["attributes"]) == ("Pia", {"city": "Linz"})
    assert [(event["action"], event["ip"]) for event in found["consent"]] == [("unsubscribed", "192.0.2.7")]
    assert [(row["list"], row["reason"]) for row in found["suppressions"]] == [("newsletter", "unsubscribed")]
    (message,) = found["messages"]
    assert (message["send"], message["outcome"], message["deferrals"]) == ("spring-sale#1", "injected", 1)
    assert message["frozen"]["address"] == P1 and message["reply"] == "250 2.0.0 OK"
    assert [(event["kind"], event["link"], event["send"]) for event in found["events"]] == [
        ("click", 1, "spring-sale#1")
    ]
    assert "p0@" not in json.dumps(found) and "p2@" not in json.dumps(found)
    with read(world.engine) as connection:
        (row,) = connection.execute(select(audit_log)).all()
    assert row.action == "contacts.export" and "p1@" not in repr(row)


def test_after_the_erasure_only_keyed_facts_are_left(sqlite_world: World) -> None:
    world = sqlite_world
    sent(world)
    erase(world.engine, world.settings, P1, actor="ann")
    found = dossier(world.engine, world.settings, P1, actor="ann")
    assert found["contact"] is None and found["messages"][0]["frozen"] is None
    assert found["messages"][0]["outcome"] == "injected"
    assert [event["ip"] for event in found["consent"]] == [None]
    assert [row["reason"] for row in found["suppressions"]] == ["unsubscribed", "erased"]


def test_of_a_stranger_nothing_is_known(sqlite_world: World) -> None:
    sent(sqlite_world)
    found = dossier(sqlite_world.engine, sqlite_world.settings, "who@example.org", actor="ann")
    empty = ("subscriptions", "consent", "suppressions", "messages", "left_out", "events")
    assert found["contact"] is None and not any(found[name] for name in empty)
