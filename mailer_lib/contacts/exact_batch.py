"""The exact way of a batch: everybody weighed by themselves, for each list that they join.

All is weighed before anything is written, so what a consent to one list lifts doesn't make way for an older one to
another, and the order of the lists decides nothing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, select, update

from mailer_lib.contacts.attributes import Value
from mailer_lib.contacts.drafts import BatchCounts, Before, Draft, ListCounts, newest
from mailer_lib.contacts.hash_lists import HashList, suppress_listed
from mailer_lib.contacts.plain_rows import attributes_json
from mailer_lib.contacts.precedence import (
    BY_PERSON,
    EVERYWHERE,
    NEWCOMER,
    Barrier,
    Standing,
    Verdict,
    contact_state,
    weigh,
)
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.rows import Evidence
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.database import bulk
from mailer_lib.database.bulk_lookup import IN_CHUNK
from mailer_lib.database.engine import now
from mailer_lib.database.schema import consent_events, contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.terms import ContactState, SubscriptionState, SuppressionReason

T = TypeVar("T")

_FIELDS = ("given_name", "family_name", "locale", "timezone")


@dataclass(slots=True)
class _Known:
    """A contact as the database has it."""

    id: int
    address_given: str
    fields: dict[str, str]
    attributes: dict[str, Value]
    state: str


def weigh_all(
    connection: Connection,
    scopes: Sequence[ImportScope],
    drafts: Mapping[bytes, Draft],
    before: Before,
    counts: BatchCounts,
    *,
    on_lists: Mapping[bytes, tuple[HashList, ...]],
) -> "Plan":
    """Everybody weighed by themselves: the way that ``plain_batch`` must equal. What is to be written.

    ``on_lists``: whom hash lists name. They are suppressed now, and weighed as if they had been before.
    """
    stored = [
        _Stored(connection, scope, {key: draft for key, draft in drafts.items() if number in draft.evidence})
        for number, scope in enumerate(scopes)
    ]
    plan = Plan()
    for key, draft in drafts.items():
        naming = on_lists.get(key, ())
        words = {
            n: _Word.of(
                scopes[n], draft.evidence[n], _with_lists(stored[n].standing(key, draft.address.domain), naming)
            )
            for n in draft.evidence
        }
        for n, word in words.items():
            if key not in before.of_list[n]:
                _count(counts.lists[n], word)
        if any(word.verdict.action is None for word in words.values()):
            counts.erased += key not in before.people
            continue
        if naming:
            plan.on_lists[key] = naming
        known = next((found for n in words if (found := stored[n].contacts.get(key)) is not None), None)
        changed = plan.contact(key, draft, known, words.values())
        for n, word in words.items():
            changed = plan.subscription(key, word, stored[n].confirmed_at.get(key)) or changed
            plan.events(key, word, stored[n].evidence.get(key, ()))
        if key not in before.people:
            if known is None:
                counts.new += 1
            elif changed:
                counts.updated += 1
            else:
                counts.unchanged += 1
    return plan


def _with_lists(standing: Standing, naming: tuple[HashList, ...]) -> Standing:
    if not naming:
        return standing
    barriers = tuple(Barrier(-one.id, SuppressionReason.IMPORTED, one.read_at) for one in naming)
    return replace(standing, barriers=(*standing.barriers, *barriers))


def _count(counts: ListCounts, word: "_Word") -> None:
    verdict = word.verdict
    if verdict.kept_out is not None:
        counts.kept_out[verdict.kept_out] += 1
    elif verdict.state is SubscriptionState.CONFIRMED:
        counts.confirmed += 1
    elif verdict.state is SubscriptionState.PENDING:
        counts.pending += 1
    counts.undated += word.at is None


@dataclass(frozen=True, slots=True)
class _Word:
    """What is to be said about one person and one list."""

    scope: ImportScope
    evidence: Sequence[Evidence]
    at: datetime | None
    standing: Standing
    verdict: Verdict

    @classmethod
    def of(cls, scope: ImportScope, evidence: Sequence[Evidence], standing: Standing) -> "_Word":
        at = newest(evidence)
        return cls(scope, evidence, at, standing, weigh(scope.requested, at, standing))


class _Stored:
    """What the database knows of a batch's people, in a handful of queries."""

    def __init__(self, connection: Connection, scope: ImportScope, drafts: Mapping[bytes, Draft]) -> None:
        hashes = list(drafts)
        self.contacts: dict[bytes, _Known] = {}
        self.confirmed_at: dict[bytes, datetime | None] = {}
        self.evidence: dict[bytes, set[tuple[datetime | None, str | None]]] = {}
        self._states: dict[bytes, tuple[SubscriptionState, datetime | None]] = {}
        self._barriers: dict[bytes, tuple[Barrier, ...]] = {}
        self._domains: set[str] = set()
        for chunk in _chunks(hashes):
            self._read_contacts(connection, scope.list_id, chunk)
            self._read_barriers(connection, scope.list_id, chunk)
            self._read_evidence(connection, scope, chunk)
        for names in _chunks(sorted({draft.address.domain for draft in drafts.values()})):
            query = select(domain_suppressions.c.domain).where(domain_suppressions.c.domain.in_(names))
            self._domains.update(connection.scalars(query))

    def standing(self, key: bytes, domain: str) -> Standing:
        state = self._states.get(key)
        barriers = self._barriers.get(key, ())
        barred = domain in self._domains
        if state is None and not barriers and not barred:
            return NEWCOMER
        return Standing(state[0] if state else None, state[1] if state else None, barriers, barred)

    def _read_contacts(self, connection: Connection, list_id: int, hashes: Sequence[bytes]) -> None:
        c, s = contacts.c, subscriptions.c
        query = (
            select(
                c.id, c.address_hash, c.address_given, c.given_name, c.family_name, c.locale, c.timezone, c.attributes,
                c.state, s.state.label("subscription"), s.unsubscribed_at, s.confirmed_at,
            )
            .select_from(contacts.outerjoin(subscriptions, (s.contact_id == c.id) & (s.list_id == list_id)))
            .where(c.address_hash.in_(hashes))
        )  # fmt: skip
        for row in connection.execute(query):
            key = bytes(row.address_hash)
            values = zip(_FIELDS, (row.given_name, row.family_name, row.locale, row.timezone), strict=True)
            self.contacts[key] = _Known(
                row.id,
                row.address_given,
                {name: value for name, value in values if value is not None},
                row.attributes,
                row.state,
            )
            if row.subscription is not None:
                self._states[key] = (SubscriptionState(row.subscription), row.unsubscribed_at)
                self.confirmed_at[key] = row.confirmed_at

    def _read_barriers(self, connection: Connection, list_id: int, hashes: Sequence[bytes]) -> None:
        s = suppressions.c
        query = (
            select(s.id, s.address_hash, s.reason, s.refused_at, s.created_at, s.list_id)
            .where(s.address_hash.in_(hashes), s.lifted_at.is_(None), s.list_id.in_((EVERYWHERE, list_id)))
            .order_by(s.id)
        )
        for row in connection.execute(query):
            key = bytes(row.address_hash)
            refused_at = row.refused_at or row.created_at
            barrier = Barrier(row.id, SuppressionReason(row.reason), refused_at, row.list_id)
            self._barriers[key] = (*self._barriers.get(key, ()), barrier)

    def _read_evidence(self, connection: Connection, scope: ImportScope, hashes: Sequence[bytes]) -> None:
        e = consent_events.c
        query = select(e.address_hash, e.occurred_at, e.source).where(
            e.address_hash.in_(hashes), e.list_id == scope.list_id, e.method == scope.method
        )
        for row in connection.execute(query):
            key = bytes(row.address_hash)
            self.evidence.setdefault(key, set()).update(((row.occurred_at, row.source), (None, row.source)))


