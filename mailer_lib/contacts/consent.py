"""Consent and refusal of one person at a time, each with its evidence, durable when the transaction commits.

``consent_events`` is append-only. ``suppressions`` are what bars: by address hash, of one list or everywhere
(``EVERYWHERE``), and they outlive the contact. Which of the two wins is ``precedence.weigh``'s decision.

Every function takes an open write transaction (``database.engine.write``) and times in UTC.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import Connection, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from mailer_lib.contacts.precedence import (
    BY_PERSON,
    EVERYWHERE,
    Barrier,
    KeptOut,
    Standing,
    contact_state,
    weigh,
)
from mailer_lib.database.engine import now
from mailer_lib.database.schema import consent_events, contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.terms import ConsentAction, SubscriptionState, SuppressionReason

# ``suppressions.created_at`` is taken before the commit, and on InnoDB neither ids nor times commit in order: a reader
# that asks "since my last look" would miss a row whose transaction was still open then. Write transactions last
# milliseconds; this much overlap also covers clocks that differ between machines. Readers keep sets, so seeing a row
# twice costs nothing.
OVERLAP = timedelta(seconds=120)


class ConsentResult(StrEnum):
    GIVEN = "given"  # the person gets mail of this list from now on
    UNCHANGED = "unchanged"  # did so already
    KEPT_OUT = "kept-out"  # evidence recorded, but a refusal or an operator's suppression stands
    NO_CONTACT = "no-contact"  # nobody here has this address (erased, or merged into another)


def record_consent(
    connection: Connection,
    *,
    address_hash: bytes,
    list_id: int | None,
    action: ConsentAction,
    at: datetime,
    method: str,
    source: str | None = None,
    wording: str | None = None,
    ip: str | None = None,
) -> None:
    """Append one piece of evidence, and nothing else. ``list_id`` None: about every list."""
    connection.execute(
        insert(consent_events).values(
            address_hash=address_hash,
            list_id=list_id,
            action=action.value,
            occurred_at=at,
            recorded_at=now(),
            method=method[:64],
            source=source[:200] if source else None,
            wording=wording,
            ip=ip,
        )
    )


def confirm(
    connection: Connection,
    *,
    address_hash: bytes,
    list_id: int,
    method: str,
    source: str | None,
    ip: str | None = None,
    at: datetime,
    wording: str | None = None,
) -> ConsentResult:
    """A person agrees to get the mail of a list; the answer to a double opt-in mail, or a form of ours.

    Lifts what a newer consent lifts. Confirming twice changes nothing.
    """
    row = connection.execute(
        select(contacts.c.id, contacts.c.domain).where(contacts.c.address_hash == address_hash)
    ).first()
    if row is None:
        return ConsentResult.NO_CONTACT
    contact_id: int = row.id
    subscription = connection.execute(
        select(subscriptions.c.state, subscriptions.c.unsubscribed_at).where(
            subscriptions.c.contact_id == contact_id, subscriptions.c.list_id == list_id
        )
    ).first()
    barriers = active_barriers(connection, address_hash)
    standing = Standing(
        state=SubscriptionState(subscription.state) if subscription is not None else None,
        unsubscribed_at=subscription.unsubscribed_at if subscription is not None else None,
        barriers=tuple(b for b in barriers if b.list_id in (EVERYWHERE, list_id)),
        domain_barred=domain_barred(connection, row.domain),
    )
    verdict = weigh(False, at, standing)
    if verdict.action is None:
        return ConsentResult.NO_CONTACT
    if standing.state is SubscriptionState.CONFIRMED and not verdict.lifts:
        return ConsentResult.KEPT_OUT if verdict.kept_out else ConsentResult.UNCHANGED
    record_consent(
        connection, address_hash=address_hash, list_id=list_id, action=verdict.action, at=at,
        method=method, source=source, wording=wording, ip=ip,
    )  # fmt: skip
    if verdict.state is not standing.state:
        confirmed = verdict.state is SubscriptionState.CONFIRMED
        _set_subscription(
            connection, contact_id=contact_id, list_id=list_id, state=verdict.state,
            confirmed_at=at if confirmed else None, source=source,
        )  # fmt: skip
    if verdict.lifts:
        _lift_ids(connection, verdict.lifts, f"consent: {method}", now())
        refresh_state(connection, address_hash)
    return ConsentResult.KEPT_OUT if verdict.kept_out else ConsentResult.GIVEN


def unsubscribe(
    connection: Connection,
    *,
    address_hash: bytes,
    list_id: int | None,
    method: str,
    source: str | None,
    ip: str | None = None,
    at: datetime,
) -> bool:
    """A person leaves one list, or with None every list. Works for addresses that are no contact (any more).

    Returns whether anything changed. Leaving again changes nothing but the time that a consent must be newer than.
    """
    list_id = list_id or None  # EVERYWHERE means the same as None
    new = _bar(
        connection,
        address_hash=address_hash,
        list_id=list_id or EVERYWHERE,
        reason=SuppressionReason.UNSUBSCRIBED,
        source=source,
        at=at,
    )
    changed = _leave(connection, address_hash, list_id, at) or new
    if changed:
        record_consent(
            connection, address_hash=address_hash, list_id=list_id, action=ConsentAction.UNSUBSCRIBED, at=at,
            method=method, source=source, ip=ip,
        )  # fmt: skip
    return changed


def suppress(
    connection: Connection,
    *,
    address_hash: bytes,
    reason: SuppressionReason,
    source: str | None,
    list_id: int = EVERYWHERE,
    at: datetime,
) -> bool:
    """Bar an address from one list or everywhere. Returns whether it is new; the same again only moves its time on.

    A complaint is a refusal too: it leaves the evidence and the subscriptions that ``unsubscribe`` would.
    """
    new = _bar(connection, address_hash=address_hash, list_id=list_id, reason=reason, source=source, at=at)
    if reason in BY_PERSON:
        scope = None if list_id == EVERYWHERE else list_id
        changed = _leave(connection, address_hash, scope, at) or new
        if changed:
            complained = reason is SuppressionReason.COMPLAINED
            record_consent(
                connection, address_hash=address_hash, list_id=scope, at=at, method="suppression", source=source,
                action=ConsentAction.COMPLAINED if complained else ConsentAction.UNSUBSCRIBED,
            )  # fmt: skip
    if new and list_id == EVERYWHERE:
        refresh_state(connection, address_hash)
    return new


def lift(
    connection: Connection,
    *,
    address_hash: bytes,
    by: str,
    reasons: Collection[SuppressionReason] | None = None,
    list_id: int | None = None,
    at: datetime | None = None,
) -> int:
    """An operator lifts suppressions: of one list (0: the ones that hold everywhere) or, with None, all of them.

    Returns how many. It gives nobody a consent: who unsubscribed or complained stays so until they agree anew.
    """
    wanted = [
        barrier.id
        for barrier in active_barriers(connection, address_hash)
        if (list_id is None or barrier.list_id == list_id) and (reasons is None or barrier.reason in reasons)
    ]
    if wanted:
        _lift_ids(connection, wanted, by, at or now())
        refresh_state(connection, address_hash)
    return len(wanted)


def suppress_domain(connection: Connection, *, domain: str, source: str | None, at: datetime | None = None) -> bool:
    """Bar every address at a domain (as ``address.normalise_domain`` gives it). Returns whether it is new."""
    if domain_barred(connection, domain):
        return False
    try:
        with connection.begin_nested():
            connection.execute(insert(domain_suppressions).values(domain=domain, source=source, created_at=at or now()))
    except IntegrityError:  # somebody else did it a moment ago
        return False
    return True


def lift_domain(connection: Connection, *, domain: str) -> bool:
    """Returns whether the domain was barred."""
    return connection.execute(delete(domain_suppressions).where(domain_suppressions.c.domain == domain)).rowcount > 0


def active_barriers(connection: Connection, address_hash: bytes) -> tuple[Barrier, ...]:
    """The active suppressions of an address, of every list, oldest first."""
    query = (
        select(
            suppressions.c.id,
            suppressions.c.reason,
            suppressions.c.refused_at,
            suppressions.c.created_at,
            suppressions.c.list_id,
        )
        .where(suppressions.c.address_hash == address_hash, suppressions.c.lifted_at.is_(None))
        .order_by(suppressions.c.id)
    )
    return tuple(
        Barrier(row.id, SuppressionReason(row.reason), row.refused_at or row.created_at, row.list_id)
        for row in connection.execute(query)
    )


def barring(connection: Connection, *, address_hash: bytes, domain: str, list_id: int) -> KeptOut | None:
    """Why this address gets no mail of this list (0: of any list) for reasons other than its subscription; or None."""
    for barrier in active_barriers(connection, address_hash):
        if barrier.list_id in (EVERYWHERE, list_id):
            return KeptOut(barrier.reason.value)
    return KeptOut.DOMAIN if domain_barred(connection, domain) else None


def active_suppressions_since(
    connection: Connection, *, since: datetime, list_id: int
) -> tuple[frozenset[bytes], frozenset[str]]:
    """Address hashes and domains that were barred at or after ``since`` (less ``OVERLAP``) and still are.

    Of this list and everywhere. For running sends: ask with the time of the last question; answers overlap.
    """
    start = since - OVERLAP
    hashes = connection.scalars(
        select(suppressions.c.address_hash).where(
            suppressions.c.created_at >= start,
            suppressions.c.lifted_at.is_(None),
            suppressions.c.list_id.in_((EVERYWHERE, list_id)),
        )
    )
    domains = connection.scalars(select(domain_suppressions.c.domain).where(domain_suppressions.c.created_at >= start))
    return frozenset(bytes(value) for value in hashes), frozenset(domains)


def refresh_state(connection: Connection, address_hash: bytes) -> None:
    """Bring ``contacts.state`` in line with the suppressions that hold everywhere."""
    state = contact_state(active_barriers(connection, address_hash)).value
    connection.execute(
        update(contacts)
        .where(contacts.c.address_hash == address_hash, contacts.c.state != state)
        .values(state=state, updated_at=now())
    )


def _bar(
    connection: Connection,
    *,
    address_hash: bytes,
    list_id: int,
    reason: SuppressionReason,
    source: str | None,
    at: datetime,
) -> bool:
    """One active row for each (address, scope, reason). Returns whether it is new."""
    for barrier in active_barriers(connection, address_hash):
        if barrier.list_id == list_id and barrier.reason is reason:
            connection.execute(
                update(suppressions)
                .where(
                    suppressions.c.id == barrier.id,
                    or_(suppressions.c.refused_at.is_(None), suppressions.c.refused_at < at),
                )
                .values(refused_at=at)
            )
            return False
    connection.execute(
        insert(suppressions).values(
            address_hash=address_hash,
            list_id=list_id,
            reason=reason.value,
            source=source[:200] if source else None,
            refused_at=at,
            created_at=now(),
        )
    )
    return True


def _leave(connection: Connection, address_hash: bytes, list_id: int | None, at: datetime) -> bool:
    """Set the subscriptions of this person to unsubscribed. Returns whether one of them wasn't."""
    person = select(contacts.c.id).where(contacts.c.address_hash == address_hash).scalar_subquery()
    condition = [subscriptions.c.contact_id == person]
    if list_id is not None:
        condition.append(subscriptions.c.list_id == list_id)
    was_in = subscriptions.c.state != SubscriptionState.UNSUBSCRIBED.value
    left = connection.execute(
        update(subscriptions)
        .where(*condition, was_in)
        .values(state=SubscriptionState.UNSUBSCRIBED.value, unsubscribed_at=at, updated_at=now())
    ).rowcount
    if left == 0:
        connection.execute(
            update(subscriptions).where(*condition, subscriptions.c.unsubscribed_at < at).values(unsubscribed_at=at)
        )
    return left > 0


def _set_subscription(
    connection: Connection,
    *,
    contact_id: int,
    list_id: int,
    state: SubscriptionState,
    confirmed_at: datetime | None,
    source: str | None,
) -> None:
    values = {"state": state.value, "updated_at": now()}
    if confirmed_at is not None:
        values["confirmed_at"] = confirmed_at
    changed = connection.execute(
        update(subscriptions)
        .where(subscriptions.c.contact_id == contact_id, subscriptions.c.list_id == list_id)
        .values(**values)
    )
    if changed.rowcount == 0:
        connection.execute(
            insert(subscriptions).values(
                contact_id=contact_id, list_id=list_id, source=source[:200] if source else None, **values
            )
        )


def _lift_ids(connection: Connection, ids: Collection[int], by: str, at: datetime) -> None:
    connection.execute(
        update(suppressions)
        .where(suppressions.c.id.in_(ids), suppressions.c.lifted_at.is_(None))
        .values(lifted_at=at, lifted_by=by[:200])
    )


def domain_barred(connection: Connection, domain: str) -> bool:
    """Whether every address at this domain is barred."""
    query = select(domain_suppressions.c.domain).where(domain_suppressions.c.domain == domain)
    return connection.scalar(query) is not None
