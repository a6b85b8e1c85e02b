"""The files of a snapshot, made from its built ranges: a shard at a time, whatever the size of the whole."""

import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.files import replace_file, sha256_of, sync_folder
from mailer_lib.audience.freezing import EXCLUDED_SCHEMA, by_person, bytes_of, column_of, freeze, halves
from mailer_lib.audience.frequency import WORK_PREFIX, AtCap, Counting, people_at_cap
from mailer_lib.audience.manifest import PEOPLE_FOLDER, FileEntry, Manifest, ShardEntry
from mailer_lib.audience.parting import Part, Parting
from mailer_lib.audience.people import Freezing, shard_numbers
from mailer_lib.audience.people_files import PeopleWriter
from mailer_lib.audience.plan import SnapshotError, SnapshotPlan
from mailer_lib.audience.ranges import RangeDone, RunFile, freezing_of, group_count, range_folder, read_done
from mailer_lib.audience.slicing import Dealer, threshold
from mailer_lib.database.engine import now
from mailer_lib.identity import message_keys
from mailer_lib.settings import Settings
from mailer_lib.shard.files import write_parquet, write_shard
from mailer_lib.shard.recipient import REST
from mailer_lib.terms import ExclusionReason

MAX_SHARD_ROWS = 5000  # of a lease; docs/architecture.md
EXCLUDED_FOLDER = "excluded"
LATE_FILE = "publication.parquet"


def assemble(settings: Settings, plan: SnapshotPlan, already: Set[bytes], counting: Counting | None = None) -> Manifest:
    """Write shards, excluded people and manifest below the building folder; what an earlier try left is replaced.

    ``counting``: what a frequency cap counts.

    Raises:
        SnapshotError: a range is missing or damaged.
    """
    folder = plan.folder(settings)
    runs = _Runs.open(settings, plan)
    _clear(folder)
    tally = _Tally([0] * len(plan.inputs.weights))
    wanted = plan.inputs.test_slice
    dealer = None if wanted is None else Dealer(threshold(wanted, runs.keys()), plan.inputs.weights)
    parting = Parting(plan.inputs.zones, plan.inputs.alone, plan.as_of, runs.shard_count)
    entries: list[ShardEntry] = []
    with (
        _late_file(folder, tally) as late,
        people_at_cap(folder, counting, runs.shard_count) as at_cap,
        _Writers() as writers,
        PeopleWriter(folder) as everybody,
    ):
        for number, people, rows, barred in runs.shards():
            frozen = freeze(
                people,
                rows,
                barred=barred,
                already=already,
                at_cap=at_cap.among(_hashes(people, rows), number) if counting else (),
            )
            late.add(frozen.dropped)
            if frozen.rows.num_rows:
                cut, slice_rows = dealer.cut(frozen.rows) if dealer is not None else (frozen.rows, None)
                tally.add_frozen(cut)
                everybody.add(cut)
                for part in parting.parts(number, cut, slice_rows):
                    entries.extend(writers.start(partial(_write_frozen, folder, part)))
        entries.extend(writers.rest())
        people_entries = everybody.entries()
        entries.sort(key=lambda entry: entry.number)
        ranges: list[FileEntry] = []
        for done in runs.done:
            table = runs.excluded(done)
            if already or counting:
                table = _mark_late(table, runs.freezing.send_key, already, at_cap)
            if table.num_rows:
                ranges.append(_write_excluded(folder, f"range-{done.index:04d}.parquet", table))
                tally.add_excluded(table)
    excluded = [*late.entries(), *ranges]
    sync_folder(folder / EXCLUDED_FOLDER)
    made = Manifest(
        campaign=plan.campaign,
        edition=plan.edition,
        phase=plan.phase,
        send_id=plan.send_id,
        list_id=plan.inputs.list_id,
        criteria=manifests.CriteriaText(
            source=plan.inputs.source,
            name=plan.inputs.criteria_name or plan.inputs.seed_list,
            rules=plan.inputs.rules,
            references=plan.inputs.references,
            sha256=plan.inputs.rules_sha256,
        ),
        exclude=plan.inputs.exclude,
        weights=plan.inputs.weights,
        test_slice=wanted and wanted.model_copy(update={"through": f"{dealer.through:016x}" if dealer else None}),
        as_of=plan.as_of,
        max_contact_id=plan.max_contact_id,
        published_at=now(),
        shard_count=runs.shard_count,
        columns=tuple(manifests.ColumnEntry(name=f.name, type=str(f.type)) for f in runs.freezing.schema),
        ranges=tuple(done.summary for done in runs.done),
        shards=tuple(entries),
        excluded=tuple(excluded),
        people=people_entries,
        counts=tally.counts(),
    )
    replace_file(folder / manifests.MANIFEST_FILE, made.dump())
    return made


