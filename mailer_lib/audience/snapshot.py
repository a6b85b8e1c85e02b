"""The snapshot of a send: plan, build each range, publish. Each step can be killed and called again, by any process.

    plan = plan_snapshot(engine, settings, send_id, rules=…, list_id=…, attributes=…, weights=…)
    build_ranges(engine, settings, plan)      # or build_range(engine, settings, plan, index) for each, anywhere
    manifest = publish(engine, settings, plan, already)

docs/architecture.md, "Files", has the folders. A seed list takes the same road (``plan_seed_snapshot``).
"""

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from mailer_lib.audience import behaviour_sets, behaviour_store, catalogue
from mailer_lib.audience.counts import estimate
from mailer_lib.audience.criteria import rules_sha256, where
from mailer_lib.audience.files import replace_file, sync_folder
from mailer_lib.audience.manifest import Manifest, RangeRead
from mailer_lib.audience.plan import (
    PLAN_FILE,
    Exclude,
    IdRange,
    Inputs,
    PlanSource,
    Slice,
    SnapshotError,
    SnapshotPlan,
    building_folder,
    check_weights,
    edition_folder,
    id_ranges,
    load_plan,
    range_count,
    shard_count,
    used_attributes,
)
from mailer_lib.audience.publication import publish, reopen
from mailer_lib.audience.range_workers import build_ranges
from mailer_lib.audience.rules import CriteriaError, Group, behaviours, parse
from mailer_lib.audience.rules import references as rules_references
from mailer_lib.audience.sampling import excluded_group, thresholds
from mailer_lib.audience.sharing import build_range, discard, give_plan, take_plan
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, contacts, seed_addresses, sends, shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import ShardState, SnapshotState

__all__ = [
    "RangeRead",
    "SnapshotError",
    "SnapshotPlan",
    "build",
    "build_range",
    "build_ranges",
    "build_seed_snapshot",
    "load_plan",
    "plan_seed_snapshot",
    "plan_snapshot",
    "publish",
]

MAX_PLAN_AGE = timedelta(hours=24)  # an unpublished plan that is older would leave out whom a day brought


def plan_snapshot(
    engine: Engine,
    settings: Settings,
    send_id: int,
    *,
    rules: Any,
    list_id: int,
    attributes: Sequence[str] = (),
    weights: Sequence[int] = (1,),
    criteria_name: str = "",
    exclude: Exclude = Exclude(),  # noqa: B008  frozen
    test_slice: Slice | None = None,
    zones: str | None = None,
    alone: Collection[str] = (),
) -> SnapshotPlan:
    """Freeze ``now`` and the newest contact, cut ranges, write ``plan.json`` and the row in ``snapshots``.

    A plan that is being built already is returned as it is, when it was made for the same inputs less than a day ago;
    otherwise it is discarded with all that was built. A published phase that has unsettled rows is returned too: nobody
    may be in two open phases of a send. When all its rows are settled, the next phase is planned.

    Args:
        rules: the tree of the sample criteria.
        list_id: list of the campaign: consent is judged by it.
        attributes: keys that template or criteria need in the shards.
        weights: of the variants, in their order.
        criteria_name: under which ``rules`` are stored, for the manifest.
        exclude: whom the campaign leaves out.
        test_slice: whom to send to first; the rest gets the variant that a person decides on then.
        zones: part the shards by the recipients' time zones; this one for who has none.
        alone: mailbox providers that get shards of their own.

    Raises:
        SnapshotError: no such send, an attribute that isn't declared, wrong weights, no such list to leave out, what
            people did is asked for and can't be read.
        CriteriaError: the rules can't be used.
    """
    with read(engine) as connection:
        known = catalogue.load(connection)
    parse(rules, known)  # before anything is written
    references = rules_references(rules, known)
    exclude = _whole(exclude, known)
    inputs = Inputs(
        source=PlanSource.CRITERIA,
        criteria_name=criteria_name,
        rules=rules,
        references=references,
        rules_sha256=rules_sha256(rules, references),
        list_id=list_id,
        exclude=exclude,
        attributes=used_attributes(attributes, known.attributes),
        weights=check_weights(weights),
        test_slice=test_slice,
        zones=zones,
        alone=tuple(sorted(alone)),
    )

    if behaviours(parse(rules, known), *_excluded(exclude, known)):
        unread = behaviour_store.refresh(engine, settings).unread
        if unread:
            raise SnapshotError(f"what people did can't be read: {'; '.join(unread)}; restore the snapshot store")

    def measure(connection: Connection, as_of: datetime, folder: Path) -> _Extent:
        first, last = connection.execute(select(func.min(contacts.c.id), func.max(contacts.c.id))).one()
        if last is None:
            return _Extent(0, 0, ())
        group, excluded = parse(rules, known, now=as_of), _excluded(exclude, known, now=as_of)
        asked, frozen = behaviours(group, *excluded), folder / behaviour_sets.FOLDER
        behaviour_sets.write_people(settings, asked, frozen)
        with behaviour_sets.staged(connection, asked, behaviour_sets.FrozenPeople(frozen)):
            samples: dict[str, str] = {}
            for one in (group, *excluded):
                samples |= thresholds(connection, one, int(last))
            count = estimate(connection, where(group, samples), int(first), int(last))
        return _Extent(int(last), count, id_ranges(int(first), int(last), range_count(count)), samples)

    return _plan(engine, settings, send_id, inputs, measure)


