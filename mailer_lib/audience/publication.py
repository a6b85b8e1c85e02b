"""From built ranges to a published snapshot: files, then one rename, then one transaction.

    1  shard=NNNN/, excluded/, manifest.json are written below .building-<phase>, fsynced (``assembly.py``)
    2  .building-<phase> is renamed to <phase>
    3  snapshots.state = published and a row for each shard, in one transaction
    4  the ranges, and the people that behaviour rules were staged from, are removed

With a store on S3 the files go there between 2 and 3, under a name of their own (``sharing.py``).

Until the database says PUBLISHED nothing here counts: a publication that broke off, wherever, is done over from the
ranges, with the ``already`` of today. A lock in the edition's folder keeps two processes from publishing it at once.
"""

import fcntl
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, insert, select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience import sharing
from mailer_lib.audience.assembly import assemble
from mailer_lib.audience.files import sync_folder
from mailer_lib.audience.frequency import counting_of
from mailer_lib.audience.manifest import Manifest
from mailer_lib.audience.plan import SnapshotError, SnapshotPlan, edition_folder
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import ShardState, SnapshotState


def publish(engine: Engine, settings: Settings, plan: SnapshotPlan, already: Collection[bytes] = ()) -> Manifest:
    """Publish a snapshot whose ranges are built; safe to call again after any crash, and after success.

    Args:
        already: message keys that this edition has injected, or may have: they become ALREADY_SENT.

    Raises:
        SnapshotError: a range is missing or damaged, or the snapshot was discarded.
    """
    with _lock(plan, settings):
        if _state(engine, plan) == SnapshotState.PUBLISHED:
            path = sharing.published_path(engine, plan)
            assert path is not None
            made = manifests.load(store(settings) / path)
        else:
            keys = already if isinstance(already, Set) else frozenset(already)
            made, path = _published(engine, settings, plan, keys)
        sharing.clear(settings, plan, path)
        return made


def _published(engine: Engine, settings: Settings, plan: SnapshotPlan, already: Set[bytes]) -> tuple[Manifest, str]:
    """Manifest and place, once the database has them."""
    final = plan.published_folder(settings)
    while True:
        reopen(plan.folder(settings), final)
        sharing.take_ranges(settings, plan)
        made, counted = _assembled(engine, settings, plan, already, final)
        path = sharing.give_snapshot(settings, plan, made)
        try:
            recorded = _record(engine, settings, plan, made, counted=counted, path=path)
        except SnapshotError:
            sharing.take_back(settings, path)
            raise
        if recorded:
            return made, path
        sharing.take_back(settings, path)


def _assembled(
    engine: Engine, settings: Settings, plan: SnapshotPlan, already: Set[bytes], final: Path
) -> tuple[Manifest, frozenset[int]]:
    """The files, in their final place; and the other snapshots that a frequency cap counted."""
    with read(engine) as connection:
        counting = counting_of(connection, settings, plan)
    made = assemble(settings, plan, already, counting)
    plan.folder(settings).rename(final)
    sync_folder(final.parent)
    return made, frozenset() if counting is None else counting.snapshots


def reopen(building: Path, published: Path) -> None:
    """Give a folder its building name back when a publication broke off after the rename."""
    if published.exists():
        published.rename(building)
        sync_folder(building.parent)


@contextmanager
def _lock(plan: SnapshotPlan, settings: Settings) -> Iterator[None]:
    folder = edition_folder(settings, plan.campaign, plan.edition)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".publish-{plan.phase}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _state(engine: Engine, plan: SnapshotPlan) -> SnapshotState:
    mine = select(snapshots.c.state).where(snapshots.c.send_id == plan.send_id, snapshots.c.phase == plan.phase)
    with read(engine) as connection:
        state = connection.execute(mine).scalar_one_or_none()
    if state is None:
        raise SnapshotError(f"the database doesn't know the snapshot of {plan}; plan it again")
    return SnapshotState(state)


def _record(
    engine: Engine, settings: Settings, plan: SnapshotPlan, made: Manifest, *, counted: Set[int], path: str
) -> bool:
    """All that makes the shards leasable, in one transaction.

    False, with nothing done, when a send that the frequency cap has to count was published since it was counted: of two
    that freeze together the second one counts the first.
    """
    mine = (snapshots.c.send_id == plan.send_id, snapshots.c.phase == plan.phase)
    values = {
        "state": SnapshotState.PUBLISHED,
        "path": path,
        "manifest_sha256": manifests.sha256(made),
        "frozen": made.counts.frozen,
        "excluded": made.counts.excluded,
        "shard_count": made.shard_count,
        "published_at": made.published_at,
    }
    with write(engine) as connection:
        if plan.inputs.exclude.frequency_cap is not None:
            # One row that all publications under a cap lock, whatever their class: the oldest snapshot there is.
            connection.execute(select(snapshots.c.id).order_by(snapshots.c.id).limit(1).with_for_update())
            due = counting_of(connection, settings, plan)
            if due is not None and due.snapshots - counted:
                return False
        building = update(snapshots).where(*mine, snapshots.c.state == SnapshotState.BUILDING).values(values)
        if connection.execute(building).rowcount != 1:
            raise SnapshotError(f"the snapshot of {plan} was published or discarded by somebody else meanwhile")
        snapshot_id = connection.execute(select(snapshots.c.id).where(*mine)).scalar_one()
        rows = [
            {
                "snapshot_id": snapshot_id,
                "send_id": plan.send_id,
                "number": entry.number,
                "path": entry.path,
                "rows": entry.rows,
                "slice_rows": entry.slice_rows,
                "zone": entry.zone,
                "provider": entry.provider,
                "sha256": entry.sha256,
                "state": ShardState.OPEN,
            }
            for entry in made.shards
        ]
        if rows:
            connection.execute(insert(shards), rows)
    return True
