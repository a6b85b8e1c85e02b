"""Why somebody who matched was left out: a sentence for each reason of the bitmask, with what is known of it now.

The bitmask is from the snapshot and stays true of its time. The evidence is the database's, read now: a subscription
confirmed since, a suppression lifted since, are told as such. ``explain`` is pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from mailer_lib.audience.exclusions import reason_name
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import Exclude
from mailer_lib.contacts.person import Person, SubscriptionRecord, SuppressionRecord, suppressions_of
from mailer_lib.database.schema import domain_suppressions, lists
from mailer_lib.terms import ContactState, ExclusionReason, SubscriptionState, SuppressionReason

_CAUSED_BY = {
    ExclusionReason.UNSUBSCRIBED: SuppressionReason.UNSUBSCRIBED,
    ExclusionReason.COMPLAINED: SuppressionReason.COMPLAINED,
    ExclusionReason.BOUNCED: SuppressionReason.HARD_BOUNCE,
    ExclusionReason.ERASED: SuppressionReason.ERASED,
}
_LEFT_THEIR_TRACE = {
    ExclusionReason.COMPLAINED: "complained about a message",
    ExclusionReason.BOUNCED: "a message bounced for good",
    ExclusionReason.ERASED: "was erased",
}


@dataclass(frozen=True)
class Reason:
    """``name`` as manifests and reports count by."""

    name: str
    sentence: str


@dataclass(frozen=True)
class DomainRecord:
    domain: str
    source: str | None
    since: datetime


@dataclass(frozen=True)
class Facts:
    """What is known now of a person and of the campaign's list."""

    person: Person
    list_name: str
    suppressions: tuple[SuppressionRecord, ...] = ()
    domain: DomainRecord | None = None
    criteria: tuple[str, ...] = ()  # of those that the campaign leaves out, who match today
    earlier: tuple[str, ...] = ()  # what became of this edition's message before, a sentence a phase
    counted: tuple[str, ...] = ()  # messages of other sends that the frequency cap counts, a sentence each


@dataclass(frozen=True)
class Frozen:
    """What the snapshot knows of how it left people out."""

    as_of: datetime
    published_at: datetime
    exclude: Exclude

    @classmethod
    def of(cls, manifest: Manifest) -> "Frozen":
        return cls(manifest.as_of, manifest.published_at, manifest.exclude)


def gather(
    connection: Connection,
    person: Person,
    *,
    address_hash: bytes,
    domain: str,
    list_id: int,
    criteria: tuple[str, ...] = (),
    earlier: tuple[str, ...] = (),
    counted: tuple[str, ...] = (),
) -> Facts:
    """Facts of ``person`` (``contacts.person.look_up``), seen from the list of the campaign."""
    name = connection.scalar(select(lists.c.name).where(lists.c.id == list_id))
    barred = connection.execute(select(domain_suppressions).where(domain_suppressions.c.domain == domain)).first()
    return Facts(
        person=person,
        list_name=name or str(list_id),
        suppressions=suppressions_of(connection, address_hash),
        domain=None if barred is None else DomainRecord(barred.domain, barred.source, barred.created_at),
        criteria=criteria,
        earlier=earlier,
        counted=counted,
    )


def explain(mask: ExclusionReason, facts: Facts, frozen: Frozen) -> tuple[Reason, ...]:
    """One sentence a reason, in the order of the bits."""
    return tuple(Reason(reason_name(bit), _sentence(bit, facts, frozen)) for bit in ExclusionReason if mask & bit)


def _sentence(bit: ExclusionReason, facts: Facts, frozen: Frozen) -> str:
    told = tuple(_evidence(bit, facts, frozen))
    return "; ".join(told) if told else f"{_UNPROVEN[bit]}; nothing of it is known any more"


_UNPROVEN = {
    ExclusionReason.UNCONFIRMED: "had no confirmed subscription to the list",
    ExclusionReason.UNSUBSCRIBED: "had left the list",
    ExclusionReason.SUPPRESSED_ADDRESS: "the address was suppressed",
    ExclusionReason.SUPPRESSED_DOMAIN: "the domain was suppressed",
    ExclusionReason.BOUNCED: "a message had bounced for good",
    ExclusionReason.COMPLAINED: "had complained about a message",
    ExclusionReason.INVALID_ADDRESS: "the address couldn't be mailed",
    ExclusionReason.ALREADY_SENT: "an earlier phase of this edition had sent it, or may have",
    ExclusionReason.ERASED: "the person was erased",
    ExclusionReason.FREQUENCY_CAP: "had got as many messages as they may",
    ExclusionReason.EXCLUDED_LIST: "was on a list, or matched criteria, that the campaign leaves out",
    ExclusionReason.CONTROL_GROUP: "was in the control group",
    ExclusionReason.DUPLICATE: "another contact with the same address was taken",
}


