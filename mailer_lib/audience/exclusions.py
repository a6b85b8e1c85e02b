"""Who is never selected, decided here and nowhere else: one SQL bitmask of *all* reasons that hold.

Each bit is one plain statement about a contact, seen from the list of the campaign:

    UNCONFIRMED         never confirmed: no subscription to the list, or one that is still pending
    UNSUBSCRIBED        left the list, or is suppressed for having unsubscribed (from it, or from everything)
    SUPPRESSED_ADDRESS  an active suppression of the address, everywhere or for the list, whatever its reason
    SUPPRESSED_DOMAIN   the domain is suppressed
    BOUNCED             hard bounce, by the contact's state or by suppression
    COMPLAINED          likewise
    INVALID_ADDRESS     the contact is in that state, or in one that this release doesn't know
    ERASED              likewise, or suppressed because the person was erased
    EXCLUDED_LIST       on a list that the campaign leaves out (pending or confirmed), or matches criteria that it does
    CONTROL_GROUP       in the part of all people that the campaign holds back, to compare with

So one person often has several: who unsubscribes is UNSUBSCRIBED and SUPPRESSED_ADDRESS. ALREADY_SENT, DUPLICATE and
FREQUENCY_CAP are known only at publication (``publication.py``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, case, exists, func, literal, or_, select, type_coerce
from sqlalchemy.types import Integer

from mailer_lib.database.either import either
from mailer_lib.database.schema import contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.terms import ContactState, ExclusionReason, SubscriptionState, SuppressionReason

_EVERYWHERE = 0

_BY_SUPPRESSION = {
    SuppressionReason.UNSUBSCRIBED: ExclusionReason.UNSUBSCRIBED,
    SuppressionReason.COMPLAINED: ExclusionReason.COMPLAINED,
    SuppressionReason.HARD_BOUNCE: ExclusionReason.BOUNCED,
    SuppressionReason.ERASED: ExclusionReason.ERASED,
}
_BY_STATE = {
    ContactState.BOUNCED: ExclusionReason.BOUNCED,
    ContactState.COMPLAINED: ExclusionReason.COMPLAINED,
    ContactState.ERASED: ExclusionReason.ERASED,
}


@dataclass(frozen=True)
class Exclusions:
    """``people`` is ``contacts`` joined one-to-one with what ``reasons`` looks at; 0 = may be mailed."""

    people: FromClause
    reasons: ColumnElement[int]


@dataclass(frozen=True)
class Held:
    """Whom one campaign leaves out besides those whom nobody may mail."""

    lists: Sequence[int] = ()
    matching: ColumnElement[bool] | None = None  # criteria to be left out, as a condition on ``contacts``
    control: ColumnElement[bool] | None = None


def exclusions(list_id: int, held: Held = Held()) -> Exclusions:
    """For campaigns to one list. The joins are on primary keys; see ``by_suppression`` for the rest."""
    subscription = subscriptions.alias("consent")
    barred_domain = domain_suppressions.alias("barred_domain")
    people = contacts.outerjoin(
        subscription, and_(subscription.c.contact_id == contacts.c.id, subscription.c.list_id == list_id)
    ).outerjoin(barred_domain, barred_domain.c.domain == contacts.c.domain)
    by_consent = case(
        (subscription.c.state == SubscriptionState.CONFIRMED, 0),
        (subscription.c.state == SubscriptionState.UNSUBSCRIBED, int(ExclusionReason.UNSUBSCRIBED)),
        else_=int(ExclusionReason.UNCONFIRMED),
    )
    by_domain = case((barred_domain.c.domain.is_not(None), int(ExclusionReason.SUPPRESSED_DOMAIN)), else_=0)
    reasons = by_suppression(list_id).bitwise_or(by_consent).bitwise_or(by_domain).bitwise_or(_by_state())
    for condition, bit in _held(held):
        reasons = reasons.bitwise_or(case((condition, int(bit)), else_=0))
    return Exclusions(people, type_coerce(reasons, Integer()))


def _held(held: Held) -> Iterator[tuple[ColumnElement[bool], ExclusionReason]]:
    left_out: list[ColumnElement[bool]] = []
    if held.lists:
        theirs = subscriptions.alias("left_out")
        found = select(theirs.c.list_id).where(
            theirs.c.contact_id == contacts.c.id,
            theirs.c.list_id.in_(held.lists),
            theirs.c.state != SubscriptionState.UNSUBSCRIBED,
        )
        left_out.append(exists(found.correlate(contacts)))
    if held.matching is not None:
        left_out.append(held.matching)
    if left_out:
        yield or_(*left_out), ExclusionReason.EXCLUDED_LIST
    if held.control is not None:
        yield held.control, ExclusionReason.CONTROL_GROUP


def seed_exclusions(list_id: int) -> Exclusions:
    """For seed lists: our own people, who need no subscription; a refusal of theirs binds as anybody's."""
    barred = exclusions(list_id)
    every = sum(ExclusionReason)
    return Exclusions(barred.people, barred.reasons.bitwise_and(every & ~int(ExclusionReason.UNCONFIRMED)))


def by_suppression(list_id: int, address_hash: ColumnElement[bytes] | None = None) -> ColumnElement[int]:
    """Reasons that the active suppressions of one address give, 0 without any; of each contact without an address."""
    active = (suppressions.c.list_id.in_((_EVERYWHERE, list_id)), suppressions.c.lifted_at.is_(None))
    bits: ColumnElement[Any] = literal(int(ExclusionReason.SUPPRESSED_ADDRESS))
    for reason, bit in _BY_SUPPRESSION.items():
        bits = bits + func.max(case((suppressions.c.reason == reason, int(bit)), else_=0))
    person = contacts.c.address_hash if address_hash is None else address_hash
    mine = suppressions.c.address_hash == person
    found = func.coalesce(select(bits).where(mine, *active).correlate_except(suppressions).scalar_subquery(), 0)
    if address_hash is not None:
        return found
    # Most people have none. Whether somebody has one, MariaDB asks a table of all who have, as long as it finds that
    # cheaper than the index: 1.5 µs a person less.
    barred = suppressions.alias("barred_address")
    anybody = (barred.c.list_id.in_((_EVERYWHERE, list_id)), barred.c.lifted_at.is_(None))
    among = person.in_(select(barred.c.address_hash).where(*anybody))
    indexed = exists(select(barred.c.id).where(barred.c.address_hash == person, *anybody).correlate_except(barred))
    return case((either(among, indexed), found), else_=0)


def _by_state() -> ColumnElement[int]:
    whens = [(contacts.c.state == state, int(bit)) for state, bit in _BY_STATE.items()]
    return case((contacts.c.state == ContactState.ACTIVE, 0), *whens, else_=int(ExclusionReason.INVALID_ADDRESS))


def reason_names(mask: int) -> tuple[str, ...]:
    """``UNSUBSCRIBED|BOUNCED`` as ``("unsubscribed", "bounced")``, the names that manifests and reports count by."""
    return tuple(reason_name(bit) for bit in ExclusionReason if mask & bit)


def reason_name(bit: ExclusionReason) -> str:
    assert bit.name is not None
    return bit.name.lower().replace("_", "-")
