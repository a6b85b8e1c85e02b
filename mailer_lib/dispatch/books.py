"""The books: what became of every frozen row, counted from the ledgers and checked against all else that knows.

    frozen = injected + rejected + suppressed + failed + expired + cancelled + unknown

Checked for each lease: its ledger names its own rows only, each at most once, with the message keys of its shard, and
its counters in the database say the same. For each shard: its leases follow each other without gap or overlap. For each
phase: rows of the shards = the manifest's = the database's. For the send: nobody injected twice.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, select

from mailer_lib.agent.ledger import AMENDABLE, Amended, Deferral, Final, Header, Intent, LedgerError
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.database.engine import read
from mailer_lib.database.schema import shards, snapshots
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, leases_of_send
from mailer_lib.dispatch.sends import get_send
from mailer_lib.dispatch.shard_columns import ShardColumns, load_columns
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import LeaseState, Outcome, ShardState, SnapshotState

_SHOWN = 8  # problems named in the sentence


class BooksError(RuntimeError):
    """The books don't balance. ``problems`` names every difference found."""

    def __init__(self, send: str, problems: list[str], books: "Books") -> None:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        super().__init__(f"the books of {send} don't balance: {'; '.join(problems[:_SHOWN])}{more}")
        self.problems = problems
        self.books = books


@dataclass(frozen=True)
class Books:
    """Rows of all published phases of a send. ``unsettled`` have no outcome (yet)."""

    send: str
    frozen: int = 0
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    unsettled: int = 0
    duplicates: int = 0  # message keys injected more than once, over all phases
    resent: int = 0  # message keys injected again by the operator's decision, and the first one turned out injected
    recalled: int = 0  # of the cancelled: taken back out of an MTA's queue
    deferrals: int = 0
    phases: int = 0
    by_provider: Mapping[str, Mapping[Outcome, int]] = field(default_factory=dict)
    last_injected_at: Mapping[str, datetime] = field(default_factory=dict)  # by provider

    @property
    def balanced(self) -> bool:
        """Every row has exactly one outcome, and nobody was injected twice."""
        return self.frozen == sum(self.outcomes.values()) and not self.unsettled and not self.duplicates

    def __getitem__(self, outcome: Outcome) -> int:
        return self.outcomes.get(outcome, 0)

    def line(self) -> str:
        """``frozen=… injected=… … unknown=… duplicates=…``"""
        parts = [f"frozen={self.frozen}", *(f"{outcome}={self[outcome]}" for outcome in Outcome)]
        if self.unsettled:
            parts.append(f"unsettled={self.unsettled}")
        if self.recalled:
            parts.append(f"recalled={self.recalled}")
        if self.resent:
            parts.append(f"resent={self.resent}")
        return " ".join([*parts, f"duplicates={self.duplicates}"])

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "send": self.send,
            "frozen": self.frozen,
            **{outcome.value: self[outcome] for outcome in Outcome},
            "unsettled": self.unsettled,
            "duplicates": self.duplicates,
            "resent": self.resent,
            "recalled": self.recalled,
            "deferrals": self.deferrals,
            "phases": self.phases,
            "balanced": self.balanced,
            "by_provider": {p: {o.value: n for o, n in sorted(c.items())} for p, c in sorted(self.by_provider.items())},
        }


def balance(engine: Engine, settings: Settings, send_id: int) -> Books:
    """The books of a send.

    Raises:
        BooksError: something doesn't agree. Rows without an outcome are no disagreement: look at ``unsettled``.
    """
    books, problems = read_books(engine, settings, send_id)
    if problems:
        raise BooksError(books.send, problems, books)
    return books


def read_books(engine: Engine, settings: Settings, send_id: int) -> tuple[Books, list[str]]:
    """The books as they are, and what doesn't agree, as sentences."""
    with read(engine) as connection:
        send = get_send(connection, send_id)
        phases = connection.execute(
            select(snapshots)
            .where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.PUBLISHED)
            .order_by(snapshots.c.phase)
        ).all()
        shard_rows = connection.execute(
            select(shards).where(shards.c.send_id == send_id).order_by(shards.c.snapshot_id, shards.c.number)
        ).all()
        by_shard: dict[int, list[Lease]] = {}
        for lease in leases_of_send(connection, send_id):
            by_shard.setdefault(lease.shard_id, []).append(lease)
    page = _Page(settings)
    for phase in phases:
        mine = [shard for shard in shard_rows if shard.snapshot_id == phase.id]
        page.check_phase(phase, mine)
        for shard in mine:
            page.add_shard(phase, shard, by_shard.get(shard.id, []))
    done = sum(page.outcomes.values())
    books = Books(
        send=send.ref,
        frozen=page.frozen,
        outcomes=dict(page.outcomes),
        unsettled=page.frozen - done,
        duplicates=sum(times - 1 for times in page.injected.values() if times > 1),
        resent=sum(page.injected[key] > 0 for key in page.found_out),
        recalled=page.recalled,
        deferrals=page.deferrals,
        phases=len(phases),
        by_provider={provider: {o: n for o, n in counts.items() if n} for provider, counts in page.by_provider.items()},
        last_injected_at={p: datetime.fromtimestamp(t_ms / 1000, UTC) for p, t_ms in page.last_injected_ms.items()},
    )
    if books.unsettled < 0:
        page.problems.append(f"{done} outcomes for {page.frozen} frozen rows")
    if books.duplicates:
        page.problems.append(f"{books.duplicates} messages were injected more than once")
    return books, page.problems