def _excluded(exclude: Exclude, known: catalogue.Catalogue, *, now: datetime | None = None) -> tuple[Group, ...]:
    return (excluded_group(exclude, known, now=now),) if exclude.criteria else ()


def _whole(exclude: Exclude, known: catalogue.Catalogue) -> Exclude:
    """With the trees of its criteria, checked."""
    for name in exclude.lists:
        if name not in known.lists:
            near = catalogue.suggestion(name, known.lists)
            raise SnapshotError(f'the campaign leaves out the list "{name}", which doesn\'t exist{near}')
    if not exclude.criteria:
        return exclude
    try:
        excluded_group(exclude, known)
    except CriteriaError as error:
        raise SnapshotError(f"the criteria that the campaign leaves out can't be used: {error}") from None
    named = [{"field": "criteria", "operator": "=", "value": name} for name in exclude.criteria]
    return exclude.model_copy(update={"references": rules_references({"rules": named}, known)})


def plan_seed_snapshot(
    engine: Engine,
    settings: Settings,
    send_id: int,
    *,
    seed_list: str,
    list_id: int,
    attributes: Sequence[str] = (),
    weights: Sequence[int] = (1,),
) -> SnapshotPlan:
    """A plan with one range: the addresses of a seed list, for mode ``test``.

    Seeds need no subscription; one who unsubscribed or is suppressed is left out as anybody. A seed who is a contact
    lends name and attributes; for others the message's defaults stand in.

    Raises:
        SnapshotError: no such send or seed list, an attribute that isn't declared, wrong weights.
    """
    with read(engine) as connection:
        known = catalogue.load(connection)
        seeds = connection.execute(
            select(func.count()).select_from(seed_addresses).where(seed_addresses.c.list_name == seed_list)
        ).scalar_one()
    if not seeds:
        raise SnapshotError(f'the seed list "{seed_list}" is empty; fill it with `mailfleet seeds`')
    inputs = Inputs(
        source=PlanSource.SEEDS,
        seed_list=seed_list,
        rules_sha256=rules_sha256(None),
        list_id=list_id,
        attributes=used_attributes(attributes, known.attributes),
        weights=check_weights(weights),
    )

    def measure(connection: Connection, as_of: datetime, folder: Path) -> _Extent:
        last = connection.execute(select(func.coalesce(func.max(contacts.c.id), 0))).scalar_one()
        return _Extent(int(last), seeds, (IdRange(index=0, first=0, last=int(last)),))

    return _plan(engine, settings, send_id, inputs, measure)


def build(
    engine: Engine,
    settings: Settings,
    plan: SnapshotPlan,
    already: Collection[bytes] = (),
    *,
    processes: int = 1,
) -> Manifest:
    """Every range, by so many processes, then publish."""
    build_ranges(engine, settings, plan, processes=processes)
    return publish(engine, settings, plan, already)


def build_seed_snapshot(
    engine: Engine,
    settings: Settings,
    send_id: int,
    *,
    seed_list: str,
    list_id: int,
    attributes: Sequence[str] = (),
    weights: Sequence[int] = (1,),
    already: Collection[bytes] = (),
) -> Manifest:
    """``plan_seed_snapshot``, its range, and ``publish``."""
    plan = plan_seed_snapshot(
        engine, settings, send_id, seed_list=seed_list, list_id=list_id, attributes=attributes, weights=weights
    )
    return build(engine, settings, plan, already)


# --- planning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Extent:
    max_contact_id: int
    matching: int
    ranges: tuple[IdRange, ...]
    thresholds: Mapping[str, str] = field(default_factory=dict)


