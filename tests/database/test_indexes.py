"""Every query of the road finds its rows in the big tables by an index: the databases' own plans say so."""

import pprint
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, text

from mailer_lib.agent.ledger import Final
from mailer_lib.audience import catalogue, frequency, ranges, sampling, snapshot
from mailer_lib.audience.plan import Exclude, FrequencyCap, load_plan
from mailer_lib.contacts import attributes, consent, erasing, person
from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.import_options import ImportOptions
from mailer_lib.contacts.importer import import_contacts
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import (
    audit_log,
    consent_events,
    contacts,
    domain_suppressions,
    leases,
    rollups_hourly,
    shards,
    snapshots,
    subscriptions,
    suppressions,
)
from mailer_lib.dispatch import accounting, confirmation, lease, sends, watch
from mailer_lib.dispatch.tally import count
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, Outcome, SendState, ShardState, SubscriptionState, SuppressionReason
from mailer_lib.tokens import Token, TokenKind
from mailer_lib.web import people
from tests.audience.world import World as People
from tests.audience.world import contact_row, rule
from tests.database.query_plans import Access, accesses, recorded
from tests.dispatch.world import World, make_world

PEOPLE, SENDS, SHARDS = 6000, 40, 50
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)
EVERYWHERE = 0
# Tables that grow with people or with time, and the names that statements give them. The others have some hundred rows.
BIG = {
    "contacts", "subscriptions", "consent", "subscription", "consent_events", "suppressions", "domain_suppressions",
    "barred_address", "barred_domain", "shards", "leases", "rollups_hourly", "audit_log",
}  # fmt: skip
BY_HASH, BY_ID = "uq_contacts_address_hash", "PRIMARY"


def fill(world: World) -> None:
    """Of each big table enough for an index to be worth it."""
    town = People(world.engine, world.settings)
    hashes: list[bytes] = []
    with write(world.engine) as connection:
        rows = [
            {
                "id": n,
                **contact_row(town, address=f"p{n}@d{n % 500}.example"),
                "attributes": {"tier": f"tier {n % 300}"},
            }
            for n in range(1, PEOPLE + 1)
        ]
        hashes = [row["address_hash"] for row in rows]
        connection.execute(insert(contacts), rows)
        on_list = [
            {"contact_id": n, "list_id": world.list_id, "state": state, "updated_at": LONG_AGO}
            for n in range(1, PEOPLE + 1)
            for state in (SubscriptionState.PENDING if n % 200 == 0 else SubscriptionState.CONFIRMED,)
        ]
        connection.execute(insert(subscriptions), on_list)
        connection.execute(
            insert(consent_events),
            [
                {"address_hash": h, "list_id": world.list_id, "action": "confirmed", "method": "form",
                 "occurred_at": LONG_AGO, "recorded_at": LONG_AGO}
                for h in hashes
            ],
        )  # fmt: skip
        connection.execute(
            insert(suppressions),
            [
                {"address_hash": h, "list_id": EVERYWHERE, "reason": "imported", "created_at": LONG_AGO}
                for h in hashes[::2]
            ],
        )
        connection.execute(
            insert(domain_suppressions),
            [{"domain": f"bad{n}.example", "created_at": LONG_AGO} for n in range(2000)],
        )
        connection.execute(
            insert(audit_log),
            [{"at": LONG_AGO, "actor": "x", "action": "y", "object": f"o:{n}"} for n in range(PEOPLE)],
        )
    for edition in range(2, SENDS + 2):
        add_send(world, edition)


def add_send(world: World, edition: int) -> None:
    """A send of long ago, settled."""
    send_id = world.send(edition=str(edition), state=SendState.FINISHED, finished_at=LONG_AGO)
    with write(world.engine) as connection:
        made = insert(snapshots).values(
            send_id=send_id, phase=1, state="published", path=f"snapshots/spring-sale/{edition}/1", as_of=LONG_AGO,
            max_contact_id=PEOPLE, created_at=LONG_AGO,
        )  # fmt: skip
        snapshot_id = connection.execute(made).inserted_primary_key[0]
        rows = [
            {"snapshot_id": snapshot_id, "send_id": send_id, "number": n, "path": "p", "rows": 10, "sha256": "",
             "state": ShardState.SETTLED}
            for n in range(SHARDS)
        ]  # fmt: skip
        connection.execute(insert(shards), rows)
        numbered = select(shards.c.id).where(shards.c.snapshot_id == snapshot_id)
        connection.execute(
            insert(leases),
            [
                {"shard_id": shard_id, "send_id": send_id, "epoch": 1, "server_id": world.servers[0],
                 "state": "settled", "first_row": 0, "granted_through": 10, "created_at": LONG_AGO}
                for shard_id in connection.scalars(numbered).all()
            ],
        )  # fmt: skip
        connection.execute(
            insert(rollups_hourly),
            [
                {"send_id": send_id, "variant": 0, "provider": f"p{n}", "server_id": 1, "hour": LONG_AGO,
                 "metric": "injected", "count": 1}
                for n in range(100)
            ],
        )  # fmt: skip


