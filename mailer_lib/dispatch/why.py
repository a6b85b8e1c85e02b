"""Why one person got a send, or didn't: snapshot, ledgers and database asked for one address.

What the snapshot and the ledgers say is what happened. The rules are judged on the contact as it is now, with the
snapshot's criteria and its "today"; where the contact has changed since, the answer says so. Nothing of what was frozen
about the person is shown, so an erased one shows nothing but keyed facts (docs/decisions/0303, 0308).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.audience import catalogue, evidence
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.catalogue import Catalogue
from mailer_lib.audience.evaluation import Judged, judge
from mailer_lib.audience.evidence import Reason
from mailer_lib.audience.frequency import counting_of
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import PLAN_FILE, PlanSource, SnapshotError, load_plan
from mailer_lib.audience.published import PublishedSnapshot, find_published, published
from mailer_lib.audience.rules import CriteriaError
from mailer_lib.audience.whereabouts import FrozenRow, find_exclusion, find_row, may_hold
from mailer_lib.contacts.address import Address, normalise
from mailer_lib.contacts.person import look_up, suppressions_of
from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import sends, shards, subscriptions
from mailer_lib.dispatch.row_outcome import RowOutcome, row_outcome
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import bound_variant
from mailer_lib.shard.store import StorePath, store
from mailer_lib.terms import ExclusionReason, Outcome, SuppressionReason


@dataclass(frozen=True)
class InPhase:
    """One phase's word. Neither ``frozen`` nor ``left_out``: the person didn't match when it was read."""

    phase: int
    as_of: datetime
    shard: int  # that holds them, or could
    frozen: FrozenRow | None = None
    outcome: RowOutcome | None = None  # of ``frozen``
    left_out: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class Rules:
    """The criteria of one phase, judged now. ``answer`` None: ``problem`` says why they can't be."""

    phase: int
    criteria: str  # name under which they were stored; may be empty
    as_of: datetime  # what relative dates are relative to
    answer: Judged | None
    problem: str = ""
    changed: tuple[str, ...] = ()  # since ``as_of``: sentences; none: the answer is that of the snapshot


@dataclass(frozen=True)
class Why:
    """``rules`` None: there is no contact, or a seed list was frozen, which has no rules."""

    send: str
    address_hash: bytes
    contact_id: int | None  # today
    known: bool  # contact, consent or suppression of this address; or a place in the snapshot
    erased_at: datetime | None
    phases: tuple[InPhase, ...]
    rules: Rules | None
    seed_list: str = ""


def why(
    engine: Engine,
    settings: Settings,
    address: str,
    *,
    campaign: str,
    edition: str,
    phase: int | None = None,
    actor: str,
) -> Why:
    """Every phase of a send, or one. Audited without the address.

    Raises:
        AddressError: it isn't an address.
        SnapshotError, ShardError: no published snapshot, or its files can't be read.
    """
    person = normalise(address)
    address_hash = settings.identity().address_hash(person.normalised)
    with read(engine) as connection:
        if phase is None and (every := published(connection, settings, campaign, edition)):
            asked: Sequence[PublishedSnapshot] = every
        else:
            asked = [find_published(connection, settings, campaign, edition, phase)]
        found = _Asked(connection, settings, person, address_hash).of(asked)
    with write(engine) as connection:
        audit.record(connection, actor, "snapshot.why", f"address:{address_hash.hex()}", {"send": found.send})
    return found