def _evidence(bit: ExclusionReason, facts: Facts, frozen: Frozen) -> Iterator[str]:
    match bit:
        case ExclusionReason.UNCONFIRMED:
            yield from _unconfirmed(facts)
        case ExclusionReason.UNSUBSCRIBED:
            yield from _left(facts)
            yield from _suppressed(facts, frozen, SuppressionReason.UNSUBSCRIBED)
        case ExclusionReason.SUPPRESSED_ADDRESS:
            yield from _suppressed(facts, frozen, None)
        case ExclusionReason.SUPPRESSED_DOMAIN if facts.domain is not None:
            source = f" ({facts.domain.source})" if facts.domain.source else ""
            yield f"the domain {facts.domain.domain} is suppressed since {_when(facts.domain.since)}{source}"
        case ExclusionReason.BOUNCED | ExclusionReason.COMPLAINED | ExclusionReason.ERASED:
            yield from _by_trace(bit, facts, frozen)
        case ExclusionReason.INVALID_ADDRESS:
            yield from _invalid(facts)
        case ExclusionReason.ALREADY_SENT:
            yield from facts.earlier
        case ExclusionReason.FREQUENCY_CAP if frozen.exclude.frequency_cap is not None:
            cap = frozen.exclude.frequency_cap
            which = f": {', '.join(facts.counted)}" if facts.counted else ""
            most = f"{cap.messages} of class {cap.campaign_class} in {cap.days} days"
            yield f"had got, or was due to get, as many messages as the campaign's cap allows, {most}{which}"
        case ExclusionReason.EXCLUDED_LIST:
            yield from _left_out(facts, frozen.exclude)
        case ExclusionReason.CONTROL_GROUP if frozen.exclude.control_group is not None:
            group = frozen.exclude.control_group
            yield f'is in the control group, {group.percent:g} % of all people by the seed "{group.seed}"'
        case ExclusionReason.DUPLICATE:
            yield _UNPROVEN[bit]


def _unconfirmed(facts: Facts) -> Iterator[str]:
    mine = _subscription(facts)
    if facts.person.contact is None:
        return
    if mine is None:
        yield f'has no subscription to the list "{facts.list_name}"'
    elif mine.state == SubscriptionState.PENDING:
        asked = f", asked for confirmation on {_when(mine.confirmation_sent_at)}" if mine.confirmation_sent_at else ""
        yield f'is pending on the list "{facts.list_name}"{asked}{_from(mine)}'
    elif mine.state == SubscriptionState.CONFIRMED:
        since = f" since {_when(mine.confirmed_at)}" if mine.confirmed_at else ""
        yield f'was not confirmed on the list "{facts.list_name}" then; is now{since}'
    else:
        yield f'was not confirmed on the list "{facts.list_name}" then; has left it since'


def _left(facts: Facts) -> Iterator[str]:
    mine = _subscription(facts)
    if mine is None:
        return
    at = f" on {_when(mine.unsubscribed_at)}" if mine.unsubscribed_at else ""
    if mine.state == SubscriptionState.UNSUBSCRIBED:
        yield f'left the list "{facts.list_name}"{at}'
    elif mine.unsubscribed_at:
        yield f'had left the list "{facts.list_name}"{at}; is {mine.state} now'


def _suppressed(facts: Facts, frozen: Frozen, reason: SuppressionReason | None) -> Iterator[str]:
    """Those that stood when the snapshot was made, of the list or of every list."""
    for one in facts.suppressions:
        stood = one.recorded_at <= frozen.published_at and (one.lifted_at is None or one.lifted_at > frozen.as_of)
        if stood and one.list_name in {None, facts.list_name} and reason in {None, one.reason}:
            scope = "every list" if one.list_name is None else f'the list "{one.list_name}"'
            source = f" ({one.source})" if one.source else ""
            lifted = f", lifted on {_when(one.lifted_at)}" if one.lifted_at else ""
            yield f"suppressed on {scope} since {_when(one.refused_at)}: {one.reason}{source}{lifted}"


def _by_trace(bit: ExclusionReason, facts: Facts, frozen: Frozen) -> Iterator[str]:
    found = tuple(_suppressed(facts, frozen, _CAUSED_BY[bit]))
    yield from found
    contact = facts.person.contact
    if not found and contact is not None and contact["state"] == _STATES[bit]:
        yield f"{_LEFT_THEIR_TRACE[bit]}: the contact's state is {contact['state']}"


_STATES = {
    ExclusionReason.COMPLAINED: ContactState.COMPLAINED,
    ExclusionReason.BOUNCED: ContactState.BOUNCED,
    ExclusionReason.ERASED: ContactState.ERASED,
}


def _invalid(facts: Facts) -> Iterator[str]:
    contact = facts.person.contact
    if contact is None:
        return
    if contact["state"] in {ContactState.ACTIVE, *_STATES.values()}:
        yield "the address couldn't be read as one that mail can be sent to"
    else:
        yield f"the contact's state is {contact['state']}"


def _left_out(facts: Facts, exclude: Exclude) -> Iterator[str]:
    on = {s.list_name: s for s in facts.person.subscriptions if s.state != SubscriptionState.UNSUBSCRIBED}
    for name in exclude.lists:
        if name in on:
            yield f'is {on[name].state} on the list "{name}", which the campaign leaves out{_from(on[name])}'
    for name in facts.criteria:
        yield f'matches the criteria "{name}", which the campaign leaves out'


def _subscription(facts: Facts) -> SubscriptionRecord | None:
    return next((one for one in facts.person.subscriptions if one.list_name == facts.list_name), None)


def _from(subscription: SubscriptionRecord) -> str:
    return f" (from {subscription.source})" if subscription.source else ""


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "an unknown day"