def analyze(engine: Engine) -> None:
    with write(engine) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("ANALYZE"))
            return
        for table in (contacts, subscriptions, consent_events, suppressions, domain_suppressions, shards, leases,
                      rollups_hourly, audit_log):  # fmt: skip
            connection.execute(text(f"ANALYZE TABLE {table.name}")).all()


def hash_of(world: World, number: int) -> bytes:
    return world.settings.identity().address_hash(f"p{number}@d{number % 500}.example")


# --- the road ---------------------------------------------------------------------------------------------------------

Road = Callable[[World], object]
EVERYBODY: dict[str, Any] = {"combinator": "and", "rules": []}


def imports(world: World) -> None:
    file = world.settings.home / "again.csv"
    file.write_text("email\n" + "".join(f"p{n}@d{n % 500}.example\n" for n in range(100, 150)))
    import_contacts(world.engine, world.settings, file, ImportOptions("newsletter", SubscriptionState.CONFIRMED))


def writes(work: Callable[[Connection, World], object]) -> Road:
    def run(world: World) -> None:
        with write(world.engine) as connection:
            work(connection, world)

    return run


def asks(tree: Any) -> Road:
    """Its people, as a sample that is looked up at once."""

    def run(world: World) -> None:
        with (
            read(world.engine) as connection,
            sampling.picking(connection, world.settings, tree, catalogue.load(connection), now=now()) as picked,
        ):
            connection.execute(select(contacts.c.id).where(picked)).all()

    return run


def reads_a_range(world: World) -> None:
    with read(world.engine) as connection:
        (found,) = connection.execute(select(snapshots.c.path).where(snapshots.c.state == "building")).scalars()
        statement = ranges.people_statement(load_plan(building(world, found)), catalogue.load(connection))
        connection.execute(statement.where(contacts.c.id.between(1000, 1100))).all()


def counts_messages(world: World) -> None:
    """Of the class, for a cap: of sends that are under way, or ended within its days."""
    live = world.send(edition="rival")
    world.publish(live, [20] * 3)
    with read(world.engine) as connection:
        (found,) = connection.execute(select(snapshots.c.path).where(snapshots.c.state == "building")).scalars()
        plan = load_plan(building(world, found))
        exclude = Exclude(frequency_cap=FrequencyCap(messages=1, days=7, campaign_class="marketing"))
        capped = plan.model_copy(update={"inputs": plan.inputs.model_copy(update={"exclude": exclude})})
        counting = frequency.counting_of(connection, world.settings, capped)
    assert counting is not None and len(counting.shards) == 3


def building(world: World, published: str) -> Path:
    folder = world.settings.storage / published
    return folder.with_name(f".building-{folder.name}") / "plan.json"


def plan_everybody(world: World) -> None:
    snapshot.plan_snapshot(
        world.engine, world.settings, world.send(edition="range"), rules=EVERYBODY, list_id=world.list_id
    )


def leases_and_books(world: World) -> None:
    send_id = world.send(edition="live")
    world.publish(send_id, [20] * 3)
    slot = (send_id, world.servers[0], 0)
    taken = lease.take_lease(world.engine, *slot)
    assert taken is not None
    lease.extend_grant(world.engine, taken, 20)
    with read(world.engine) as connection:
        lease.leases_of_slot(connection, *slot)
        taken = lease.get_lease(connection, taken.id)
        lease.leases_of_send(connection, send_id)
        lease.unsettled_rows(connection, send_id)
        sends.phase_facts(connection, send_id)
    t_ms = round(now().timestamp() * 1000)
    finals = [Final(row, Outcome.INJECTED, 250, "", "", "1.1", 0, "gmail", t_ms, "") for row in range(20)]
    accounting.record_progress(world.engine, taken, 100, count(finals, lambda row: 0).tally)
    lease.settle_lease(world.engine, taken.id)
    other = lease.take_lease(world.engine, *slot)
    assert other is not None and lease.hand_back(world.engine, other)
    lease.has_unsettled_shards(world.engine, send_id)
    with read(world.engine) as connection:
        watch.settled_by_provider(connection, send_id)


