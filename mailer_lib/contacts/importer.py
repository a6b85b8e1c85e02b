"""Import a file of contacts with their consent: streaming, in short transactions, the same result when run twice.

Each batch is one transaction: contacts, subscriptions, evidence, lifted suppressions and the position in the file stand
or fall together, so an import that was killed is simply run again and goes on there (``import_job``). Rows that can't
be imported go to a rejects file; the others go on. Memory is one batch, and eight bytes an address to count duplicates.

What an empty cell says: nothing; it erases no value that is there. Of two rows with one address the last one wins.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from mailer_lib.contacts.attributes import ValueProblemError, declared, declared_choices
from mailer_lib.contacts.batch import BatchCounts, Portion, store
from mailer_lib.contacts.columns import ColumnMap, Field, MappingError, map_columns
from mailer_lib.contacts.formats import FileFormat, open_source
from mailer_lib.contacts.import_job import ImportJob, Position, fingerprint, open_job
from mailer_lib.contacts.lists import list_id
from mailer_lib.contacts.portions import PortionReader, Reject, chunks, without_first
from mailer_lib.contacts.precedence import KeptOut
from mailer_lib.contacts.records import RecordSource
from mailer_lib.contacts.rejects import RejectsWriter, rejects_path
from mailer_lib.contacts.rows import ConsentDefaults, RowParser, parse_moment
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.contacts.seen import PREFIX_BYTES, SeenHashes
from mailer_lib.database import audit
from mailer_lib.database.bulk_load import load_refused, loading
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.retry import write_again
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, SubscriptionState

BATCH_ROWS = 5000
FIRST_REJECTS = 20
_KEPT_OUT = "kept_out:"

ProgressCall = Callable[[int, int | None], None]


@dataclass(frozen=True)
class ImportOptions:
    """What the operator says about a file."""

    list_name: str
    consent: SubscriptionState  # CONFIRMED, or PENDING: double opt-in, a confirmation mail is due
    columns: Mapping[str, str] = field(default_factory=dict)  # column → columns.Field
    attributes: Mapping[str, str] = field(default_factory=dict)  # column → attribute key
    consent_at: str | None = None  # a column, or one date and time for all
    consent_source: str | None = None  # where they signed up; a column, or a text; the file's name by default
    consent_wording: str | None = None  # a column, or a text
    consent_ip: str | None = None  # a column
    encoding: str = "utf-8"
    delimiter: str | None = None
    batch_rows: int = BATCH_ROWS
    format: FileFormat | None = None  # by the file's name when None
    dry_run: bool = False  # everything is read, validated and weighed, nothing is written


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows: ``rows = new + updated + unchanged + duplicates + rejected + kept_out[ERASED]``."""

    rows: int = 0
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicates: int = 0  # rows whose address had come before in this file
    rejected: int = 0
    confirmed: int = 0  # people of this file who get the list's mail
    pending: int = 0  # people of this file who are asked for confirmation first
    kept_out: Mapping[KeptOut, int] = field(default_factory=dict)  # people whose refusal or suppression stands
    rejects: Path | None = None
    ignored_columns: tuple[str, ...] = ()
    undated: int = 0  # people whose consent has no date: it can't be newer than any refusal
    without_load_data: bool = False  # the server refused LOAD DATA LOCAL: slower
    resumed_after: int = 0  # rows that an earlier run had stored
    first_rejects: tuple[Reject, ...] = ()  # of this run, at most ``FIRST_REJECTS``


class ConsentOptionError(ValueError):
    """What is said about the consent can't be."""


