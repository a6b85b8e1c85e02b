"""Import a file of contacts with their consent: streaming, in short transactions, the same result when run twice.

Each batch is one transaction: contacts, subscriptions, evidence and lifted suppressions stand or fall together, so an
import that was killed is simply run again. Rows that can't be imported go to a rejects file; the others go on. Memory
is one batch, and eight bytes an address to count duplicates.

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
from mailer_lib.contacts.csv_source import open_csv
from mailer_lib.contacts.lists import list_id
from mailer_lib.contacts.portions import PortionReader, chunks
from mailer_lib.contacts.precedence import KeptOut
from mailer_lib.contacts.records import RecordSource
from mailer_lib.contacts.rejects import RejectsWriter, rejects_path
from mailer_lib.contacts.rows import ConsentDefaults, RowParser, parse_moment
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.contacts.seen import SeenHashes
from mailer_lib.database import audit
from mailer_lib.database.bulk_load import load_refused, loading
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.retry import write_again
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, SubscriptionState

BATCH_ROWS = 5000

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
    without_load_data: bool = False  # the server refused LOAD DATA LOCAL: half as quick


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
        ListError, MappingError, AttributeKeyError, CsvError, ConsentOptionError, OSError: before anything is stored;
            the sentence says what to do. CsvError and OSError can also come later: what was imported stays.
    """
    if options.consent is SubscriptionState.UNSUBSCRIBED:
        raise ConsentOptionError(
            "an import brings confirmed or pending consent; to take people off: contacts unsubscribe"
        )
    started = now()
    identity = settings.identity()
    with read(engine) as connection:
        target = list_id(connection, options.list_name)
        types, choices = declared(connection), declared_choices(connection)
    with open_csv(path, options.encoding, options.delimiter) as source:
        columns, defaults = _columns_and_defaults(path, source, options, types)
        parser = RowParser(columns, types, defaults, started, choices)
        reader = PortionReader(parser, identity.address_hash)
        scope = ImportScope(target, options.consent is SubscriptionState.PENDING, started)
        with write(engine) as connection:
            audit.record(connection, actor, "contacts.import.begin", f"list:{options.list_name}", {"file": path.name})
        with (
            RejectsWriter(
                rejects_path(settings.storage, path, started), source.header, source.encoding, source.delimiter
            ) as rejects,
            loading(engine) as quick,
            _without_cycle_search(),
        ):
            run = _Run(quick, scope, SeenHashes())
            rows = _read_all(source, reader, rejects, run, batch_rows=options.batch_rows, progress=progress)
        report = run.report(rows, rejects.rows, rejects.path if rejects.rows else None, columns.ignored)
    with write(engine) as connection:
        audit.record(connection, actor, "contacts.import", f"list:{options.list_name}", _audit_detail(path, report))
    return report


def _read_all(
    source: RecordSource,
    reader: PortionReader,
    rejects: RejectsWriter,
    run: "_Run",
    *,
    batch_rows: int,
    progress: ProgressCall | None,
) -> int:
    """Read the whole file in batches; returns the number of its rows."""
    rows = 0
    for chunk in chunks(source.blocks(), batch_rows):
        rows += chunk.records
        portion, refused = reader.read(chunk)
        for reject in refused:
            rejects.write(reject.line, reject.column, reject.reason, reject.cells, reject.raw)
        run.store(portion)
        if progress is not None:
            progress(rows, max(rows, rows * source.size // max(source.bytes_read, 1)))
    if progress is not None:
        progress(rows, rows)
    return rows


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
    """The counts of the batches so far."""

    def __init__(self, engine: Engine, scope: ImportScope, seen: SeenHashes) -> None:
        self._engine = engine
        self._scope = scope
        self._seen = seen
        self._counts: Counter[str] = Counter()
        self._kept_out: Counter[KeptOut] = Counter()
        self._load_refused = False

    def store(self, portion: Portion) -> None:
        keys = portion.keys
        if not keys:
            return
        known = {h for h, before in zip(keys, self._seen.add(keys), strict=True) if before}

        def work(connection: Connection) -> BatchCounts:
            counts = store(connection, self._scope, portion, known)
            self._load_refused = load_refused(connection)
            return counts

        counts = write_again(self._engine, work)
        self._counts.update(
            new=counts.new, updated=counts.updated, unchanged=counts.unchanged, confirmed=counts.confirmed,
            pending=counts.pending, undated=counts.undated, duplicates=portion.rows - len(keys) + len(known),
        )  # fmt: skip
        self._kept_out.update(counts.kept_out)

    def report(self, rows: int, rejected: int, rejects: Path | None, ignored: Sequence[str]) -> ImportReport:
        c = self._counts
        return ImportReport(
            rows, c["new"], c["updated"], c["unchanged"], c["duplicates"], rejected, c["confirmed"], c["pending"],
            dict(self._kept_out), rejects, tuple(ignored), c["undated"],
            self._load_refused,
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
