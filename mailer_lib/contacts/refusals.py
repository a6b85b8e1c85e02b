"""Many refusals at once, from a file: people who left elsewhere, and suppression lists, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from sqlalchemy import Connection, Engine

from mailer_lib.contacts.address_file import Entry
from mailer_lib.contacts.consent import suppress, suppress_domain, unsubscribe
from mailer_lib.database.engine import now
from mailer_lib.database.retry import write_again
from mailer_lib.identity import IdentityKey
from mailer_lib.terms import SuppressionReason

BATCH = 500

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

    return _apply(engine, entries, one, progress)


def suppress_many(
    engine: Engine,
    identity: IdentityKey,
    entries: Iterable[Entry],
    *,
    source: str,
    progress: ProgressCall | None = None,
) -> RefusalReport:
    """Bar addresses and domains everywhere, with reason ``imported``: only an operator lifts it again."""

    def one(connection: Connection, entry: Entry) -> bool:
        if entry.domain is not None:
            return suppress_domain(connection, domain=entry.domain, source=source)
        assert entry.address is not None
        key = identity.address_hash(entry.address.normalised)
        return suppress(connection, address_hash=key, reason=SuppressionReason.IMPORTED, source=source, at=now())

    return _apply(engine, entries, one, progress)


def _apply(
    engine: Engine,
    entries: Iterable[Entry],
    one: Callable[[Connection, Entry], bool],
    progress: ProgressCall | None,
) -> RefusalReport:
    report = RefusalReport()
    for batch in _batches(entries):
        good = [entry for entry in batch if entry.problem is None]
        report.lines += len(batch)
        report.problems += [(entry.line, entry.problem) for entry in batch if entry.problem is not None]
        new = write_again(engine, partial(_each, one, good))
        report.new += new
        report.known += len(good) - new
        if progress is not None:
            progress(report.lines, None)
    return report


def _each(one: Callable[[Connection, Entry], bool], entries: list[Entry], connection: Connection) -> int:
    return sum(one(connection, entry) for entry in entries)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, BATCH)):
        yield batch