def _clear(folder: Path) -> None:
    for stale in (*folder.glob(manifests.MANIFEST_FILE), *folder.glob(f".{manifests.MANIFEST_FILE}.*")):
        stale.unlink()
    for stale in folder.glob("shard=*"):
        shutil.rmtree(stale)
    for stale in folder.glob(f"{WORK_PREFIX}*"):
        shutil.rmtree(stale)
    for name in (EXCLUDED_FOLDER, PEOPLE_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / EXCLUDED_FOLDER).mkdir()


def _write_frozen(folder: Path, part: Part) -> ShardEntry:
    path = folder / f"shard={part.number:04d}" / "part-0.parquet"
    checksum = write_shard(path, part.rows)
    sync_folder(path.parent)
    return ShardEntry(
        number=part.number,
        path=str(path.relative_to(folder)),
        rows=part.rows.num_rows,
        sha256=checksum,
        slice_rows=part.slice_rows,
        zone=part.zone,
        provider=part.provider,
    )


def _write_excluded(folder: Path, name: str, table: pa.Table) -> FileEntry:
    path = folder / EXCLUDED_FOLDER / name
    checksum = write_parquet(path, table.sort_by("contact_id"))
    return FileEntry(path=str(path.relative_to(folder)), rows=table.num_rows, sha256=checksum)


def _mark_late(excluded: pa.Table, send_key: bytes, already: Set[bytes], at_cap: AtCap) -> pa.Table:
    """Who is barred may have been sent this edition before they were, or be at the cap: all reasons are told."""
    hashes: list[Any] = column_of(excluded, "address_hash")
    capped = at_cap.among(hashes)
    reasons: list[Any] = column_of(excluded, "reasons")
    sent, cap = int(ExclusionReason.ALREADY_SENT), int(ExclusionReason.FREQUENCY_CAP)
    marked = [
        mask | (sent if key in already else 0) | (cap if address_hash in capped else 0)
        for mask, address_hash, key in zip(reasons, hashes, message_keys(send_key, hashes), strict=True)
    ]
    return excluded.set_column(2, EXCLUDED_SCHEMA.field(2), pa.array(marked, pa.int32()))


def _counted(table: pa.Table, name: str) -> dict[Any, int]:
    pairs = table.column(name).value_counts()
    counts: list[Any] = pairs.field("counts").to_pylist()
    return dict(zip(pairs.field("values").to_pylist(), counts, strict=True))


class _Writers:
    """Files written and fsynced by two threads, while the next shard is put in order; at most four wait."""

    def __enter__(self) -> "_Writers":
        self._pool = ThreadPoolExecutor(2, "write shard")
        self._waiting: deque[Future[ShardEntry]] = deque()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, write: Callable[[], ShardEntry]) -> Iterator[ShardEntry]:
        """Begin one; what is written by now, in the order of the beginnings."""
        self._waiting.append(self._pool.submit(write))
        while len(self._waiting) > 4:
            yield self._waiting.popleft().result()

    def rest(self) -> Iterator[ShardEntry]:
        while self._waiting:
            yield self._waiting.popleft().result()


