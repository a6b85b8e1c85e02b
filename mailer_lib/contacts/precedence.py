"""Which wins, a consent or a refusal: a pure decision, the same for one click and for an import of millions.

docs/decisions/0201-consent-against-refusal.md gives the reasons. In short: a newer consent lifts what the person's own
refusal, or their mailbox, caused; what an operator or an erasure caused only an operator lifts; a mere request to sign
up lifts nothing.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from mailer_lib.terms import ConsentAction, ContactState, SubscriptionState, SuppressionReason

EVERYWHERE = 0  # suppressions.list_id: all lists

BY_PERSON = frozenset({SuppressionReason.UNSUBSCRIBED, SuppressionReason.COMPLAINED})
LIFTABLE = BY_PERSON | {SuppressionReason.HARD_BOUNCE}


class KeptOut(StrEnum):
    """Why somebody whose consent was brought gets no mail: a value of ``SuppressionReason``, or their domain."""

    UNSUBSCRIBED = "unsubscribed"
    COMPLAINED = "complained"
    HARD_BOUNCE = "hard-bounce"
    MANUAL = "manual"
    IMPORTED = "imported"
    ERASED = "erased"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class Barrier:
    """An active suppression of this person, of this list or everywhere."""

    id: int
    reason: SuppressionReason
    refused_at: datetime
    list_id: int = EVERYWHERE


@dataclass(frozen=True, slots=True)
class Standing:
    """How a person stands towards one list before the consent is weighed."""

    state: SubscriptionState | None = None  # None: never subscribed
    unsubscribed_at: datetime | None = None
    barriers: tuple[Barrier, ...] = ()
    domain_barred: bool = False


NEWCOMER = Standing()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows. ``action`` None: keep nothing at all, the person was erased."""

    action: ConsentAction | None
    state: SubscriptionState
    lifts: tuple[int, ...] = field(default=())  # ids of suppressions
    kept_out: KeptOut | None = None


def weigh(requested: bool, at: datetime | None, standing: Standing) -> Verdict:
    """Weigh a consent (or, with ``requested``, a sign-up that awaits its confirmation) given ``at`` this time.

    ``at`` None: nobody knows when, so it counts as older than every refusal.
    """
    for barrier in standing.barriers:
        if barrier.reason is SuppressionReason.ERASED:
            return Verdict(None, SubscriptionState.UNSUBSCRIBED, kept_out=KeptOut.ERASED)
    refusal, refused_newer = _refusal(at, standing)
    if refusal is not None and (requested or refused_newer):
        newer_request = requested and not refused_newer
        action = ConsentAction.REQUESTED if newer_request else ConsentAction.IMPORTED_OLDER
        return Verdict(action, SubscriptionState.UNSUBSCRIBED, kept_out=refusal)
    lifts: list[int] = []
    kept_out = KeptOut.DOMAIN if standing.domain_barred else None
    for barrier in standing.barriers:
        if barrier.reason in LIFTABLE and not requested and at is not None and at > barrier.refused_at:
            lifts.append(barrier.id)
        else:
            kept_out = KeptOut(barrier.reason.value)
    if not requested:
        return Verdict(ConsentAction.CONFIRMED, SubscriptionState.CONFIRMED, tuple(lifts), kept_out)
    already = standing.state is SubscriptionState.CONFIRMED
    return Verdict(
        ConsentAction.REQUESTED, SubscriptionState.CONFIRMED if already else SubscriptionState.PENDING, (), kept_out
    )


def _refusal(at: datetime | None, standing: Standing) -> tuple[KeptOut | None, bool]:
    """The person's own refusal, if any, and whether the consent fails to be newer than one of them."""
    found: KeptOut | None = None
    newer = False
    for barrier in standing.barriers:
        if barrier.reason in BY_PERSON:
            stands = at is None or at <= barrier.refused_at
            if found is None or stands:
                found = KeptOut(barrier.reason.value)
            newer = newer or stands
    if standing.state is SubscriptionState.UNSUBSCRIBED:
        since = standing.unsubscribed_at
        found = found or KeptOut.UNSUBSCRIBED
        newer = newer or at is None or since is None or at <= since
    return found, newer


def contact_state(barriers: tuple[Barrier, ...]) -> ContactState:
    """``contacts.state`` by the suppressions that hold everywhere."""
    reasons = {barrier.reason for barrier in barriers if barrier.list_id == EVERYWHERE}
    if SuppressionReason.ERASED in reasons:
        return ContactState.ERASED
    if SuppressionReason.COMPLAINED in reasons:
        return ContactState.COMPLAINED
    if SuppressionReason.HARD_BOUNCE in reasons:
        return ContactState.BOUNCED
    return ContactState.ACTIVE
