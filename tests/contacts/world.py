"""A small world for the tests of contacts: one list, the shop's attributes, and short ways to look at tables."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from mailer_lib.contacts import attributes
from mailer_lib.contacts.import_options import ImportOptions
from mailer_lib.contacts.importer import ImportReport, import_contacts
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import consent_events, contacts, subscriptions, suppressions
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, SubscriptionState

SHOP = {
    "city": AttributeType.TEXT, "customer_since": AttributeType.DATE, "tier": AttributeType.TEXT,
    "points": AttributeType.NUMBER, "favourite_category": AttributeType.TEXT, "vip": AttributeType.BOOLEAN,
}  # fmt: skip


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass
class World:
    engine: Engine
    settings: Settings
    list_id: int

    @classmethod
    def make(cls, engine: Engine, settings: Settings) -> "World":
        with write(engine) as connection:
            for key, type_ in SHOP.items():
                attributes.declare(connection, key, type_)
            ensure_list(connection, "other", "Other")
            return cls(engine, settings, ensure_list(connection, "newsletter", "Fjord & Fern News"))

    def key(self, normalised: str) -> bytes:
        return self.settings.identity().address_hash(normalised)

    def do(self, function: Callable[..., Any], address: str | None = None, **values: Any) -> Any:
        """Call a function of ``contacts.consent`` in a transaction of its own."""
        if address is not None:
            values["address_hash"] = self.key(address)
        with write(self.engine) as connection:
            return function(connection, **values)

    def load(self, path: Path, text: str | None = None, **options: Any) -> ImportReport:
        if text is not None:
            path.write_text(text, encoding=options.get("encoding", "utf-8"))
        options.setdefault("consent", SubscriptionState.CONFIRMED)
        return import_contacts(
            self.engine, self.settings, path, ImportOptions(**({"list_name": "newsletter"} | options))
        )

    def subscription(self, address: str, list_id: int | None = None) -> str | None:
        s = subscriptions.c
        query = (
            select(s.state)
            .join_from(subscriptions, contacts, s.contact_id == contacts.c.id)
            .where(contacts.c.address == address, s.list_id == (list_id or self.list_id))
        )
        with read(self.engine) as connection:
            state: str | None = connection.scalar(query)
        return state

    def contact(self, address: str) -> Any:
        with read(self.engine) as connection:
            return connection.execute(select(contacts).where(contacts.c.address == address)).one_or_none()

    def evidence(self, address: str) -> list[tuple[str, datetime]]:
        e = consent_events.c
        query = select(e.action, e.occurred_at).where(e.address_hash == self.key(address)).order_by(e.id)
        with read(self.engine) as connection:
            return [(row.action, row.occurred_at) for row in connection.execute(query)]

    def active(self, address: str) -> list[tuple[str, int]]:
        s = suppressions.c
        query = (
            select(s.reason, s.list_id).where(s.address_hash == self.key(address), s.lifted_at.is_(None)).order_by(s.id)
        )
        with read(self.engine) as connection:
            return [(row.reason, row.list_id) for row in connection.execute(query)]

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """All that imports write, without ids and the times of writing, in an order of its own."""
        c, s, e, b = contacts.c, subscriptions.c, consent_events.c, suppressions.c
        queries = {
            "contacts": select(
                c.address_given, c.address, c.address_hash, c.domain, c.provider, c.given_name, c.family_name, c.locale,
                c.timezone, c.attributes, c.state,
            ),
            "subscriptions": select(
                c.address, s.list_id, s.state, s.source, s.confirmed_at, s.unsubscribed_at
            ).join_from(contacts, subscriptions, c.id == s.contact_id),
            "consent": select(e.address_hash, e.list_id, e.action, e.occurred_at, e.method, e.source, e.wording, e.ip),
            "suppressions": select(b.address_hash, b.list_id, b.reason, b.refused_at, b.lifted_at.is_(None)),
        }  # fmt: skip
        with read(self.engine) as connection:
            return {
                name: sorted((tuple(row) for row in connection.execute(query)), key=repr)
                for name, query in queries.items()
            }