ROAD: Mapping[str, tuple[Road, set[Access]]] = {
    "import looks the people of a batch up": (
        imports,
        {
            Access("contacts", BY_HASH),
            Access("subscriptions", BY_ID),
            Access("suppressions", "ix_suppressions_address"),
        },
    ),
    "a person leaves by hash": (
        writes(
            lambda c, w: consent.unsubscribe(
                c, address_hash=hash_of(w, 7), list_id=w.list_id, method="x", source=None, at=now()
            )
        ),
        {Access("contacts", BY_HASH), Access("suppressions", "ix_suppressions_address")},
    ),
    "a person is suppressed by hash": (
        writes(
            lambda c, w: consent.suppress(
                c, address_hash=hash_of(w, 9), reason=SuppressionReason.HARD_BOUNCE, source=None, at=now()
            )
        ),
        {Access("contacts", BY_HASH), Access("suppressions", "ix_suppressions_address")},
    ),
    "a person confirms": (
        writes(
            lambda c, w: consent.confirm(
                c, address_hash=hash_of(w, 200), list_id=w.list_id, method="x", source=None, at=now()
            )
        ),
        {Access("contacts", BY_HASH)},
    ),
    "everything known of a person": (
        writes(lambda c, w: person.look_up(c, address_hash=hash_of(w, 11), domain="bad11.example")),
        {
            Access("contacts", BY_HASH),
            Access("consent_events", "ix_consent_events_address"),
            Access("domain_suppressions", BY_ID),
        },
    ),
    "a person is erased": (
        writes(lambda c, w: erasing.erase_rows(c, normalise("p13@d13.example"), hash_of(w, 13), by="test", at=now())),
        {Access("contacts", BY_HASH), Access("consent_events", "ix_consent_events_address")},
    ),
    "a link names a contact": (
        writes(
            lambda c, w: people.person_of(
                c,
                w.settings,
                Token(TokenKind.CLICK, 1, 15, bytes(16), 1),
                people.SendFacts("spring-sale", "none", w.list_id, "", None),
            )
        ),
        {Access("contacts", BY_ID)},
    ),
    "running sends ask for new suppressions": (
        writes(lambda c, w: consent.active_suppressions_since(c, since=now(), list_id=w.list_id)),
        {
            Access("suppressions", "ix_suppressions_created"),
            Access("domain_suppressions", "ix_domain_suppressions_created"),
        },
    ),
    "a range of ids is read, with the reasons that bar": (
        reads_a_range,
        {
            Access("contacts", BY_ID),
            Access("consent", BY_ID),
            Access("suppressions", "ix_suppressions_address"),
            Access("barred_address", "ix_suppressions_address"),
            Access("barred_domain", BY_ID),
        },
    ),
    "messages of other sends for a frequency cap": (
        counts_messages,
        {Access("shards", "uq_shards_snapshot_id_number")},
    ),
    "confirmation mails that are due": (
        lambda world: list(confirmation._waiting(world.engine, world.list_id)),
        {Access("subscriptions", "ix_subscriptions_list_state"), Access("contacts", BY_ID)},
    ),
    "criteria by domain": (asks(rule("domain", "=", "d3.example")), {Access("contacts", "ix_contacts_domain")}),
    "criteria by provider": (asks(rule("provider", "=", "gmail")), {Access("contacts", "ix_contacts_provider")}),
    "criteria by an indexed attribute": (
        asks(rule("attribute.tier", "=", "tier 3")),
        {Access("contacts", "ix_attr_tier")},
    ),
    "leases, grants, roll-ups, books": (
        leases_and_books,
        {
            Access("shards", "ix_shards_send_state"),
            Access("leases", "ix_leases_send_state"),
            Access("shards", BY_ID),
            Access("rollups_hourly", BY_ID),
        },
    ),
    "who changed something": (
        writes(lambda c, w: c.execute(select(audit_log).where(audit_log.c.object == "o:77")).all()),
        {Access("audit_log", "ix_audit_log_object")},
    ),
}


def test_no_query_of_the_road_reads_a_big_table_whole(engine: Engine, settings: Settings) -> None:
    world = make_world(engine, settings)
    with write(engine) as connection:
        attributes.declare(connection, "tier", AttributeType.TEXT)
    fill(world)
    attributes.index(engine, "tier", actor="test")
    plan_everybody(world)
    analyze(engine)
    wrong: dict[str, Any] = {}
    for name, (run, expected) in ROAD.items():
        with recorded() as statements:
            run(world)
        with read(engine) as connection:
            found = [(access, s.text) for s in statements for access in accesses(connection, s)]
        whole = [(access.table, sql) for access, sql in found if access.index is None and access.table in BIG]
        missing = expected - {as_primary(access) for access, _ in found}
        if whole or missing:
            wrong[name] = {"read whole": whole, "expected": missing, "found": {access for access, _ in found}}
    assert not wrong, pprint.pformat(wrong, width=160)


def as_primary(access: Access) -> Access:
    """SQLite's own names for indexes that a key or a unique constraint needs."""
    named = {"sqlite_autoindex_contacts_1": BY_HASH, "sqlite_autoindex_shards_1": "uq_shards_snapshot_id_number"}
    if access.index in named:
        return Access(access.table, named[access.index])
    return Access(access.table, BY_ID) if (access.index or "").startswith("sqlite_autoindex") else access
