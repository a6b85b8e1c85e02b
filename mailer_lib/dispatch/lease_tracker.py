"""One lease as its slot sees it: the ledger's fold so far, and which granted rows the agent can send right now."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from math import ceil
from pathlib import PurePosixPath

from sqlalchemy import Connection, Engine

from mailer_lib.agent.ledger import READ_BYTES, Deferral, Final, Intent, Record
from mailer_lib.contacts.consent import suppress
from mailer_lib.database.engine import now
from mailer_lib.dispatch.accounting import record_progress
from mailer_lib.dispatch.caps import within
from mailer_lib.dispatch.channel import Channel
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease
from mailer_lib.dispatch.shard_columns import ShardColumns, load_columns
from mailer_lib.dispatch.streams import Held
from mailer_lib.dispatch.tally import count
from mailer_lib.shard.store import StorePath
from mailer_lib.terms import SuppressionReason


class LeaseTracker:
    """Follows one lease. ``lease`` is renewed from the database on every look."""

    def __init__(self, store: StorePath, lease: Lease) -> None:
        self.lease = lease
        self.kept = KeptLedger(store, lease)
        self.shard_file = store / lease.snapshot_path / lease.shard_path
        self._final: set[int] = set()
        self._waiting: set[int] = set()  # deferred, not tried again yet
        self._folded_bytes = 0
        self._catch_up()

    @cached_property
    def columns(self) -> ShardColumns:
        return load_columns(self.shard_file)

    @property
    def shard_name(self) -> str:
        """File name in the job folder. A shard that was amended since it was leased here has another name, and so is
        copied again (docs/decisions/0303)."""
        part = PurePosixPath(self.lease.shard_path).stem.removeprefix("part-")
        amended = "" if part == "0" else f".{part}"
        return f"{self.lease.shard:04d}.p{self.lease.phase}{amended}.parquet"

    @property
    def deferred(self) -> int:
        return len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Every granted row has an outcome."""
        return self.lease.settled == self.lease.granted

    def renew(self, lease: Lease) -> None:
        """Take over what the database says now."""
        self.lease = lease
        self.kept.lease = lease
        self._catch_up()

    def _catch_up(self) -> None:
        """Fold what was accounted for and isn't folded here: on attaching, or when another process did it."""
        if self._folded_bytes >= self.lease.ledger_bytes:
            return
        with contextlib.suppress(FileNotFoundError):  # a restored store: the next sync fills it from the agent's ledger
            self._fold(self.kept.records(self._folded_bytes))
            self._folded_bytes = self.lease.ledger_bytes

    def _fold(self, records: Iterable[Record]) -> None:
        for record in records:
            if isinstance(record, Final):
                self._final.add(record.row)
                self._waiting.discard(record.row)
            elif isinstance(record, Deferral):
                self._waiting.add(record.row)
            elif isinstance(record, Intent):
                self._waiting.discard(record.row)

    def sync(self, engine: Engine, channel: Channel, source: str) -> int:
        """Bring the ledger's news into the store and the database. Returns how many rows got an outcome.

        ``source`` is noted with the suppression of mailboxes that turned out not to exist.

        Raises:
            LeaseLostError: another process did it at the same moment; look again.
        """
        name = self.lease.ledger_name
        delta = self.kept.take(lambda offset, limit: channel.fetch_ledger(name, offset, limit), READ_BYTES)
        if not delta.records:
            return 0
        counted = count(delta.records, lambda row: self.columns.variant_of(row, self.lease.decided_variant))
        dead = [self.columns.address_hash[row] for row in counted.dead_mailboxes]

        def suppress_dead(connection: Connection) -> None:
            for address_hash in dead:
                suppress(
                    connection,
                    address_hash=address_hash,
                    reason=SuppressionReason.HARD_BOUNCE,
                    source=source,
                    at=now(),
                )

        record_progress(engine, self.lease, delta.next_offset, counted.tally, suppress_dead if dead else None)
        self._fold(delta.records)
        self._folded_bytes = delta.next_offset
        return sum(counted.tally.counts.values())

    def providers_of(self, first: int, through: int) -> Counter[str]:
        """Rows by mailbox provider."""
        if self.lease.provider is not None:
            return Counter({self.lease.provider: through - first})
        return Counter(self.columns.provider[first:through])

    def capped(self, through: int, rooms: Mapping[str, int]) -> int:
        """How far a grant may go: where providers are mixed, up to the first row of one whose cap has no room."""
        if not rooms or self.lease.provider is not None:
            return through
        return within(self.columns.provider, self.lease.granted_through, through, rooms)

    def held(self, provider_per_s: Mapping[str, float], grant_s: float, rooms: Mapping[str, int]) -> Held:
        """As far as grants go. ``rooms``: rows that may still be granted for the providers that have a cap."""
        soon, waiting = self.sendable(provider_per_s, grant_s)
        granted = self.lease.granted_through
        return Held(self.capped(granted + self.lease.grantable, rooms), granted, soon, waiting)

    def sendable(self, provider_per_s: Mapping[str, float], grant_s: float) -> tuple[int, int]:
        """Granted rows without an outcome: (those that can go within ``grant_s`` under the providers' limits, all).

        Rows that wait for a retry are in neither: they must not keep others from being granted.
        """
        lease = self.lease
        unsettled = [
            row
            for row in range(lease.first_row, lease.granted_through)
            if row not in self._final and row not in self._waiting
        ]
        if not provider_per_s:
            return len(unsettled), len(unsettled)
        by_provider = Counter(self.columns.provider[row] for row in unsettled)
        soon = sum(
            min(rows, ceil(provider_per_s[provider] * grant_s)) if provider in provider_per_s else rows
            for provider, rows in by_provider.items()
        )
        return soon, len(unsettled)
