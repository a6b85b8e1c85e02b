"""Everything that is known of one address, for `contacts show`: what a person may ask for (GDPR Art. 15)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from mailer_lib.contacts.consent import active_barriers
from mailer_lib.contacts.precedence import EVERYWHERE, Barrier
from mailer_lib.database.schema import (
    consent_events,
    contacts,
    domain_suppressions,
    lists,
    subscriptions,
    suppressions,
)


@dataclass(frozen=True)
class SubscriptionRecord:
    list_name: str
    state: str
    source: str | None
    confirmed_at: datetime | None
    unsubscribed_at: datetime | None
    confirmation_sent_at: datetime | None


@dataclass(frozen=True)
class EvidenceRecord:
    list_name: str | None  # None: every list
    action: str
    occurred_at: datetime
    method: str
    source: str | None
    wording: str | None
    ip: str | None


@dataclass(frozen=True)
class SuppressionRecord:
    list_name: str | None  # None: every list
    reason: str
    source: str | None
    refused_at: datetime
    recorded_at: datetime
    lifted_at: datetime | None


@dataclass(frozen=True)
class Person:
    """``contact`` is the row of ``contacts`` by column, or None: an address without a contact may still have a past."""

    contact: Mapping[str, Any] | None
    subscriptions: tuple[SubscriptionRecord, ...]
    evidence: tuple[EvidenceRecord, ...]
    barriers: tuple[Barrier, ...]
    domain_barred: bool

    @property
    def known(self) -> bool:
        return self.contact is not None or bool(self.evidence) or bool(self.barriers)


def look_up(connection: Connection, *, address_hash: bytes, domain: str) -> Person:
    """All that the database holds of an address."""
    row = connection.execute(select(contacts).where(contacts.c.address_hash == address_hash)).mappings().first()
    s, e = subscriptions.c, consent_events.c
    held = (
        select(lists.c.name, s.state, s.source, s.confirmed_at, s.unsubscribed_at, s.confirmation_sent_at)
        .join_from(subscriptions, lists, s.list_id == lists.c.id)
        .where(s.contact_id == (row["id"] if row is not None else -1))
        .order_by(lists.c.name)
    )
    events = (
        select(lists.c.name, e.action, e.occurred_at, e.method, e.source, e.wording, e.ip)
        .select_from(consent_events.outerjoin(lists, e.list_id == lists.c.id))
        .where(e.address_hash == address_hash)
        .order_by(e.id)
    )
    barred = select(domain_suppressions.c.domain).where(domain_suppressions.c.domain == domain)
    return Person(
        dict(row) if row is not None else None,
        tuple(SubscriptionRecord(*found) for found in connection.execute(held)),
        tuple(EvidenceRecord(*found) for found in connection.execute(events)),
        active_barriers(connection, address_hash),
        connection.scalar(barred) is not None,
    )


def suppressions_of(connection: Connection, address_hash: bytes) -> tuple[SuppressionRecord, ...]:
    """Every suppression of an address, lifted ones too, oldest first."""
    s = suppressions.c
    rows = connection.execute(
        select(s.list_id, lists.c.name, s.reason, s.source, s.refused_at, s.created_at, s.lifted_at)
        .select_from(suppressions.outerjoin(lists, s.list_id == lists.c.id))
        .where(s.address_hash == address_hash)
        .order_by(s.id)
    )
    return tuple(
        SuppressionRecord(
            list_name=None if row.list_id == EVERYWHERE else row.name or str(row.list_id),
            reason=row.reason,
            source=row.source,
            refused_at=row.refused_at or row.created_at,
            recorded_at=row.created_at,
            lifted_at=row.lifted_at,
        )
        for row in rows
    )
