"""The snapshot store's copy of a ledger, which is what the books are made from.

While a lease runs its ledger is copied byte by byte to ``ledgers/.syncing/``; the copy is on disk before the database
says that its bytes were accounted for. When the lease ends the copy moves to ``ledgers/`` under the same name. So a
lost server, worker or pod takes nothing with it that was ever counted.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mailer_lib.agent.ledger import LedgerDelta, LedgerError, Record, encode, read_ledger
from mailer_lib.dispatch.lease import Lease


class KeptLedger:
    """The copy of one lease's ledger. ``storage`` is ``settings.storage``."""

    def __init__(self, storage: Path, lease: Lease) -> None:
        self.lease = lease
        folder = storage / lease.snapshot_path / "ledgers"
        self.final = folder / lease.ledger_name
        self.syncing = folder / ".syncing" / lease.ledger_name

    @property
    def path(self) -> Path:
        """Where the copy is now."""
        return self.final if self.final.exists() else self.syncing

    def take(self, fetch: Callable[[int, int], bytes], limit: int) -> LedgerDelta:
        """Copy what came after ``lease.ledger_bytes``, durably, and return its whole records.

        ``fetch(offset, limit)`` reads from the agent's ledger. A torn end is not kept: the agent's next writer may cut
        it off. A copy that is behind the database (a restored store) is filled from the agent's ledger first.

        Raises:
            LedgerError: the agent's ledger is shorter than what was accounted for, or damaged.
        """
        offset = self.lease.ledger_bytes
        if self.final.exists():  # complete, and its lease was about to be settled
            return LedgerDelta([], offset)
        self.syncing.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.syncing, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            have = os.fstat(handle).st_size
            if have < offset:
                self._fill(handle, have, offset, fetch)
            os.ftruncate(handle, offset)
            data = fetch(offset, limit)
            if not data:
                return LedgerDelta([], offset)
            end = data.rfind(b"\n") + 1
            _write_at(handle, data[:end], offset)
            os.fsync(handle)
        finally:
            os.close(handle)
        return read_ledger(self.syncing, offset)

    def _fill(self, handle: int, have: int, offset: int, fetch: Callable[[int, int], bytes]) -> None:
        missing = fetch(have, offset - have)
        if len(missing) != offset - have:
            raise LedgerError(
                f"{self.syncing} has {have} bytes, but {offset} were accounted for, and the agent's ledger doesn't "
                "have the rest; restore the snapshot store from its backup"
            )
        _write_at(handle, missing, have)

    def append(self, records: Iterable[Record]) -> int:
        """Add records of our own after what was accounted for (and nothing else), durably. Returns the new size."""
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            offset = self.lease.ledger_bytes
            if os.fstat(handle).st_size < offset:
                raise LedgerError(
                    f"{path} is shorter than the {offset} bytes accounted for; restore it from the backup"
                )
            os.ftruncate(handle, offset)
            data = b"".join(encode(record) for record in records)
            _write_at(handle, data, offset)
            os.fsync(handle)
        finally:
            os.close(handle)
        return offset + len(data)

    def finish(self) -> None:
        """Move the complete copy to its place. Doing it twice is the same as once.

        Raises:
            LedgerError: the copy isn't what was accounted for.
        """
        if not self.lease.ledger_bytes:
            return  # nothing was ever granted
        if not self.final.exists():
            size = self.syncing.stat().st_size if self.syncing.exists() else 0
            if size != self.lease.ledger_bytes:
                raise LedgerError(
                    f"{self.syncing} has {size} bytes, but {self.lease.ledger_bytes} were accounted for; restore it "
                    "from the job folder or the backup"
                )
            self.syncing.replace(self.final)
        folder = os.open(self.final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        offset += written
        view = view[written:]