class _Asked:
    """One person, and the open connection to ask."""

    def __init__(self, connection: Connection, settings: Settings, address: Address, address_hash: bytes) -> None:
        self._connection = connection
        self._settings = settings
        self._store = store(settings)
        self._address = address
        self._hash = address_hash
        self._person = look_up(connection, address_hash=address_hash, domain=address.domain)
        self._known = catalogue.load(connection)

    def of(self, snapshots: Sequence[PublishedSnapshot]) -> Why:
        frozen = [manifests.load(snapshot.folder) for snapshot in snapshots]
        phases: list[InPhase] = []
        for snapshot, manifest in zip(snapshots, frozen, strict=True):
            phases.append(self._phase(snapshot, manifest, phases))
        erased = [s for s in suppressions_of(self._connection, self._hash) if s.reason == SuppressionReason.ERASED]
        place = _telling(phases)
        judged, manifest = snapshots[place], frozen[place]
        seeds = manifest.criteria.source == PlanSource.SEEDS
        contact = self._person.contact
        return Why(
            send=judged.send,
            address_hash=self._hash,
            contact_id=None if contact is None else contact["id"],
            known=self._person.known or any(p.frozen or p.left_out for p in phases),
            erased_at=erased[-1].refused_at if erased and contact is None else None,
            phases=tuple(phases),
            rules=None if seeds or contact is None else self._rules(judged, manifest),
            seed_list=manifest.criteria.name if seeds else "",
        )

    def _phase(self, snapshot: PublishedSnapshot, manifest: Manifest, earlier: Sequence[InPhase]) -> InPhase:
        answer = InPhase(snapshot.phase, manifest.as_of, manifest.shard_of(self._hash))
        found = self._row(snapshot.id, snapshot.folder, manifest)
        if found is not None:
            return replace(answer, shard=found[0], frozen=found[1], outcome=found[2])
        mask = find_exclusion(snapshot.folder, manifest, self._hash)
        return replace(answer, left_out=self._reasons(mask, snapshot.folder, manifest, earlier)) if mask else answer

    def _reasons(
        self, mask: ExclusionReason, folder: StorePath, manifest: Manifest, earlier: Sequence[InPhase]
    ) -> tuple[Reason, ...]:
        facts = evidence.gather(
            self._connection,
            self._person,
            address_hash=self._hash,
            domain=self._address.domain,
            list_id=manifest.list_id,
            criteria=tuple(self._left_out_by(folder, manifest)) if mask & ExclusionReason.EXCLUDED_LIST else (),
            earlier=tuple(_handled(earlier)),
            counted=tuple(self._counted(folder)) if mask & ExclusionReason.FREQUENCY_CAP else (),
        )
        return evidence.explain(mask, facts, evidence.Frozen.of(manifest))

    def _counted(self, folder: StorePath) -> Iterator[str]:
        """Messages of other sends to this person within the cap's days, as they stand now."""
        counting = counting_of(self._connection, self._settings, load_plan(folder / PLAN_FILE))
        if counting is None:
            return
        for snapshot_id, other in sorted({(each.snapshot_id, each.folder) for each in counting.shards}):
            manifest = manifests.load(self._store / other)
            answer = self._row(snapshot_id, self._store / other, manifest)
            if answer is None:
                continue
            number, row, said = answer
            open_from = next(
                each.open_from for each in counting.shards if (each.snapshot_id, each.number) == (snapshot_id, number)
            )
            handed_over = said.outcome in {Outcome.INJECTED, Outcome.UNKNOWN} and said.at and said.at >= counting.since
            if handed_over or (said.outcome is None and row.row < open_from):
                yield f"{manifest.campaign}#{manifest.edition} {_told(said)}"

    def _row(self, snapshot_id: int, folder: StorePath, manifest: Manifest) -> tuple[int, FrozenRow, RowOutcome] | None:
        held = self._connection.execute(
            select(shards.c.id, shards.c.number, shards.c.path, sends.c.decided_variant)
            .join_from(shards, sends, shards.c.send_id == sends.c.id)
            .where(shards.c.snapshot_id == snapshot_id, may_hold(manifest, self._hash))
        ).all()
        for shard in held:
            row = find_row(folder / shard.path, self._hash)
            if row is not None:
                row = replace(row, variant=bound_variant(row.variant, shard.decided_variant))
                return shard.number, row, row_outcome(self._connection, self._store, shard.id, row.row)
        return None

    def _left_out_by(self, folder: StorePath, manifest: Manifest) -> Iterator[str]:
        for name in manifest.exclude.criteria:
            tree = {"combinator": "and", "rules": [{"field": "criteria", "operator": "=", "value": name}]}
            try:
                answer = self._judge(tree, folder, manifest)
            except (CriteriaError, SnapshotError):
                continue  # the sentence does without
            if answer is not None and answer.holds:
                yield name

    def _rules(self, snapshot: PublishedSnapshot, manifest: Manifest) -> Rules:
        rules = Rules(snapshot.phase, manifest.criteria.name, manifest.as_of, None)
        try:
            answer = self._judge(manifest.criteria.rules, snapshot.folder, manifest)
        except (CriteriaError, SnapshotError) as error:
            return replace(rules, problem=f"the criteria of the snapshot can't be asked any more: {error}")
        return replace(rules, answer=answer, changed=tuple(self._changes(manifest)))

    def _judge(self, tree: object, folder: StorePath, manifest: Manifest) -> Judged | None:
        if self._person.contact is None:
            return None
        return judge(
            self._connection,
            tree,
            _as_frozen(self._known, manifest),
            contact_id=self._person.contact["id"],
            now=manifest.as_of,
            thresholds=load_plan(folder / PLAN_FILE).thresholds,
            settings=self._settings,
        )

    def _changes(self, manifest: Manifest) -> Iterator[str]:
        contact = self._person.contact
        assert contact is not None
        since = manifest.as_of
        if contact["id"] > manifest.max_contact_id:
            yield f"became a contact on {_when(contact['created_at'])}, after the snapshot was frozen"
            return
        if contact["updated_at"] > since:
            yield f"the contact was last changed on {_when(contact['updated_at'])}"
        mine = subscriptions.c.contact_id == contact["id"]
        changed_at = self._connection.scalar(select(func.max(subscriptions.c.updated_at)).where(mine))
        if changed_at is not None and changed_at > since:
            yield f"a subscription was last changed on {_when(changed_at)}"


