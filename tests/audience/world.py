"""A small world for the audience: contacts of the table, list ``newsletter``, one campaign and its sends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select

from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.attributes import declare
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.contacts.providers import provider_of
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import campaigns, contacts, sending_pools, sends, subscriptions
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, SendState, SubscriptionState

LONG_AGO = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
ATTRIBUTES = {
    "tier": AttributeType.TEXT,
    "city": AttributeType.TEXT,
    "points": AttributeType.NUMBER,
    "vip": AttributeType.BOOLEAN,
    "customer_since": AttributeType.DATE,
    "grade": AttributeType.ENUM,
    "interests": AttributeType.TEXT_LIST,
}
CHOICES = {"grade": ("a", "B", "Größe")}
EVERYBODY: dict[str, Any] = {"combinator": "and", "rules": []}
ON_THE_LIST: dict[str, Any] = {
    "combinator": "and",
    "rules": [{"field": "list", "operator": "=", "value": "newsletter"}],
}


def rule(field: str, operator: str, value: Any = None) -> dict[str, Any]:
    """A tree of one rule."""
    return {"combinator": "and", "rules": [{"field": field, "operator": operator, "value": value}]}


@dataclass
class World:
    engine: Engine
    settings: Settings
    lists: dict[str, int] = field(default_factory=dict)
    campaign_id: int = 0

    @classmethod
    def make(cls, engine: Engine, settings: Settings) -> "World":
        world = cls(engine, settings)
        with write(engine) as connection:
            for name in ("newsletter", "offers"):
                world.lists[name] = ensure_list(connection, name, name.title())
            for key, type_ in ATTRIBUTES.items():
                declare(connection, key, type_, choices=CHOICES.get(key, ()))
            pool = connection.execute(insert(sending_pools).values(name="pool-of-audience", created_at=LONG_AGO))
            for name in ("welcome", "spring-sale"):
                made = connection.execute(
                    insert(campaigns).values(
                        name=name,
                        definition={},
                        list_id=world.newsletter,
                        pool_id=pool.inserted_primary_key[0],
                        created_at=LONG_AGO,
                        updated_at=LONG_AGO,
                        updated_by="test",
                    )
                )
            world.campaign_id = made.inserted_primary_key[0]  # of spring-sale
        return world

    @property
    def newsletter(self) -> int:
        return self.lists["newsletter"]

    def hash_of(self, address: str) -> bytes:
        return self.settings.identity().address_hash(normalise(address).normalised)

    def add_send(self, edition: str = "1") -> int:
        row = {"campaign_id": self.campaign_id, "edition": edition, "mode": "send", "state": SendState.PLANNED}
        with write(self.engine) as connection:
            made = connection.execute(insert(sends).values({**row, "created_at": LONG_AGO}))
            return int(made.inserted_primary_key[0])

    def add(self, address: str, *, state: str | None = "confirmed", **more: Any) -> int:
        """One contact, on the list ``newsletter`` in ``state`` (None: not on it). Returns the id."""
        with write(self.engine) as connection:
            return add_contact(connection, self, address, on={"newsletter": state} if state else {}, **more)

    def add_many(self, count: int, make: Callable[[int], Mapping[str, Any]]) -> None:
        """``count`` confirmed contacts in one transaction; ``make`` gives the columns of each, ``address`` at least."""
        with write(self.engine) as connection:
            first = (connection.scalar(select(contacts.c.id).order_by(contacts.c.id.desc()).limit(1)) or 0) + 1
            rows = [{"id": first + n, **contact_row(self, **make(n))} for n in range(count)]
            connection.execute(insert(contacts), rows)
            subscribed = [
                {
                    "contact_id": row["id"],
                    "list_id": self.newsletter,
                    "state": SubscriptionState.CONFIRMED,
                    "updated_at": LONG_AGO,
                }
                for row in rows
            ]
            connection.execute(insert(subscriptions), subscribed)

    def remove(self, contact_id: int) -> None:
        with write(self.engine) as connection:
            connection.execute(delete(contacts).where(contacts.c.id == contact_id))

    def fetch(self, statement: Any) -> list[Any]:
        with read(self.engine) as connection:
            return list(connection.execute(statement).all())


def contact_row(world: World, *, address: str, **more: Any) -> dict[str, Any]:
    parsed = normalise(address)
    row = {
        "address_given": parsed.given,
        "address": parsed.normalised,
        "address_hash": world.settings.identity().address_hash(parsed.normalised),
        "domain": parsed.domain,
        "provider": provider_of(parsed.domain),
        "given_name": None,
        "family_name": None,
        "locale": None,
        "timezone": None,
        "attributes": {},
        "state": "active",
        "created_at": LONG_AGO,
        "updated_at": LONG_AGO,
    }
    return {**row, **more}


def add_contact(
    connection: Connection,
    world: World,
    address: str,
    *,
    on: Mapping[str, str | Mapping[str, Any]] | None = None,
    **more: Any,
) -> int:
    """``on``: by list, the state of the subscription, or its columns."""
    made = connection.execute(insert(contacts).values(contact_row(world, address=address, **more)))
    contact_id = int(made.inserted_primary_key[0])
    for name, state in (on or {}).items():
        row = {"contact_id": contact_id, "list_id": world.lists[name], "updated_at": LONG_AGO}
        columns = {"state": state} if isinstance(state, str) else state
        connection.execute(insert(subscriptions).values({**row, **columns}))
    return contact_id
