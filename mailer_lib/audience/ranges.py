"""One id range, read once and kept below ``.building-<phase>/ranges/NNNN/`` until publication.

    rows.arrow      selected people as Arrow IPC: a record batch for each GROUP_SHARDS planned shards, so that
                    publication reads only those that it is at; then the same groups of what was read later
    excluded.arrow  people who matched and are barred, with the bitmask of their reasons, likewise
    done.json       read time, rows, checksums; written last, then the folder gets its name

A range is read in blocks of some ten thousand rows, and written whenever HELD_BYTES have come together, so its size
doesn't matter to memory.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import ColumnElement, Connection, Engine, Select, literal, select
from sqlalchemy.types import LargeBinary

from mailer_lib.audience import behaviour_sets, catalogue
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.behaviour import Behaviour
from mailer_lib.audience.behaviour_sets import FrozenPeople
from mailer_lib.audience.criteria import where
from mailer_lib.audience.exclusions import Exclusions, by_suppression, exclusions, seed_exclusions
from mailer_lib.audience.expressions import field_expression
from mailer_lib.audience.files import replace_file, sha256_of, sync_folder
from mailer_lib.audience.freezing import EXCLUDED_SCHEMA
from mailer_lib.audience.manifest import MANIFEST_FILE, RangeRead
from mailer_lib.audience.people import Freezing, Rows, split
from mailer_lib.audience.plan import IdRange, PlanSource, SnapshotError, SnapshotPlan, load_plan
from mailer_lib.audience.rules import Group, behaviours, parse
from mailer_lib.audience.sampling import excluded_group, held
from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.contacts.providers import provider_of
from mailer_lib.database.bulk_read import read_blocks
from mailer_lib.database.engine import now, read, snapshot
from mailer_lib.database.schema import contacts, domain_suppressions, seed_addresses
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.terms import ExclusionReason

DONE_FILE = "done.json"
GROUP_SHARDS = 4  # of up to 5,000 rows, 3 MB; eight took 20 MB more at publication, and no less time
HELD_BYTES = 16 << 20  # about 100,000 people; chosen, not tuned


class RunFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int
    sha256: str


class RangeDone(BaseModel):
    """``done.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3]  # 1 had runs without message key and variant, 2 a record batch for each block
    index: int
    first: int
    last: int
    as_of: datetime  # of the plan that it belongs to
    read_at: datetime
    read_s: float
    rows: tuple[RunFile, ...]
    excluded: tuple[RunFile, ...]

    @property
    def summary(self) -> RangeRead:
        """As the manifest has it."""
        selected, excluded = sum(run.rows for run in self.rows), sum(run.rows for run in self.excluded)
        return RangeRead(
            index=self.index,
            first=self.first,
            last=self.last,
            read_at=self.read_at,
            read_s=self.read_s,
            matched=selected + excluded,
            selected=selected,
            excluded=excluded,
        )


def freezing_of(plan: SnapshotPlan, settings: Settings) -> Freezing:
    send_key = settings.identity().send_key(plan.campaign, plan.edition)
    return Freezing(plan.inputs.attributes, plan.shards, send_key, plan.inputs.weights)


def range_folder(plan: SnapshotPlan, settings: Settings, index: int) -> Path:
    return plan.folder(settings) / "ranges" / f"{index:04d}"