class Plan:
    """Rows to write, gathered first so that each table is written once."""

    def __init__(self) -> None:
        self._moment = bulk.moment_text(now())
        self._ids: dict[bytes, int] = {}
        self.on_lists: dict[bytes, tuple[HashList, ...]] = {}
        self._contacts: list[tuple[Any, ...]] = []
        self._new: list[bytes] = []
        self._subscriptions: list[tuple[bytes, tuple[Any, ...]]] = []
        self._events: list[tuple[Any, ...]] = []
        self._lifts: list[int] = []
        self._states: dict[ContactState, list[int]] = {}

    def contact(self, key: bytes, draft: Draft, known: _Known | None, words: Collection[_Word]) -> bool:
        """Plan the contact's row; returns whether it is new or changes."""
        lifts = {lifted for word in words for lifted in word.verdict.lifts}
        barriers = {barrier.id: barrier for word in words for barrier in word.standing.barriers}
        state = contact_state(tuple(barrier for id_, barrier in barriers.items() if id_ not in lifts))
        fields, attributes = draft.fields, draft.attributes
        self._lifts.extend(sorted(lifts))
        if known is None:
            self._new.append(key)
        else:
            self._ids[key] = known.id
            fields, attributes = known.fields | fields, known.attributes | attributes
            if lifts and known.state != state.value:
                self._states.setdefault(state, []).append(known.id)
            same = fields == known.fields and attributes == known.attributes
            if same and known.address_given == draft.address.given:
                return False
        address = draft.address
        self._contacts.append(
            (
                address.given, address.normalised, key, address.domain, provider_of(address.domain),
                fields.get("given_name"), fields.get("family_name"), fields.get("locale"), fields.get("timezone"),
                attributes_json(attributes), state.value, self._moment, self._moment,
            )
        )  # fmt: skip
        return True

    def subscription(self, key: bytes, word: _Word, confirmed_before: datetime | None) -> bool:
        """Plan the subscription's row; returns whether it is new or changes."""
        scope, standing, verdict = word.scope, word.standing, word.verdict
        at = word.at if verdict.state is SubscriptionState.CONFIRMED and not scope.requested else None
        left_at: datetime | None = None
        if verdict.state is standing.state:
            if at is None or (confirmed_before is not None and confirmed_before >= at):
                return False
        elif verdict.state is SubscriptionState.UNSUBSCRIBED:
            left_at = max(b.refused_at for b in standing.barriers if b.reason in BY_PERSON)
        row = (
            scope.list_id, verdict.state.value, word.evidence[-1].source,
            bulk.moment_text(at), bulk.moment_text(left_at), self._moment,
        )  # fmt: skip
        self._subscriptions.append((key, row))
        return True

    def events(self, key: bytes, word: _Word, recorded: Collection[tuple[datetime | None, str | None]]) -> None:
        """Plan the evidence that isn't recorded yet."""
        scope = word.scope
        for evidence in word.evidence:
            if (evidence.at, evidence.source) in recorded:
                continue
            action = word.verdict.action
            if evidence.at != word.at:
                action = weigh(scope.requested, evidence.at, word.standing).action
            assert action is not None
            occurred = bulk.moment_text(evidence.at or scope.started)
            self._events.append(
                (
                    key, scope.list_id, action.value, occurred, self._moment, scope.method,
                    evidence.source, evidence.wording, evidence.ip,
                )
            )  # fmt: skip

    def write(self, connection: Connection) -> None:
        suppress_listed(connection, self.on_lists, at=now())
        bulk.upsert_contacts(connection, self._contacts)
        ids = dict(self._ids)
        for chunk in _chunks(self._new):
            query = select(contacts.c.address_hash, contacts.c.id).where(contacts.c.address_hash.in_(chunk))
            ids.update((bytes(row.address_hash), row.id) for row in connection.execute(query))
        bulk.upsert_subscriptions(connection, [(ids[key], *row) for key, row in self._subscriptions])
        bulk.insert_consent_events(connection, self._events)
        for lifts in _chunks(self._lifts):
            connection.execute(
                update(suppressions)
                .where(suppressions.c.id.in_(lifts), suppressions.c.lifted_at.is_(None))
                .values(lifted_at=now(), lifted_by="consent: import")
            )
        for state, people in self._states.items():
            for ids_of_state in _chunks(people):
                connection.execute(update(contacts).where(contacts.c.id.in_(ids_of_state)).values(state=state.value))


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), IN_CHUNK):
        yield values[start : start + IN_CHUNK]
