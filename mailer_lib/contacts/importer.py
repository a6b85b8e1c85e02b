"""Import a file of contacts with their consent: streaming, in short transactions, the same result when run twice.

Each batch is one transaction: contacts, subscriptions, evidence, lifted suppressions and the position in the file stand
or fall together, so an import that was killed is simply run again and goes on there (``import_job``). Rows that can't
be imported go to a rejects file; the others go on. Memory is one batch, and eight bytes an address to count duplicates.

What an empty cell says: nothing; it erases no value that is there. Of two rows with one address the last one wins.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from mailer_lib.contacts.batch import store
from mailer_lib.contacts.drafts import BatchCounts, Before, Portion
from mailer_lib.contacts.formats import open_source
from mailer_lib.contacts.import_job import ImportJob, Position, fingerprint, open_job
from mailer_lib.contacts.import_plan import Declared, ImportPlan, ImportRequest, Target
from mailer_lib.contacts.portions import PortionReader, Reject, chunks, without_first
from mailer_lib.contacts.precedence import KeptOut
from mailer_lib.contacts.records import RecordSource
from mailer_lib.contacts.rejects import RejectsWriter, rejects_path
from mailer_lib.contacts.seen import PREFIX_BYTES, SeenHashes
from mailer_lib.database import audit
from mailer_lib.database.bulk_load import load_refused, loading
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.retry import write_again
from mailer_lib.settings import Settings

FIRST_REJECTS = 20
_KEPT_OUT = "kept_out:"

ProgressCall = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ListReport:
    """What became of the people who join one list."""

    name: str
    confirmed: int = 0  # they get the list's mail
    pending: int = 0  # they are asked for confirmation first
    kept_out: Mapping[KeptOut, int] = field(default_factory=dict)  # their refusal or suppression stands
    undated: int = 0  # their consent has no date: it can't be newer than any refusal
    requested: bool = False  # double opt-in


@dataclass(frozen=True)
class ImportReport:
    """``rows = new + updated + unchanged + duplicates + rejected + outside + erased``."""

    rows: int = 0
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0  # rows whose address had come before in this file
    rejected: int = 0
    outside: int = 0  # rows that join none of the profile's lists; nothing is stored of them
    erased: int = 0  # people who were erased; nothing is stored of them
    lists: tuple[ListReport, ...] = ()
    rejects: Path | None = None
    ignored_columns: tuple[str, ...] = ()
    without_load_data: bool = False  # the server refused LOAD DATA LOCAL: slower
    resumed_after: int = 0  # rows that an earlier run had stored
    first_rejects: tuple[Reject, ...] = ()  # of this run, at most ``FIRST_REJECTS``

    @property
    def confirmed(self) -> int:
        """Of all lists; who joins two is counted twice."""
        return sum(one.confirmed for one in self.lists)

    @property
    def pending(self) -> int:
        return sum(one.pending for one in self.lists)

    @property
    def undated(self) -> int:
        return sum(one.undated for one in self.lists)

    @property
    def kept_out(self) -> dict[KeptOut, int]:
        return dict(sum((Counter(one.kept_out) for one in self.lists), Counter[KeptOut]()))


def import_contacts(
    engine: Engine,
    settings: Settings,
    path: Path,
    request: ImportRequest,
    progress: ProgressCall | None = None,
    *,
    actor: str = "import",
) -> ImportReport:
    """Import ``path`` into its lists. ``progress`` gets rows read, and how many there will be at this rate.

    Raises:
        ListError, MappingError, AttributeKeyError, ProfileError, SourceError, ConsentOptionError, OSError: before
            anything is stored; the sentence says what to do. SourceError and OSError can also come later: what was
            imported stays.
    """
    identity = settings.identity()
    with read(engine) as connection:
        request.check(connection)
        known = Declared.load(connection)
    opening = open_source(path, request.format, request.encoding, request.delimiter)
    with opening as source, _without_cycle_search():
        with read(engine) as connection:
            plan = request.plan(connection, path, source.header, known)

        def reader(started: datetime) -> PortionReader:
            return PortionReader(plan.parser(known, started), identity.address_hash)

        if request.dry_run:
            started = now()
            with loading(engine) as quick:
                run = _Run(quick, plan, ImportJob(None, started, Position(), None), None)
                run.read_all(source, reader(started), request.batch_rows, progress)
            return run.report()
        said = (plan.said, sorted(known.types.items()), sorted(known.choices.items()))
        mark = fingerprint(path, *said, source.encoding, source.delimiter)
        with open_job(engine, settings.home / "imports", mark) as job, loading(engine) as quick:
            rejects_file = job.position.rejects or rejects_path(settings.storage, path, now())
            begun = {"file": path.name} | ({"from_row": job.position.rows} if job.position.rows else {})
            with write(engine) as connection:
                for target in plan.targets:
                    audit.record(connection, actor, "contacts.import.begin", f"list:{target.name}", begun)
            with RejectsWriter(
                rejects_file, source.header, source.encoding, source.delimiter, job.position.rejects_bytes
            ) as rejects:
                run = _Run(quick, plan, job, rejects)
                run.read_all(source, reader(job.started), request.batch_rows, progress)
            report = run.report()
            with write(engine) as connection:
                for one in report.lists:
                    detail = _audit_detail(path, report, one)
                    audit.record(connection, actor, "contacts.import", f"list:{one.name}", detail)
                job.finish(connection)
    return report


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """A chunk is 10,000 lists without a cycle; looking for some costs a quarter of the client's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Run:
    """One pass over the file: batches, and the counts of all so far. ``rejects`` None: nothing is written at all."""

    def __init__(self, engine: Engine, plan: ImportPlan, job: ImportJob, rejects: RejectsWriter | None) -> None:
        self._engine = engine
        self._plan = plan
        self._scopes = [target.scope(job.started) for target in plan.targets]
        self._job = job
        self._rejects = rejects
        self._first_rejects: list[Reject] = []
        self._seen = SeenHashes()
        self._seen.add_prefixes(job.seen_before())
        self._counts = Counter(job.position.counts)
        self._load_refused = False

    def read_all(
        self, source: RecordSource, reader: PortionReader, batch_rows: int, progress: ProgressCall | None
    ) -> None:
        """The whole file, or what an earlier run has left of it."""
        for chunk in chunks(without_first(source.blocks(), self._counts["rows"]), batch_rows):
            self._counts["rows"] += chunk.records
            self._store(*reader.read(chunk))
            if progress is not None:
                rows = self._counts["rows"]
                progress(rows, max(rows, rows * source.size // max(source.bytes_read, 1)))
        if progress is not None:
            progress(self._counts["rows"], self._counts["rows"])

    def _store(self, portion: Portion, refused: list[Reject]) -> None:
        self._reject(refused)
        before = self._note(portion)
        if self._rejects is None:
            with read(self._engine) as connection:
                counts = store(connection, self._scopes, portion, before, dry=True)
            self._count(self._counts, portion, counts, before)
            return

        def work(connection: Connection) -> Counter[str]:
            total = Counter(self._counts)
            self._count(total, portion, store(connection, self._scopes, portion, before), before)
            self._job.save(connection, self._position(total))
            self._load_refused = load_refused(connection)
            return total

        self._counts = write_again(self._engine, work)

    def _note(self, portion: Portion) -> Before:
        """Who came earlier in the file; and note those who came now."""
        people = self._known(portion.keys)
        if len(self._scopes) == 1:
            return Before(people, [people])
        of_list = []
        for number in range(len(self._scopes)):
            marks = {_mark(key, number): key for key in portion.keys_of(number)}
            of_list.append({marks[mark] for mark in self._known(list(marks))})
        return Before(people, of_list)

    def _known(self, keys: list[bytes]) -> set[bytes]:
        known = {key for key, before in zip(keys, self._seen.add(keys), strict=True) if before}
        self._job.note_seen(b"".join(key[:PREFIX_BYTES] for key in keys if key not in known))
        return known

    def _reject(self, refused: list[Reject]) -> None:
        self._counts["rejected"] += len(refused)
        self._first_rejects += refused[: FIRST_REJECTS - len(self._first_rejects)]
        if self._rejects is not None and refused:
            for reject in refused:
                self._rejects.write(reject.line, reject.column, reject.reason, reject.cells, reject.raw)
            self._rejects.flush()

    def _count(self, total: Counter[str], portion: Portion, counts: BatchCounts, before: Before) -> None:
        total.update(
            new=counts.new, updated=counts.updated, unchanged=counts.unchanged, erased=counts.erased,
            outside=portion.outside, duplicates=portion.rows - len(portion.keys) + len(before.people),
        )  # fmt: skip
        for number, one in enumerate(counts.lists):
            said = {"confirmed": one.confirmed, "pending": one.pending, "undated": one.undated}
            said |= {f"{_KEPT_OUT}{reason.value}": count for reason, count in one.kept_out.items()}
            total.update({f"{number}:{what}": count for what, count in said.items()})

    def _position(self, counts: Counter[str]) -> Position:
        rejects = self._rejects if self._rejects is not None and self._rejects.size else None
        return Position(
            counts["rows"], len(self._seen), rejects.path if rejects else None, rejects.size if rejects else 0, counts
        )

    def report(self) -> ImportReport:
        c = self._counts
        lists = tuple(self._of_list(number, target) for number, target in enumerate(self._plan.targets))
        return ImportReport(
            c["rows"], c["new"], c["updated"], c["unchanged"], c["duplicates"], c["rejected"], c["outside"],
            c["erased"], lists, self._rejects.path if self._rejects is not None and c["rejected"] else None,
            self._plan.columns.ignored, self._load_refused, self._job.position.rows, tuple(self._first_rejects),
        )  # fmt: skip

    def _of_list(self, number: int, target: Target) -> ListReport:
        c, kept_out = self._counts, f"{number}:{_KEPT_OUT}"
        barred = {KeptOut(said.removeprefix(kept_out)): n for said, n in c.items() if said.startswith(kept_out)}
        confirmed, pending, undated = (c[f"{number}:{what}"] for what in ("confirmed", "pending", "undated"))
        return ListReport(target.name, confirmed, pending, barred, undated, target.requested)


def _mark(key: bytes, number: int) -> bytes:
    """Stands for a person in a list among the hashes seen: of the other half of their hash than the person's own."""
    return bytes([key[PREFIX_BYTES] ^ number]) + key[PREFIX_BYTES + 1 :]


def _audit_detail(path: Path, report: ImportReport, one: ListReport) -> dict[str, object]:
    return {
        "file": path.name, "rows": report.rows, "new": report.new, "updated": report.updated,
        "unchanged": report.unchanged, "duplicates": report.duplicates, "rejected": report.rejected,
        "confirmed": one.confirmed, "pending": one.pending,
        "kept_out": {reason.value: count for reason, count in one.kept_out.items()},
    }  # fmt: skip
