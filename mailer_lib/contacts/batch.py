"""One batch of an import: what its rows say (``Portion``, no I/O) and how one transaction stores it (``store``).

Most rows are plain and go the quick way (``plain_batch``); everybody else is weighed one by one, here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, select, update

from mailer_lib.contacts import plain_batch
from mailer_lib.contacts.address import Address
from mailer_lib.contacts.attributes import Value
from mailer_lib.contacts.plain_rows import PlainRows, attributes_json
from mailer_lib.contacts.precedence import (
    BY_PERSON,
    EVERYWHERE,
    NEWCOMER,
    Barrier,
    KeptOut,
    Standing,
    Verdict,
    contact_state,
    weigh,
)
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.rows import Evidence, ParsedRow
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.database import bulk
from mailer_lib.database.bulk_lookup import IN_CHUNK
from mailer_lib.database.engine import now
from mailer_lib.database.schema import consent_events, contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.terms import ContactState, SubscriptionState, SuppressionReason

T = TypeVar("T")

_FIELDS = ("given_name", "family_name", "locale", "timezone")


@dataclass(slots=True)
class Draft:
    """All that the batch says about one address: the last row's word for each value, every row's evidence."""

    address: Address
    fields: dict[str, str]
    attributes: dict[str, Value]
    evidence: list[Evidence]

    @property
    def newest(self) -> datetime | None:
        if len(self.evidence) == 1:
            return self.evidence[0].at
        return max((e.at for e in self.evidence if e.at is not None), default=None)


class Drafts(dict[bytes, Draft]):
    """Drafts by address hash."""

    def add(self, key: bytes, row: ParsedRow) -> None:
        """The next row of the file."""
        draft = self.get(key)
        if draft is None:
            self[key] = Draft(row.address, dict(row.fields), dict(row.attributes), [row.evidence])
            return
        draft.address = row.address
        draft.fields.update(row.fields)
        draft.attributes.update(row.attributes)
        if row.evidence not in draft.evidence:
            draft.evidence.append(row.evidence)


@dataclass
class BatchCounts:
    """People, not rows; those whose address came earlier in the file are not counted again."""

    new: int = 0
    updated: int = 0
    unchanged: int = 0
    confirmed: int = 0
    pending: int = 0
    undated: int = 0
    kept_out: Counter[KeptOut] = field(default_factory=Counter)


@dataclass(slots=True)
class _Known:
    """A contact as the database has it."""

    id: int
    address_given: str
    fields: dict[str, str]
    attributes: dict[str, Value]
    state: str


@dataclass(frozen=True)
class Portion:
    """What one transaction stores. Nobody is both among ``plain`` and among ``drafts``."""

    rows: int
    plain: PlainRows
    drafts: Drafts
    reread: Callable[[int], ParsedRow]  # a plain row, by its place, once more: the exact way

    @property
    def keys(self) -> list[bytes]:
        """Whom it is about, each once."""
        return [*self.plain.keys, *self.drafts]


def store(
    connection: Connection,
    scope: ImportScope,
    portion: Portion,
    already_counted: Collection[bytes],
    *,
    dry: bool = False,
) -> BatchCounts:
    """Store a portion in the open write transaction, or with ``dry`` only say what would be stored.

    ``already_counted``: hashes that came earlier in the file.
    """
    plain, drafts = portion.plain, Drafts(portion.drafts)
    counts = BatchCounts()
    if plain.keys:
        found = plain_batch.sort_out(connection, scope, plain)
        for i in found.exact:
            drafts.add(plain.keys[i], portion.reread(plain.places[i]))
        _count_plain(counts, scope, plain, found, already_counted)
        if not dry:
            plain_batch.write(connection, scope, plain, found)
    if drafts:
        _store_exactly(connection, scope, drafts, already_counted, counts, dry=dry)
    return counts


def _count_plain(
    counts: BatchCounts, scope: ImportScope, plain: PlainRows, found: plain_batch.Sorted, already: Collection[bytes]
) -> None:
    def fresh(indexes: Sequence[int]) -> list[int]:
        return [i for i in indexes if plain.keys[i] not in already] if already else list(indexes)

    new, unchanged = fresh(found.new), fresh(found.unchanged)
    joining = len(fresh(found.joining))
    counts.new += len(new)
    counts.updated += joining - len(new)
    counts.unchanged += len(unchanged)
    if plain_batch.newcomer(scope).state is SubscriptionState.CONFIRMED:
        counts.confirmed += joining + len(unchanged)
    else:
        pending = sum(found.states[i] is SubscriptionState.PENDING for i in unchanged)
        counts.pending += joining + pending
        counts.confirmed += len(unchanged) - pending
    counts.undated += sum(plain.at[i] is None for i in (*fresh(found.joining), *unchanged))


def _store_exactly(
    connection: Connection,
    scope: ImportScope,
    drafts: Mapping[bytes, Draft],
    already_counted: Collection[bytes],
    counts: BatchCounts,
    *,
    dry: bool,
) -> None:
    """Everybody weighed by themselves: the way that ``plain_batch`` must equal."""
    stored = _Stored(connection, scope, drafts)
    plan = _Plan(scope)
    for key, draft in drafts.items():
        known = stored.contacts.get(key)
        standing = stored.standing(key, draft.address.domain)
        at = draft.newest
        verdict = weigh(scope.requested, at, standing)
        if key not in already_counted:
            _count(counts, verdict, at)
        if verdict.action is None:
            continue
        changed = plan.contact(key, draft, known, standing, verdict)
        changed = plan.subscription(key, draft, standing, verdict, stored.confirmed_at.get(key)) or changed
        plan.events(key, draft, standing, verdict, stored.evidence.get(key, ()))
        if key not in already_counted:
            if known is None:
                counts.new += 1
            elif changed:
                counts.updated += 1
            else:
                counts.unchanged += 1
    if not dry:
        plan.write(connection, stored)


def _count(counts: BatchCounts, verdict: Verdict, at: datetime | None) -> None:
    if verdict.kept_out is not None:
        counts.kept_out[verdict.kept_out] += 1
    elif verdict.state is SubscriptionState.CONFIRMED:
        counts.confirmed += 1
    elif verdict.state is SubscriptionState.PENDING:
        counts.pending += 1
    counts.undated += at is None


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


class _Plan:
    """Rows to write, gathered first so that each table is written once."""

    def __init__(self, scope: ImportScope) -> None:
        self._scope = scope
        self._moment = bulk.moment_text(now())
        self._contacts: list[tuple[Any, ...]] = []
        self._new: list[bytes] = []
        self._subscriptions: list[tuple[bytes, tuple[Any, ...]]] = []
        self._events: list[tuple[Any, ...]] = []
        self._lifts: list[int] = []
        self._states: dict[ContactState, list[int]] = {}

    def contact(self, key: bytes, draft: Draft, known: _Known | None, standing: Standing, verdict: Verdict) -> bool:
        """Plan the contact's row; returns whether it is new or changes."""
        remaining = tuple(b for b in standing.barriers if b.id not in verdict.lifts)
        state = contact_state(remaining)
        fields, attributes = draft.fields, draft.attributes
        self._lifts.extend(verdict.lifts)
        if known is None:
            self._new.append(key)
        else:
            fields, attributes = known.fields | fields, known.attributes | attributes
            if verdict.lifts and known.state != state.value:
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

    def subscription(
        self,
        key: bytes,
        draft: Draft,
        standing: Standing,
        verdict: Verdict,
        confirmed_before: datetime | None,
    ) -> bool:
        """Plan the subscription's row; returns whether it is new or changes."""
        at = draft.newest if verdict.state is SubscriptionState.CONFIRMED and not self._scope.requested else None
        left_at: datetime | None = None
        if verdict.state is standing.state:
            if at is None or (confirmed_before is not None and confirmed_before >= at):
                return False
        elif verdict.state is SubscriptionState.UNSUBSCRIBED:
            left_at = max(b.refused_at for b in standing.barriers if b.reason in BY_PERSON)
        row = (
            self._scope.list_id, verdict.state.value, draft.evidence[-1].source,
            bulk.moment_text(at), bulk.moment_text(left_at), self._moment,
        )  # fmt: skip
        self._subscriptions.append((key, row))
        return True

    def events(
        self,
        key: bytes,
        draft: Draft,
        standing: Standing,
        verdict: Verdict,
        recorded: Collection[tuple[datetime | None, str | None]],
    ) -> None:
        """Plan the evidence that isn't recorded yet."""
        newest = draft.newest
        for evidence in draft.evidence:
            if (evidence.at, evidence.source) in recorded:
                continue
            action = verdict.action
            if evidence.at != newest:
                action = weigh(self._scope.requested, evidence.at, standing).action
            assert action is not None
            occurred = bulk.moment_text(evidence.at or self._scope.started)
            self._events.append(
                (
                    key, self._scope.list_id, action.value, occurred, self._moment, self._scope.method,
                    evidence.source, evidence.wording, evidence.ip,
                )
            )  # fmt: skip

    def write(self, connection: Connection, stored: _Stored) -> None:
        bulk.upsert_contacts(connection, self._contacts)
        ids = {key: known.id for key, known in stored.contacts.items()}
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