def import_contacts(
    engine: Engine,
    settings: Settings,
    path: Path,
    options: ImportOptions,
    progress: ProgressCall | None = None,
    *,
    actor: str = "import",
) -> ImportReport:
    """Import ``path`` into the list. ``progress`` gets rows read, and how many there will be at this rate.

    Raises:
        ListError, MappingError, AttributeKeyError, SourceError, ConsentOptionError, OSError: before anything is stored;
            the sentence says what to do. SourceError and OSError can also come later: what was imported stays.
    """
    if options.consent is SubscriptionState.UNSUBSCRIBED:
        raise ConsentOptionError(
            "an import brings confirmed or pending consent; to take people off: contacts unsubscribe"
        )
    identity = settings.identity()
    with read(engine) as connection:
        target = list_id(connection, options.list_name)
        types, choices = declared(connection), declared_choices(connection)
    with open_source(path, options.format, options.encoding, options.delimiter) as source, _without_cycle_search():
        columns, defaults = _columns_and_defaults(path, source, options, types)

        def reader(started: datetime) -> PortionReader:
            return PortionReader(RowParser(columns, types, defaults, started, choices), identity.address_hash)

        def scope(started: datetime) -> ImportScope:
            return ImportScope(target, options.consent is SubscriptionState.PENDING, started)

        if options.dry_run:
            started = now()
            with loading(engine) as quick:
                run = _Run(quick, scope(started), ImportJob(None, started, Position(), None), None)
                run.read_all(source, reader(started), options.batch_rows, progress)
            return run.report(columns.ignored)
        said = (options.list_name, options.consent, columns, defaults, sorted(types.items()), sorted(choices.items()))
        mark = fingerprint(path, *said, source.encoding, source.delimiter)
        with open_job(engine, settings.home / "imports", mark) as job, loading(engine) as quick:
            rejects_file = job.position.rejects or rejects_path(settings.storage, path, now())
            begun = {"file": path.name} | ({"from_row": job.position.rows} if job.position.rows else {})
            with write(engine) as connection:
                audit.record(connection, actor, "contacts.import.begin", f"list:{options.list_name}", begun)
            with RejectsWriter(
                rejects_file, source.header, source.encoding, source.delimiter, job.position.rejects_bytes
            ) as rejects:
                run = _Run(quick, scope(job.started), job, rejects)
                run.read_all(source, reader(job.started), options.batch_rows, progress)
            report = run.report(columns.ignored)
            with write(engine) as connection:
                detail = _audit_detail(path, report)
                audit.record(connection, actor, "contacts.import", f"list:{options.list_name}", detail)
                job.finish(connection)
    return report


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """A chunk is 5,000 lists without a cycle; looking for some costs a quarter of the client's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Run:
    """One pass over the file: batches, and the counts of all so far. ``rejects`` None: nothing is written at all."""

    def __init__(self, engine: Engine, scope: ImportScope, job: ImportJob, rejects: RejectsWriter | None) -> None:
        self._engine = engine
        self._scope = scope
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
        keys = portion.keys
        known = {h for h, before in zip(keys, self._seen.add(keys), strict=True) if before}
        self._job.note_seen(b"".join(key[:PREFIX_BYTES] for key in keys if key not in known))
        if self._rejects is None:
            with read(self._engine) as connection:
                counts = store(connection, self._scope, portion, known, dry=True)
            self._count(self._counts, portion, counts, len(known))
            return

        def work(connection: Connection) -> Counter[str]:
            total = Counter(self._counts)
            self._count(total, portion, store(connection, self._scope, portion, known), len(known))
            self._job.save(connection, self._position(total))
            self._load_refused = load_refused(connection)
            return total

        self._counts = write_again(self._engine, work)

    def _reject(self, refused: list[Reject]) -> None:
        self._counts["rejected"] += len(refused)
        self._first_rejects += refused[: FIRST_REJECTS - len(self._first_rejects)]
        if self._rejects is not None and refused:
            for reject in refused:
                self._rejects.write(reject.line, reject.column, reject.reason, reject.cells, reject.raw)
            self._rejects.flush()

    def _count(self, total: Counter[str], portion: Portion, counts: BatchCounts, known: int) -> None:
        total.update(
            new=counts.new, updated=counts.updated, unchanged=counts.unchanged, confirmed=counts.confirmed,
            pending=counts.pending, undated=counts.undated, duplicates=portion.rows - len(portion.keys) + known,
        )  # fmt: skip
        total.update({f"{_KEPT_OUT}{reason.value}": count for reason, count in counts.kept_out.items()})

    def _position(self, counts: Counter[str]) -> Position:
        rejects = self._rejects if self._rejects is not None and self._rejects.size else None
        return Position(
            counts["rows"], len(self._seen), rejects.path if rejects else None, rejects.size if rejects else 0, counts
        )

    def report(self, ignored: Sequence[str]) -> ImportReport:
        c = self._counts
        kept_out = {
            KeptOut(name.removeprefix(_KEPT_OUT)): count for name, count in c.items() if name.startswith(_KEPT_OUT)
        }
        return ImportReport(
            c["rows"], c["new"], c["updated"], c["unchanged"], c["duplicates"], c["rejected"], c["confirmed"],
            c["pending"], kept_out, self._rejects.path if self._rejects is not None and c["rejected"] else None,
            tuple(ignored), c["undated"], self._load_refused, self._job.position.rows, tuple(self._first_rejects),
        )  # fmt: skip


def _columns_and_defaults(
    path: Path, source: RecordSource, options: ImportOptions, types: dict[str, AttributeType]
) -> tuple[ColumnMap, ConsentDefaults]:
    mapped = dict(options.columns)
    at: datetime | None = None
    texts: dict[Field, str | None] = {Field.CONSENT_SOURCE: None, Field.CONSENT_WORDING: None}
    if options.consent_at is not None:
        if options.consent_at in source.header:
            mapped[options.consent_at] = Field.CONSENT_AT.value
        else:
            at = _fixed_moment(path, options.consent_at)
    for wanted, said in (
        (Field.CONSENT_SOURCE, options.consent_source),
        (Field.CONSENT_WORDING, options.consent_wording),
    ):
        if said is not None and said in source.header:
            mapped[said] = wanted.value
        else:
            texts[wanted] = said
    if options.consent_ip is not None:
        mapped[options.consent_ip] = Field.CONSENT_IP.value
    columns = map_columns(str(path), source.header, types, mapped, options.attributes)
    if at is not None and Field.CONSENT_AT in columns.fields and Field.CONSENT_AT.value not in mapped.values():
        columns = _without(columns, Field.CONSENT_AT)  # one date for all was said: a look-alike column doesn't count
    source_text = texts[Field.CONSENT_SOURCE] or path.name
    return columns, ConsentDefaults(at, source_text[:200], texts[Field.CONSENT_WORDING])


def _without(columns: ColumnMap, dropped: Field) -> ColumnMap:
    fields = {f: index for f, index in columns.fields.items() if f is not dropped}
    ignored = (*columns.ignored, columns.header[columns.fields[dropped]])
    return ColumnMap(columns.header, fields, columns.attributes, ignored)


def _fixed_moment(path: Path, text: str) -> datetime:
    try:
        moment = parse_moment(text)
    except ValueProblemError:
        raise MappingError(
            f"--consent-at {text!r} is neither a column of {path} nor a date and time like 2024-12-31 18:00"
        ) from None
    if moment > now():
        raise ConsentOptionError(f"--consent-at {text!r} lies in the future")
    return moment


def _audit_detail(path: Path, report: ImportReport) -> dict[str, object]:
    return {
        "file": path.name, "rows": report.rows, "new": report.new, "updated": report.updated,
        "unchanged": report.unchanged, "duplicates": report.duplicates, "rejected": report.rejected,
        "confirmed": report.confirmed, "pending": report.pending,
        "kept_out": {reason.value: count for reason, count in report.kept_out.items()},
    }  # fmt: skip