@dataclass
class _Tally:
    by_variant: list[int]
    frozen: int = 0
    rest: int = 0
    excluded: int = 0
    by_mask: Counter[int] = field(default_factory=Counter)
    by_provider: Counter[str] = field(default_factory=Counter)

    def add_frozen(self, rows: pa.Table) -> None:
        self.frozen += rows.num_rows
        self.by_provider.update(_counted(rows, "provider"))
        for variant, count in _counted(rows, "variant").items():
            if variant == REST:
                self.rest += count
            else:
                self.by_variant[variant] += count

    def add_excluded(self, rows: pa.Table) -> None:
        self.excluded += rows.num_rows
        self.by_mask.update(_counted(rows, "reasons"))

    def counts(self) -> manifests.Counts:
        by_reason: Counter[str] = Counter()
        for mask, count in self.by_mask.items():
            by_reason.update(dict.fromkeys(reason_names(mask), count))
        return manifests.Counts(
            matching=self.frozen + self.excluded,
            frozen=self.frozen,
            excluded=self.excluded,
            by_reason=dict(by_reason.most_common()),
            by_provider=dict(self.by_provider.most_common()),
            by_variant=tuple(self.by_variant),
            rest=self.rest,
        )


@dataclass
class _Late:
    """``excluded/publication.parquet``: a row group for each shard that lost somebody; no file without any."""

    folder: Path
    tally: _Tally
    rows: int = 0
    _writer: pq.ParquetWriter | None = None

    @property
    def path(self) -> Path:
        return self.folder / EXCLUDED_FOLDER / LATE_FILE

    def add(self, dropped: pa.Table) -> None:
        if not dropped.num_rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, EXCLUDED_SCHEMA, compression="zstd")
        self._writer.write_table(dropped)
        self.rows += dropped.num_rows
        self.tally.add_excluded(dropped)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def entries(self) -> list[FileEntry]:
        if not self.rows:
            return []
        name = str(self.path.relative_to(self.folder))
        return [FileEntry(path=name, rows=self.rows, sha256=sha256_of(self.path))]


@contextmanager
def _late_file(folder: Path, tally: _Tally) -> Iterator[_Late]:
    late = _Late(folder, tally)
    try:
        yield late
    finally:
        late.close()


@dataclass(frozen=True)
class _Run:
    """One file of a range, open: nothing of it is in memory but the group in use."""

    path: Path
    reader: pa.RecordBatchFileReader

    @classmethod
    def open(cls, path: Path) -> "_Run":
        return cls(path, pa.ipc.open_file(pa.OSFile(str(path), "rb")))

    def of_group(self, group: int, groups: int) -> pa.Table:
        batches = range(group, self.reader.num_record_batches, groups)
        return pa.Table.from_batches([self.reader.get_batch(number) for number in batches])

    def column(self, name: str) -> "Iterator[pa.Array[Any]]":
        """One column of all its people; no other is read."""
        only = pa.ipc.IpcReadOptions(included_fields=[self.reader.schema.get_field_index(name)])
        reader = pa.ipc.open_file(pa.OSFile(str(self.path), "rb"), options=only)
        for group in range(reader.num_record_batches):
            yield reader.get_batch(group).column(0)


