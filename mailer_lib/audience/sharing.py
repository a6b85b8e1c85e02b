"""What machines share while a snapshot is built, when the snapshot store is on S3. In a folder nothing has to be moved.

A machine plans, reads ranges and assembles below its own work folder, just as in a folder that is the store, and keeps
nothing of it there afterwards. What the next one needs goes through the store:

    <edition>/.building-<phase>/behaviour/<set>.parquet plan.json              plan.json last
    <edition>/.building-<phase>/ranges/NNNN/<hash>/rows.arrow … done.json      one built range; done.json last
    <edition>/<phase>-<hash>/plan.json shard=NNNN/… excluded/… manifest.json   one publication; manifest.json last

``<hash>`` is of ``done.json`` or ``manifest.json``, which name the checksum of every other file: what two processes
build of the same thing never mixes. Which publication counts is ``snapshots.path``, set in the transaction that
publishes. Others of that phase (of a process that was killed or came second) are removed by the one that counts.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import Engine, select

from mailer_lib.audience import behaviour_sets, ranges
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.files import replace_file
from mailer_lib.audience.manifest import MANIFEST_FILE, Manifest, RangeRead
from mailer_lib.audience.plan import PLAN_FILE, IdRange, SnapshotError, SnapshotPlan, load_plan
from mailer_lib.audience.ranges import DONE_FILE, RangeDone, range_folder
from mailer_lib.database.engine import read
from mailer_lib.database.schema import snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.store import S3Path, StorePath, at_once, store
from mailer_lib.terms import SnapshotState

_HASH_DIGITS = 16


def shared_folder(plan: SnapshotPlan, settings: Settings) -> StorePath:
    """Where others find what is built of a snapshot that isn't published yet."""
    return _in_store(settings, plan.folder(settings))


# --- the plan ---------------------------------------------------------------------------------------------------------


def take_plan(settings: Settings, building: Path) -> None:
    """Let this machine's building folder be the one of the plan that the store has, if it has one."""
    shared = _in_store(settings, building)
    if isinstance(shared, Path):
        return
    try:
        data = (shared / PLAN_FILE).read_bytes()
    except FileNotFoundError:
        return
    own = building / PLAN_FILE
    if own.exists() and own.read_bytes() == data:
        return
    shutil.rmtree(building, ignore_errors=True)  # of a plan that was discarded
    for path in shared.glob(f"{behaviour_sets.FOLDER}/*.parquet"):
        (building / behaviour_sets.FOLDER).mkdir(parents=True, exist_ok=True)
        replace_file(building / behaviour_sets.FOLDER / path.name, path.read_bytes())
    building.mkdir(parents=True, exist_ok=True)
    replace_file(own, data)


def give_plan(settings: Settings, plan: SnapshotPlan) -> None:
    """Put a plan, and the people whom it froze, where others find them."""
    shared = shared_folder(plan, settings)
    if isinstance(shared, S3Path):
        sets = sorted((plan.folder(settings) / behaviour_sets.FOLDER).glob("*.parquet"))
        at_once(lambda path: (shared / behaviour_sets.FOLDER / path.name).write_bytes(path.read_bytes()), sets)
        (shared / PLAN_FILE).write_bytes(plan.path(settings).read_bytes())


def discard(settings: Settings, building: Path) -> None:
    """Of a plan that isn't resumed: the plan first, so that nobody builds for it any more."""
    shared = _in_store(settings, building)
    if isinstance(shared, S3Path):
        (shared / PLAN_FILE).unlink(missing_ok=True)
        shared.remove_all()


# --- ranges -----------------------------------------------------------------------------------------------------------


def build_range(engine: Engine, settings: Settings, plan: SnapshotPlan, index: int) -> RangeRead:
    """Read one range, unless that was done before, on whatever machine. Two at once do no harm.

    Raises:
        SnapshotError: no such range, or the plan was discarded meanwhile.
        StoreError: the store can't be reached.
    """
    shared = shared_folder(plan, settings)
    if isinstance(shared, Path):
        return ranges.build_range(engine, settings, plan, index)
    plan.range(index)
    made = _published(engine, settings, plan)
    if made is not None:
        return made.ranges[index]
    done = _built(shared, plan, index)
    if done is not None:
        return done[1].summary
    if load_plan(shared / PLAN_FILE) != plan:
        raise SnapshotError(f"this plan of the snapshot of {plan} was discarded; plan it again")
    take_plan(settings, plan.folder(settings))
    summary = ranges.build_range(engine, settings, plan, index)
    folder = range_folder(plan, settings, index)
    try:
        _give(folder, _range(shared, index) / _hash((folder / DONE_FILE).read_bytes()), DONE_FILE)
    except FileNotFoundError:  # another process of this machine gave it, and removed it here
        if _built(shared, plan, index) is None:
            raise
    shutil.rmtree(folder, ignore_errors=True)
    return summary