def _plan(
    engine: Engine,
    settings: Settings,
    send_id: int,
    inputs: Inputs,
    measure: Callable[[Connection, datetime, Path], _Extent],
) -> SnapshotPlan:
    with read(engine) as connection:
        campaign, edition = _name(connection, send_id)
        phase, building, newest = _phase(connection, send_id)
        unsettled = _has_unsettled_rows(connection, send_id)
    home = edition_folder(settings, campaign, edition)
    if unsettled:
        return load_plan(store(settings) / newest / PLAN_FILE)
    folder, published = building_folder(home, phase), home / str(phase)
    if published.exists():
        if not building:
            raise SnapshotError(
                f"{published} exists, but the database knows no such snapshot (was an older backup restored?); move it "
                "away"
            )
        reopen(folder, published)
    take_plan(settings, folder)
    plan = _resumable(folder / PLAN_FILE, send_id, inputs)
    if plan is None:
        discard(settings, folder)
        _discard(folder)
        folder.mkdir(parents=True)
        sync_folder(folder.parent)
        with read(engine) as connection:
            as_of = now()
            extent = measure(connection, as_of, folder)
        plan = SnapshotPlan(
            send_id=send_id,
            campaign=campaign,
            edition=edition,
            phase=phase,
            inputs=inputs,
            as_of=as_of,
            max_contact_id=extent.max_contact_id,
            thresholds=dict(extent.thresholds),
            matching=extent.matching,
            shards=shard_count(extent.matching, settings.shard_rows),
            ranges=extent.ranges,
        )
        replace_file(plan.path(settings), plan.model_dump_json(indent=1).encode())
    give_plan(settings, plan)
    _record(engine, plan, settings)
    return plan


def _name(connection: Connection, send_id: int) -> tuple[str, str]:
    row = connection.execute(
        select(campaigns.c.name, sends.c.edition)
        .join_from(sends, campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(sends.c.id == send_id)
    ).one_or_none()
    if row is None:
        raise SnapshotError(f"there is no send with the id {send_id}")
    return row.name, row.edition


def _phase(connection: Connection, send_id: int) -> tuple[int, bool, str]:
    """The phase to plan, whether the database has it as being built already, and where the newest one lies."""
    newest = connection.execute(
        select(snapshots.c.phase, snapshots.c.state, snapshots.c.path)
        .where(snapshots.c.send_id == send_id)
        .order_by(snapshots.c.phase.desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return 1, False, ""
    building = newest.state == SnapshotState.BUILDING
    return (newest.phase if building else newest.phase + 1), building, newest.path


def _has_unsettled_rows(connection: Connection, send_id: int) -> bool:
    unsettled = select(shards.c.id).where(shards.c.send_id == send_id, shards.c.state != ShardState.SETTLED)
    return connection.execute(unsettled.limit(1)).first() is not None


def _resumable(path: Path, send_id: int, inputs: Inputs) -> SnapshotPlan | None:
    if not path.exists():
        return None
    try:
        plan = load_plan(path)
    except SnapshotError:
        return None
    fresh = _age(plan.as_of) < MAX_PLAN_AGE
    return plan if plan.send_id == send_id and plan.inputs == inputs and fresh else None


def _age(moment: datetime) -> timedelta:
    return now() - moment


def _discard(folder: Path) -> None:
    """Take it out of sight in one rename, so that a kill can't leave half a range with its ``done.json``."""
    if folder.exists():
        away = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".discarded-"))
        folder.rename(away / folder.name)
    for left in folder.parent.glob(".discarded-*"):
        shutil.rmtree(left, ignore_errors=True)


def _record(engine: Engine, plan: SnapshotPlan, settings: Settings) -> None:
    mine = (snapshots.c.send_id == plan.send_id, snapshots.c.phase == plan.phase)
    values = {"as_of": plan.as_of, "max_contact_id": plan.max_contact_id}
    path = str(plan.published_folder(settings).relative_to(settings.storage))
    with write(engine) as connection:
        state = connection.execute(select(snapshots.c.state).where(*mine)).scalar_one_or_none()
        if state is None:
            made = {"send_id": plan.send_id, "phase": plan.phase, "state": SnapshotState.BUILDING, "path": path}
            connection.execute(insert(snapshots).values(**made, **values, created_at=now()))
        elif state == SnapshotState.PUBLISHED:
            raise SnapshotError(f"the snapshot of {plan} was published by somebody else meanwhile")
        else:
            connection.execute(update(snapshots).where(*mine).values(values))
