"""Many refusals at once, from a file: people who left elsewhere, and suppression lists, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from sqlalchemy import Connection, Engine

from mailer_lib.contacts import hash_lists
from mailer_lib.contacts.address_file import Entry
from mailer_lib.contacts.consent import suppress_domain, unsubscribe
from mailer_lib.contacts.imported import suppress_imported
from mailer_lib.contacts.rejects import RejectsWriter
from mailer_lib.database.bulk_hashes import add_hashes
from mailer_lib.database.engine import now
from mailer_lib.database.retry import write_again
from mailer_lib.identity import IdentityKey
from mailer_lib.terms import HashAlgorithm

BATCH, QUICK_BATCH = 500, 5000  # people one by one; many by one statement

ProgressCall = Callable[[int, int | None], None]


@dataclass
class RefusalReport:
    """What became of a file's lines: ``lines = new + known + len(problems)``."""

    lines: int = 0
    new: int = 0
    known: int = 0  # were off already
    problems: list[tuple[int, str]] = field(default_factory=list)  # line, sentence


def unsubscribe_many(
    engine: Engine,
    identity: IdentityKey,
    entries: Iterable[Entry],
    *,
    list_id: int | None,
    source: str,
    progress: ProgressCall | None = None,
) -> RefusalReport:
    """Take people off one list (None: all). The refusal counts as of now, so consent given before doesn't undo it."""

    def one(connection: Connection, entry: Entry) -> bool:
        assert entry.address is not None
        key = identity.address_hash(entry.address.normalised)
        return unsubscribe(
            connection, address_hash=key, list_id=list_id, method="unsubscribe-file", source=source, at=now()
        )

    return _apply(engine, entries, partial(_each, one), progress, batch_rows=BATCH)


def suppress_many(
    engine: Engine,
    identity: IdentityKey,
    entries: Iterable[Entry],
    *,
    source: str,
    progress: ProgressCall | None = None,
    rejects: RejectsWriter | None = None,
) -> RefusalReport:
    """Bar addresses and domains everywhere, with reason ``imported``: only an operator lifts it again."""

    def many(good: list[Entry], connection: Connection) -> int:
        keys = [identity.address_hash(entry.address.normalised) for entry in good if entry.address is not None]
        new = len(suppress_imported(connection, keys, source=source, at=now()))
        domains = [entry.domain for entry in good if entry.domain is not None]
        return new + sum(suppress_domain(connection, domain=domain, source=source) for domain in domains)

    return _apply(engine, entries, many, progress, rejects)


@dataclass(frozen=True)
class HashReport:
    """What became of a file of hashes."""

    hashes: RefusalReport  # new: weren't in the list
    barred: int  # contacts who weren't barred by it yet


def suppress_hashes(
    engine: Engine,
    identity: IdentityKey,
    entries: Iterable[Entry],
    *,
    name: str,
    algorithm: HashAlgorithm,
    progress: ProgressCall,
    rejects: RejectsWriter | None = None,
) -> HashReport:
    """Keep the hashes as a list of that name, and bar every contact whom it names.

    Killed in the middle, run it again: until its end it bars no contact who was here before.

    Raises:
        HashListError: the name can't be, or is of a list of another algorithm.
    """
    kept = hash_lists.open_list(engine, name, algorithm)

    def many(good: list[Entry], connection: Connection) -> int:
        return add_hashes(connection, kept.id, sorted({entry.digest for entry in good if entry.digest is not None}))

    report = _apply(engine, entries, many, progress, rejects)
    return HashReport(report, hash_lists.apply_list(engine, kept, identity.address_hash, progress))


def _apply(
    engine: Engine,
    entries: Iterable[Entry],
    many: Callable[[list[Entry], Connection], int],
    progress: ProgressCall | None,
    rejects: RejectsWriter | None = None,
    *,
    batch_rows: int = QUICK_BATCH,
) -> RefusalReport:
    report = RefusalReport()
    for batch in _batches(entries, batch_rows):
        good = [entry for entry in batch if entry.problem is None]
        report.lines += len(batch)
        report.problems += [(entry.line, entry.problem) for entry in batch if entry.problem is not None]
        if rejects is not None:
            for entry in batch:
                if entry.problem is not None:
                    rejects.write(entry.line, "", entry.problem, [entry.text])
        new = write_again(engine, partial(many, good))
        report.new += new
        report.known += len(good) - new
        if progress is not None:
            progress(report.lines, None)
    return report


def _each(one: Callable[[Connection, Entry], bool], entries: list[Entry], connection: Connection) -> int:
    return sum(one(connection, entry) for entry in entries)


def _batches(entries: Iterable[Entry], rows: int) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, rows)):
        yield batch