def take_ranges(settings: Settings, plan: SnapshotPlan) -> None:
    """Bring every range that was built elsewhere to this machine's building folder, to be assembled."""
    shared = shared_folder(plan, settings)
    if isinstance(shared, Path):
        return
    take_plan(settings, plan.folder(settings))

    def take(ids: IdRange) -> None:
        built = _built(shared, plan, ids.index)
        own = range_folder(plan, settings, ids.index)
        if built is not None and ranges.read_done(own) != built[1]:
            shutil.rmtree(own, ignore_errors=True)
            _take(*built, own)

    at_once(take, plan.ranges)


def _range(shared: S3Path, index: int) -> S3Path:
    return shared / "ranges" / f"{index:04d}"


def _built(shared: S3Path, plan: SnapshotPlan, index: int) -> tuple[S3Path, RangeDone] | None:
    """Where a range of this plan lies, whole, and its ``done.json``. Of several builds the first by name counts."""
    for path in _range(shared, index).glob(f"*/{DONE_FILE}"):
        try:
            done = RangeDone.model_validate_json(path.read_bytes())
        except ValidationError:
            raise SnapshotError(f"{path} is damaged; remove {path.parent}/ and build the range again") from None
        if done.as_of == plan.as_of:
            return path.parent, done
    return None


def _take(folder: S3Path, done: RangeDone, own: Path) -> None:
    own.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=own.parent, prefix=f".{own.name}-") as work:
        whole = Path(work) / own.name
        whole.mkdir()
        for run in (*done.rows, *done.excluded):
            try:
                found = (folder / run.name).read_file(whole / run.name)
            except FileNotFoundError:
                found = ""
            if found != run.sha256:
                raise SnapshotError(f"{folder / run.name} is missing or damaged; remove {folder}/ and build it again")
        (folder / DONE_FILE).read_file(whole / DONE_FILE)
        whole.rename(own)


# --- the publication --------------------------------------------------------------------------------------------------


def give_snapshot(settings: Settings, plan: SnapshotPlan, made: Manifest) -> str:
    """Put the assembled snapshot into the store, the manifest last. Returns what ``snapshots.path`` must say."""
    final = plan.published_folder(settings)
    root = store(settings)
    if isinstance(root, Path):
        return str(final.relative_to(root))
    path = f"{final.relative_to(settings.storage)}-{manifests.sha256(made)[:_HASH_DIGITS]}"
    _give(final, root / path, MANIFEST_FILE)
    return path


def take_back(settings: Settings, path: str) -> None:
    """Remove a publication that the database didn't take."""
    root = store(settings)
    if isinstance(root, S3Path):
        (root / path / MANIFEST_FILE).unlink(missing_ok=True)
        (root / path).remove_all()


def clear(settings: Settings, plan: SnapshotPlan, path: str) -> None:
    """After publication as ``path``: remove the ranges, the people that behaviour rules were staged from, and what
    other tries to publish this phase left behind.
    """
    final = plan.published_folder(settings)
    shared = shared_folder(plan, settings)
    if isinstance(shared, Path):
        for needless in ("ranges", behaviour_sets.FOLDER):
            shutil.rmtree(final / needless, ignore_errors=True)
        return
    for needless in ("ranges", behaviour_sets.FOLDER):
        (shared / needless).remove_all()
    edition = shared.parent
    for name in edition.children():
        if name.startswith(f"{plan.phase}-") and name != path.rsplit("/", 1)[-1]:
            (edition / name).remove_all()
    for own in (final, plan.folder(settings)):
        shutil.rmtree(own, ignore_errors=True)


def published_path(engine: Engine, plan: SnapshotPlan) -> str | None:
    """Where the published snapshot of this send and phase lies below the store; None: it isn't published."""
    s = snapshots.c
    mine = select(s.path).where(s.send_id == plan.send_id, s.phase == plan.phase, s.state == SnapshotState.PUBLISHED)
    with read(engine) as connection:
        return connection.execute(mine).scalar_one_or_none()


def _published(engine: Engine, settings: Settings, plan: SnapshotPlan) -> Manifest | None:
    path = published_path(engine, plan)
    made = None if path is None else manifests.load(store(settings) / path)
    return made if made is not None and made.as_of == plan.as_of else None


def _give(own: Path, shared: S3Path, last: str) -> None:
    """Every file of a folder, ``last`` when all others are there."""
    names = [path.relative_to(own).as_posix() for path in sorted(own.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith(("ranges/", f"{behaviour_sets.FOLDER}/", "."))]
    at_once(lambda name: (shared / name).write_file(own / name), [name for name in names if name != last])
    (shared / last).write_bytes((own / last).read_bytes())


def _in_store(settings: Settings, own: Path) -> StorePath:
    """The path in the store of what lies there below this machine's work folder."""
    root = store(settings)
    return own if isinstance(root, Path) else root / own.relative_to(settings.storage).as_posix()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]