def _telling(phases: Sequence[InPhase]) -> int:
    """Whose criteria are worth a look: the newest phase that has them, else that left them out, else the newest."""
    places = range(len(phases) - 1, -1, -1)
    has = [n for n in places if phases[n].frozen]
    left_out = [n for n in places if phases[n].left_out]
    return [*has, *left_out, len(phases) - 1][0]


def headline(found: Why) -> str:
    """The answer in one sentence."""
    selected = [p for p in found.phases if p.frozen is not None]
    if selected:
        return f"selected for {found.send}" + (", and erased since" if found.erased_at else "")
    if any(p.left_out for p in found.phases):
        return f"matched, but was left out of {found.send}"
    if not found.known:
        return f"nobody of this address is known; not in {found.send}"
    if found.erased_at:
        return f"not in {found.send}; the person was erased on {_when(found.erased_at)}"
    if found.seed_list:
        return f'not in {found.send}, which went to the seed list "{found.seed_list}"'
    if found.contact_id is None:
        return f"not in {found.send}; no contact has this address"
    if found.rules is None or found.rules.answer is None:
        return f"not in {found.send}: didn't match when it was frozen"
    now = "but matches now" if found.rules.answer.holds else "and doesn't match now either"
    return f"not in {found.send}: didn't match when it was frozen, {now}"


def _handled(earlier: Sequence[InPhase]) -> Iterator[str]:
    for one in earlier:
        if one.outcome is not None:
            yield f"phase {one.phase}: {_told(one.outcome)}"


def _told(said: RowOutcome) -> str:
    return f"{said.outcome or 'not settled'}" + (f" on {_when(said.at)}" if said.at else "")


def _as_frozen(known: Catalogue, manifest: Manifest) -> Catalogue:
    """Other criteria mean what they meant then."""
    return replace(known, criteria={**manifest.criteria.references, **manifest.exclude.references})


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
