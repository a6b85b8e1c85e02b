"""One lease in the agent's hands: a range of a shard's rows, its ledger, and where each row stands."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from mailer_lib.agent.folder import JobError
from mailer_lib.agent.job import LeaseGrant
from mailer_lib.agent.ledger import Connected, Header, InDoubt, Intent, LedgerState, LedgerWriter, Opened
from mailer_lib.shard.files import recipients, shard_table
from mailer_lib.shard.recipient import REST, Recipient
from mailer_lib.terms import Outcome

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class RowState(IntEnum):
    NEW = 0
    WAITING = 1  # deferred, held back by a provider's limit, or given back by a broken connection
    BUSY = 2  # on a connection, or in doubt
    SETTLED = 3


class ShardRows:
    """Recipients by row: memory stays flat however many leases there are.

    A shard that is worked on lies there as Arrow columns (0.9 MB for 5,000 of the benchmark's), and only a few
    pages of it as recipients (5.9 MB would be all of them), since rows are sent nearly in their order.
    """

    SHARDS = 16  # two of each stream (dispatch/streams.py)
    PAGES = 12
    PAGE_ROWS = 512

    def __init__(self) -> None:
        self._shards: OrderedDict[Path, pa.Table] = OrderedDict()
        self._pages: OrderedDict[tuple[Path, int], list[Recipient]] = OrderedDict()

    def row(self, path: Path, row: int) -> Recipient:
        """
        Raises:
            ShardError: the file can't be read.
            JobError: it has no such row.
        """
        number, place = divmod(row, self.PAGE_ROWS)
        page = self._pages.get((path, number))
        if page is None:
            page = recipients(self._shard(path), number * self.PAGE_ROWS, self.PAGE_ROWS)
            _keep(self._pages, (path, number), page, self.PAGES)
        else:
            self._pages.move_to_end((path, number))
        if place >= len(page):
            raise JobError(f"{path} has {self._shard(path).num_rows} rows, but row {row} was granted")
        return page[place]

    def _shard(self, path: Path) -> pa.Table:
        table = self._shards.pop(path, None)
        if table is None:
            table = shard_table(path)
        _keep(self._shards, path, table, self.SHARDS)
        return table


def _keep(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """As the newest; the oldest goes when there are too many."""
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)


class Lease:
    """Opened from its ledger: what earlier agents of this job did is known, their doubts are ``doubts``."""

    __slots__ = (
        "attempts",
        "closes_at",
        "connections",
        "cursor",
        "doubts",
        "dropped",
        "first_row",
        "granted_through",
        "injected",
        "ledger",
        "left",
        "path",
        "rest_variant",
        "rows",
        "settled",
        "states",
        "waiting",
    )

    def __init__(self, folder: Path, grant: LeaseGrant, job_id: str, opened: Opened, rows: ShardRows) -> None:
        """
        Raises:
            JobError: the shard file is missing or isn't the one that was granted.
            LedgerError: the ledger is damaged or another lease's.
        """
        self.path = folder / grant.shard_file
        _check_file(self.path, grant.sha256)
        header = Header(job_id, grant.shard, grant.phase, grant.epoch, grant.first_row)
        self.rows = rows
        self.ledger = LedgerWriter.open(
            folder / "ledgers" / grant.ledger_name,
            header,
            opened,
            lambda state, before: self._perhaps_missing(grant, state, before),
        )
        state = self.ledger.state
        self.connections: dict[str, Connected] = {}  # of this agent, already noted in this ledger
        self.states = bytearray(grant.rows)
        self.first_row = grant.first_row
        self.cursor = grant.first_row
        self.granted_through = grant.first_row
        self.left = 0  # granted rows without an outcome
        self.settled = 0
        self.injected = 0
        self.dropped = False  # the slot took the lease away
        self.rest_variant: int | None = None
        self.closes_at: float | None = None  # Unix seconds: of its people's send window
        self.attempts: dict[int, int] = {}
        self.doubts: list[InDoubt] = state.in_doubt
        self.waiting: dict[int, int] = {}  # row: next attempt in Unix milliseconds, as found in the ledger
        for row, outcome in state.outcomes.items():
            self.states[row] = RowState.SETTLED
            self.settled += 1
            self.injected += outcome is Outcome.INJECTED
        for row, deferred in state.deferred.items():
            self.attempts[row] = deferred.attempts
            self.states[row] = RowState.WAITING
            self.waiting[row] = deferred.next_at_ms
        for doubt in self.doubts:
            self.states[doubt.row] = RowState.BUSY
            self.waiting.pop(doubt.row, None)
        self.ledger.forget()
        self.grant(grant)

    def _perhaps_missing(self, grant: LeaseGrant, state: LedgerState, before: Opened) -> Iterator[Connected | Intent]:
        """The machine went down, perhaps with records that weren't on disk: every granted row without an outcome may
        have been handed over, and gets the intent that may be missing.
        """
        conn = f"{before.incarnation}.0"  # agents count connections from 1
        known = {doubt.row for doubt in state.in_doubt}
        yield Connected(conn, 0, before.t_ms, 0, 0)
        for row in range(grant.first_row, min(grant.granted_through, grant.rows)):
            if row not in state.outcomes and row not in known:
                key = self.rows.row(self.path, row).message_key
                yield Intent(row, key, state.attempts(row) + 1, conn, before.t_ms)

    @property
    def name(self) -> str:
        return self.ledger.path.name

    def grant(self, grant: LeaseGrant) -> None:
        """More rows may be sent; a grant never shrinks.

        Raises:
            JobError: another variant for the rest of the test slice than before.
        """
        if self.rest_variant is None:
            self.rest_variant = grant.rest_variant
        elif grant.rest_variant != self.rest_variant:
            raise JobError(f"{self.name}: the rest was to get variant {self.rest_variant}, now {grant.rest_variant}")
        self.closes_at = grant.window_closes_at
        through = min(grant.granted_through, grant.rows)
        if through > self.granted_through:
            self.left += sum(state != RowState.SETTLED for state in self.states[self.granted_through : through])
            self.granted_through = through

    def is_shut(self, at: float) -> bool:
        """The send window of its people is over."""
        return self.closes_at is not None and at >= self.closes_at

    def next_new(self) -> int | None:
        """The next granted row that nothing was done about; moves on."""
        if self.dropped:
            return None
        while self.cursor < self.granted_through:
            row = self.cursor
            self.cursor += 1
            if self.states[row] == RowState.NEW:
                return row
        return None

    @property
    def has_new(self) -> bool:
        return not self.dropped and self.cursor < self.granted_through

    def recipient(self, row: int) -> Recipient:
        """
        Raises:
            ShardError, JobError: likewise ``ShardRows.row``; a row of the rest was granted before the decision.
        """
        found = self.rows.row(self.path, row)
        if found.variant != REST:
            return found
        if self.rest_variant is None:
            raise JobError(f"{self.name}: row {row} was granted, but nobody has decided which variant it gets")
        return replace(found, variant=self.rest_variant)

    def settle(self, row: int, outcome: Outcome) -> None:
        """Note in memory that the row has its outcome; the caller writes the record."""
        if self.states[row] == RowState.SETTLED:
            raise AssertionError(f"{self.name}: row {row} would get a second outcome")
        self.states[row] = RowState.SETTLED
        self.attempts.pop(row, None)
        self.left -= row < self.granted_through
        self.settled += 1
        self.injected += outcome is Outcome.INJECTED

    @property
    def busy(self) -> bool:
        return RowState.BUSY in self.states


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"{path} can't be read: {error.strerror}") from None
    if found != sha256:
        raise JobError(f"{path} isn't the shard that was granted: its SHA-256 is {found}, not {sha256}")