class _Page:
    """What is being added up."""

    def __init__(self, settings: Settings) -> None:
        self.store = store(settings)
        self.frozen = 0
        self.outcomes: Counter[Outcome] = Counter()
        self.by_provider: dict[str, Counter[Outcome]] = {}
        self.last_injected_ms: dict[str, int] = {}
        self.deferrals = 0
        self.recalled = 0
        self.injected: Counter[bytes] = Counter()
        self.found_out: set[bytes] = set()  # unknown first, injected as it turned out
        self.problems: list[str] = []

    def check_phase(self, phase: Any, mine: list[Any]) -> None:
        rows = sum(shard.rows for shard in mine)
        self.frozen += rows
        if phase.frozen != rows:
            self.problems.append(f"phase {phase.phase} has {phase.frozen} frozen rows, its shards {rows}")
        try:
            manifest = manifests.load(self.store / phase.path)
        except SnapshotError as error:
            self.problems.append(str(error))
            return
        if manifests.sha256(manifest) != phase.manifest_sha256:
            self.problems.append(f"the manifest of phase {phase.phase} was changed after it was published")
        if manifest.counts.frozen != rows:
            self.problems.append(
                f"the manifest of phase {phase.phase} has {manifest.counts.frozen} rows, its shards {rows}"
            )

    def add_shard(self, phase: Any, shard: Any, held: list[Lease]) -> None:
        name = f"shard {shard.number} of phase {phase.phase}"
        expected = 0
        for lease in held:
            if lease.first_row != expected:
                self.problems.append(f"{name}: epoch {lease.epoch} begins at row {lease.first_row}, not at {expected}")
            expected = lease.granted_through
        if shard.state == ShardState.SETTLED and expected != shard.rows:
            self.problems.append(f"{name} is settled, but its leases end at row {expected} of {shard.rows}")
        if not any(lease.granted for lease in held):
            return
        path = self.store / phase.path / shard.path
        try:
            columns = load_columns(path)
        except OSError as error:
            self.problems.append(f"{path} can't be read: {error}")
            return
        for lease in held:
            self._add_lease(lease, columns)

    def _add_lease(self, lease: Lease, columns: ShardColumns) -> None:
        name = lease.ledger_name
        kept = KeptLedger(self.store, lease)
        rows: dict[int, Final] = {}
        counts: Counter[Outcome] = Counter()
        deferrals = 0
        try:
            for record in kept.records():
                if isinstance(record, Final):
                    if record.row in rows:
                        self.problems.append(f"{name}: row {record.row} has two outcomes")
                    if not lease.first_row <= record.row < lease.granted_through:
                        self.problems.append(f"{name}: row {record.row} wasn't granted")
                        continue
                    rows[record.row] = record
                    self._count(record, columns)
                elif isinstance(record, Amended):
                    self._amend(name, record, rows, columns)
                elif isinstance(record, Intent):
                    if columns.message_key[record.row] != record.message_key:
                        self.problems.append(f"{name}: row {record.row} carries another message's key")
                elif isinstance(record, Deferral):
                    deferrals += bool(record.code)
                elif isinstance(record, Header) and (record.shard, record.phase, record.epoch) != (
                    lease.shard,
                    lease.phase,
                    lease.epoch,
                ):
                    self.problems.append(f"{name} is the ledger of another lease")
        except (OSError, ValueError, LedgerError) as error:
            self.problems.append(f"{kept.path} can't be read: {error}")
            return
        counts.update(record.outcome for record in rows.values())
        self.outcomes += counts
        self.deferrals += deferrals
        if dict(counts) != dict(lease.counts):
            self.problems.append(f"{name} counts {_text(counts)}, the database {_text(lease.counts)}")
        if deferrals != lease.deferrals:
            self.problems.append(f"{name} counts {deferrals} deferrals, the database {lease.deferrals}")
        if lease.state != LeaseState.ACTIVE and len(rows) != lease.granted:
            self.problems.append(f"{name} ended with {len(rows)} outcomes for {lease.granted} granted rows")

    def _amend(self, name: str, record: Amended, rows: dict[int, Final], columns: ShardColumns) -> None:
        before = rows.get(record.row)
        if before is None or record.outcome not in AMENDABLE.get(before.outcome, ()):
            was = "has no outcome" if before is None else f"is {before.outcome}"
            self.problems.append(f"{name}: row {record.row} {was}, but is amended to {record.outcome}")
            return
        rows[record.row] = after = Final(*record)
        provider, key = columns.provider[record.row], columns.message_key[record.row]
        self.by_provider.setdefault(provider, Counter())[before.outcome] -= 1
        if before.outcome is Outcome.INJECTED:
            self.injected[key] -= 1
            self.recalled += after.outcome is Outcome.CANCELLED
        if after.outcome is Outcome.INJECTED:  # a resend of what was unknown is the operator's decision, no mistake
            self.by_provider[provider][after.outcome] += 1
            self.found_out.add(key)
        else:
            self._count(after, columns)

    def _count(self, record: Final, columns: ShardColumns) -> None:
        provider = columns.provider[record.row]
        self.by_provider.setdefault(provider, Counter())[record.outcome] += 1
        if record.outcome is Outcome.INJECTED:
            self.last_injected_ms[provider] = max(self.last_injected_ms.get(provider, 0), record.t_ms)
            self.injected[columns.message_key[record.row]] += 1


def _text(counts: Mapping[Outcome, int]) -> str:
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "nothing"