@dataclass(frozen=True)
class _Runs:
    """The built ranges."""

    plan: SnapshotPlan
    freezing: Freezing
    done: tuple[RangeDone, ...]
    selected: tuple[_Run, ...]
    barring: Mapping[int, tuple[_Run, ...]]  # by range
    shard_count: int

    @classmethod
    def open(cls, settings: Settings, plan: SnapshotPlan) -> "_Runs":
        folders = {ids.index: range_folder(plan, settings, ids.index) for ids in plan.ranges}
        done: list[RangeDone] = []
        for index, folder in folders.items():
            found = read_done(folder)
            if found is None or found.as_of != plan.as_of:
                raise SnapshotError(f"range {index} of the snapshot of {plan} isn't built yet")
            done.append(found)
        selected = tuple(run for d in done for run in _open(folders[d.index], d.rows))
        barring = {d.index: tuple(_open(folders[d.index], d.excluded)) for d in done}
        return cls(plan, freezing_of(plan, settings), tuple(done), selected, barring, _fitting(selected, plan.shards))

    def shards(self) -> Iterator[tuple[int, pa.Table, NDArray[np.int64], Mapping[bytes, ExclusionReason]]]:
        """Number, people, which rows of them ranges selected for that shard, and whom of them another range barred.

        Shards without anybody are left out.
        """
        groups = group_count(self.plan.shards)
        for group in range(groups):
            people = _concat([run.of_group(group, groups) for run in self.selected], self.freezing.schema)
            if not people.num_rows:
                continue
            people = people.combine_chunks()
            numbers = shard_numbers(people.column("address_hash").combine_chunks(), self.shard_count)
            order = by_person(people, numbers)
            found, starts = np.unique(numbers[order], return_index=True)
            barred = self._barred(
                [run.of_group(group, groups) for runs in self.barring.values() for run in runs], people
            )
            for number, rows in zip(found, np.split(order, starts[1:]), strict=True):
                yield int(number), people, rows, barred

    def _barred(self, excluded: list[pa.Table], people: pa.Table) -> dict[bytes, ExclusionReason]:
        """Of the people of a group of shards, those whom a range excluded too: reasons by address hash."""
        out = _concat(excluded, EXCLUDED_SCHEMA)
        if not out.num_rows:
            return {}
        barred, chosen = (halves(table.column("address_hash"))[:, 1] for table in (out, people))
        ordered = np.sort(barred)  # few beside the chosen, so each of these is looked for among them
        both = chosen[ordered[np.minimum(np.searchsorted(ordered, chosen), len(ordered) - 1)] == chosen]
        found: dict[bytes, ExclusionReason] = {}
        theirs = out.filter(pa.array(np.isin(barred, both))) if both.size else EXCLUDED_SCHEMA.empty_table()
        for address_hash, mask in zip(column_of(theirs, "address_hash"), column_of(theirs, "reasons"), strict=True):
            found[address_hash] = found.get(address_hash, ExclusionReason(0)) | ExclusionReason(mask)
        return found

    def keys(self) -> Iterator[memoryview]:
        """Message keys of everybody whom the ranges selected."""
        for run in self.selected:
            for part in run.column("message_key"):
                yield bytes_of(part)

    def excluded(self, done: RangeDone) -> pa.Table:
        return _concat([run.reader.read_all() for run in self.barring[done.index]], EXCLUDED_SCHEMA)


def _hashes(people: pa.Table, rows: NDArray[np.int64]) -> list[bytes]:
    hashes: list[Any] = people.column("address_hash").take(rows).to_pylist()
    return hashes


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([table for table in tables if table.num_rows] or [schema.empty_table()])


def _open(folder: Path, files: Sequence[RunFile]) -> Iterator[_Run]:
    for file in files:
        path = folder / file.name
        if not path.exists() or sha256_of(path) != file.sha256:
            raise SnapshotError(f"{path} is missing or damaged; remove {folder} and build that range again")
        yield _Run.open(path)


def _fitting(runs: tuple[_Run, ...], planned: int) -> int:
    """The planned number of shards, or the first of its doubles at which no shard passes ``MAX_SHARD_ROWS``.

    A multiple keeps the ranges' sorting useful: a row's planned shard is its shard mod ``planned``.
    """
    count = planned
    while True:
        rows = np.zeros(count, np.int64)
        for run in runs:
            for hashes in run.column("address_hash"):
                rows += np.bincount(shard_numbers(hashes, count), minlength=count)
        if rows.max(initial=0) <= MAX_SHARD_ROWS:
            return count
        count *= 2