def read_done(folder: Path) -> RangeDone | None:
    """``done.json`` of a range's folder; None when the range isn't built."""
    try:
        return RangeDone.model_validate_json((folder / DONE_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise SnapshotError(f"{folder / DONE_FILE} is damaged; remove {folder} and build the range again") from None


def build_range(engine: Engine, settings: Settings, plan: SnapshotPlan, index: int) -> RangeRead:
    """Read one range, unless that was done before. Any process may do it, two at once too: the first to finish wins.

    Raises:
        SnapshotError: no such range, or the plan was discarded meanwhile.
    """
    ids, folder = plan.range(index), range_folder(plan, settings, index)
    published = plan.published_folder(settings)
    if (published / MANIFEST_FILE).exists():
        manifest = manifests.load(published)
        if manifest.as_of == plan.as_of and manifest.send_id == plan.send_id:
            return manifest.ranges[index]
    done = read_done(folder)
    if done is not None and done.as_of == plan.as_of:
        return done.summary
    if not plan.path(settings).exists() or load_plan(plan.path(settings)) != plan:
        raise SnapshotError(f"this plan of the snapshot of {plan} was discarded; plan it again")
    folder.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        temporary.chmod(0o755)
        done = _write_range(engine, settings, plan, ids, temporary)
        return _adopt(temporary, folder, done).summary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_range(engine: Engine, settings: Settings, plan: SnapshotPlan, ids: IdRange, folder: Path) -> RangeDone:
    read_at, started = now(), time.monotonic()
    freezing = freezing_of(plan, settings)
    selected = _Groups(folder / "rows.arrow", freezing.schema, plan.shards)
    excluded = _Groups(folder / "excluded.arrow", EXCLUDED_SCHEMA, plan.shards)
    with closing(_people(engine, settings, plan, ids, freezing.read)) as blocks:
        for rows in blocks:
            people, barred = split(rows, freezing)
            selected.add(people)
            excluded.add(barred)
    made = RangeDone(
        format=3,
        index=ids.index,
        first=ids.first,
        last=ids.last,
        as_of=plan.as_of,
        read_at=read_at,
        read_s=round(time.monotonic() - started, 3),
        rows=selected.close(),
        excluded=excluded.close(),
    )
    replace_file(folder / DONE_FILE, made.model_dump_json(indent=1).encode())
    return made


def _adopt(temporary: Path, folder: Path, done: RangeDone) -> RangeDone:
    try:
        temporary.rename(folder)
    except OSError:
        other = read_done(folder)  # another process built the same range meanwhile
        if other is None:
            raise
        return other
    sync_folder(folder.parent)
    return done


# --- reading ----------------------------------------------------------------------------------------------------------


def _columns(plan: SnapshotPlan, reasons: ColumnElement[int]) -> list[ColumnElement[Any]]:
    """In the order of ``Freezing.read``."""
    known = catalogue.Catalogue(plan.inputs.attributes).fields
    used = [known[f"{ATTRIBUTE_PREFIX}{key}"] for key in sorted(plan.inputs.attributes)]
    c = contacts.c
    base = [c.id, c.address_hash, c.address_given, c.domain, c.provider]
    names = [c.given_name, c.family_name, c.locale, c.timezone]
    return [*base, *names, *(field_expression(f).label(f.name) for f in used), reasons.label("reasons")]


@dataclass(frozen=True)
class _Asked:
    """What a plan asks of its ranges, with the trees that it froze."""

    known: catalogue.Catalogue
    picked: Group
    left_out: Group | None

    @classmethod
    def of(cls, plan: SnapshotPlan, known: catalogue.Catalogue) -> "_Asked":
        exclude = plan.inputs.exclude
        frozen = replace(known, criteria={**plan.inputs.references, **exclude.references})
        left_out = excluded_group(exclude, frozen, now=plan.as_of) if exclude.criteria else None
        return cls(frozen, parse(plan.inputs.rules, frozen, now=plan.as_of), left_out)

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        return behaviours(*(group for group in (self.picked, self.left_out) if group is not None))


def people_statement(plan: SnapshotPlan, known: catalogue.Catalogue) -> Select[Any]:
    """Everybody who matches, barred or not, whatever the id; what they did must be staged."""
    return _statement(plan, _Asked.of(plan, known))


def _statement(plan: SnapshotPlan, asked: _Asked) -> Select[Any]:
    barred = exclusions(plan.inputs.list_id, held(plan.inputs.exclude, asked.known, plan.thresholds, now=plan.as_of))
    picked = where(asked.picked, plan.thresholds)
    return select(*_columns(plan, barred.reasons)).select_from(barred.people).where(picked)


@dataclass(frozen=True)
class _Question:
    """What was asked of a plan's last range. Making it anew took 4 ms, where a range of 12,000 people takes 53."""

    plan: SnapshotPlan
    known: catalogue.Catalogue
    behaviours: tuple[Behaviour, ...]
    statement: Select[Any]

    @classmethod
    def of(cls, plan: SnapshotPlan, known: catalogue.Catalogue) -> "_Question":
        global _last_question  # noqa: PLW0603  the last one, for whichever thread comes next
        last = _last_question
        if last is not None and last.plan == plan and last.known == known:
            return last
        asked = _Asked.of(plan, known)
        _last_question = made = cls(plan, known, asked.behaviours, _statement(plan, asked))
        return made


_last_question: _Question | None = None


def _people(engine: Engine, settings: Settings, plan: SnapshotPlan, ids: IdRange, schema: pa.Schema) -> Generator[Rows]:
    """Blocks of ``schema``; a range is read as of one moment."""
    if plan.inputs.source == PlanSource.SEEDS:
        with read(engine) as connection:
            yield _seeds(connection, settings, plan, schema)
        return
    frozen = FrozenPeople(plan.folder(settings) / behaviour_sets.FOLDER, ids)
    with snapshot(engine) as connection:
        asked = _Question.of(plan, catalogue.load(connection))
        with behaviour_sets.staged(connection, asked.behaviours, frozen):
            last = min(ids.last, plan.max_contact_id)
            yield from read_blocks(connection, asked.statement, schema, contacts.c.id, first=ids.first, last=last)


def _seeds(connection: Connection, settings: Settings, plan: SnapshotPlan, schema: pa.Schema) -> pa.RecordBatch:
    """The seed list: a contact of that address lends its fields, else only a name is known."""
    identity, barred = settings.identity(), seed_exclusions(plan.inputs.list_id)
    seeds = connection.execute(
        select(seed_addresses.c.address, seed_addresses.c.given_name)
        .where(seed_addresses.c.list_name == plan.inputs.seed_list)
        .order_by(seed_addresses.c.address)
    ).all()
    rows: list[list[Any]] = []
    for address, given_name in seeds:
        try:
            known = normalise(address)
        except AddressError as error:
            raise SnapshotError(f'seed list "{plan.inputs.seed_list}": an address can\'t be used: {error}') from None
        address_hash = identity.address_hash(known.normalised)
        row = _seed_contact(connection, plan, barred, address_hash)
        if row is None:
            reasons = _stranger_reasons(connection, plan.inputs.list_id, address_hash, known.domain)
            nothing: list[Any] = [None] * (3 + len(plan.inputs.attributes))
            provider = provider_of(known.domain)
            row = [0, address_hash, known.given, known.domain, provider, given_name, *nothing, reasons]
        elif row[5] is None:
            row[5] = given_name
        rows.append(row)
    columns = [
        [None if v is None else bool(v) for v in values] if pa.types.is_boolean(f.type) else values
        for values, f in zip(zip(*rows, strict=True), schema, strict=True)
    ]
    return pa.record_batch([pa.array(v, f.type) for v, f in zip(columns, schema, strict=True)], schema=schema)


def _seed_contact(
    connection: Connection, plan: SnapshotPlan, barred: Exclusions, address_hash: bytes
) -> list[Any] | None:
    statement = select(*_columns(plan, barred.reasons)).select_from(barred.people)
    found = connection.execute(statement.where(contacts.c.address_hash == address_hash)).one_or_none()
    return None if found is None else list(found)


def _stranger_reasons(connection: Connection, list_id: int, address_hash: bytes, domain: str) -> int:
    reasons = connection.execute(select(by_suppression(list_id, literal(address_hash, LargeBinary())))).scalar_one()
    named = select(domain_suppressions.c.domain).where(domain_suppressions.c.domain == domain)
    barred = connection.execute(named).first() is not None
    return int(reasons) | (int(ExclusionReason.SUPPRESSED_DOMAIN) if barred else 0)


# --- writing ----------------------------------------------------------------------------------------------------------


def group_count(shards: int) -> int:
    return -(-shards // GROUP_SHARDS)


class _Groups:
    """A file of rows by groups of planned shards; there is none without any row."""

    def __init__(self, path: Path, schema: pa.Schema, shards: int) -> None:
        self._path, self._schema = path, schema
        self._first = np.append(np.arange(group_count(shards)) * GROUP_SHARDS, shards)
        self._held: list[tuple[pa.RecordBatch, NDArray[np.int64]]] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the schema, sorted by the column ``shard`` that stands before it."""
        if not batch.num_rows:
            return
        starts = np.searchsorted(batch.column("shard").to_numpy(), self._first)
        self._held.append((batch.drop_columns(["shard"]), starts))
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._bytes >= HELD_BYTES:
            self._write()

    def _write(self) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), self._schema)
        for group in range(len(self._first) - 1):
            parts = [batch.slice(int(s[group]), int(s[group + 1] - s[group])) for batch, s in self._held]
            columns: list[Any] = [column.combine_chunks() for column in pa.Table.from_batches(parts).columns]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))  # an empty group too
        self._held, self._bytes = [], 0

    def close(self) -> tuple[RunFile, ...]:
        if self._held:
            self._write()
        if self._writer is None:
            return ()
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return (RunFile(name=self._path.name, rows=self._rows, sha256=sha256_of(self._path)),)
