"""The snapshot store's copy of a ledger, which is what the books are made from.

While a lease runs its ledger is copied byte by byte to ``ledgers/.syncing/``; the copy is on disk before the database
says that its bytes were accounted for. When the lease ends the copy moves to ``ledgers/`` under the same name. So a
lost server, worker or pod takes nothing with it that was ever counted.

In a store on S3 nothing can be appended to. There each delta is an object of its own before it is counted,
``ledgers/.syncing/<name>/<first byte>-<end>``; the growing copy is a file of this machine's work folder, and is made
again from the deltas wherever it is missing or behind. When the lease ends the ledger becomes one object.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mailer_lib.agent.ledger import LedgerDelta, LedgerError, Record, decode, encode, read_ledger
from mailer_lib.dispatch.lease import Lease
from mailer_lib.shard.store import S3Path, StorePath


class KeptLedger:
    """The copy of one lease's ledger. ``store`` is the root of the snapshot store."""

    def __init__(self, store: StorePath, lease: Lease) -> None:
        self.lease = lease
        shared = store / lease.snapshot_path / "ledgers"
        own = (store if isinstance(store, Path) else store.work) / lease.snapshot_path / "ledgers"
        self.final: StorePath = shared / lease.ledger_name
        self.syncing = own / ".syncing" / lease.ledger_name
        self._pieces = shared / ".syncing" / lease.ledger_name if isinstance(shared, S3Path) else None
        self._is_growing = False  # on S3, where looking for ``final`` is a request

    @property
    def path(self) -> StorePath:
        """Where the copy is now."""
        return self.final if self.final.exists() else self.syncing

    def records(self, start: int = 0) -> Iterator[Record]:
        """What was accounted for, from byte ``start`` on.

        Raises:
            LedgerError: a line is damaged.
            OSError: the copy is gone or can't be read.
        """
        if self.lease.ledger_bytes <= start:
            return
        for line in self._counted()[start:].splitlines():
            try:
                yield decode(line)
            except ValueError as error:
                raise LedgerError(f"{self.path}: damaged ledger line ({error}); restore it from the backup") from None

    def _counted(self) -> bytes:
        through = self.lease.ledger_bytes
        if self.final.exists():
            return self.final.read_bytes()[:through]
        self._catch_up()
        with self.syncing.open("rb") as file:
            return file.read(through)

    def take(self, fetch: Callable[[int, int], bytes], limit: int) -> LedgerDelta:
        """Copy what came after ``lease.ledger_bytes``, durably, and return its whole records.

        ``fetch(offset, limit)`` reads from the agent's ledger. A torn end is not kept: the agent's next writer may cut
        it off. A copy that is behind the database (a restored store) is filled from the agent's ledger first.

        Raises:
            LedgerError: the agent's ledger is shorter than what was accounted for, or damaged.
            StoreError: the store can't be written; nothing was counted.
        """
        offset = self.lease.ledger_bytes
        if not self._is_growing and self.final.exists():  # complete, and its lease was about to be settled
            return LedgerDelta([], offset)
        self._is_growing = self._pieces is not None
        self._catch_up()
        self.syncing.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._growing() as handle:
                return self._taken(handle, fetch, limit)
        except FileNotFoundError:  # likewise: complete, and moved by a second execution of the slot
            if not self.final.exists():
                raise
            return LedgerDelta([], offset)

    def _taken(self, handle: int, fetch: Callable[[int, int], bytes], limit: int) -> LedgerDelta:
        offset = self.lease.ledger_bytes
        have = os.fstat(handle).st_size
        if have < offset:
            self._fill(handle, have, offset, fetch)
        os.ftruncate(handle, offset)
        data = fetch(offset, limit)
        if not data:
            self._check_job_folder(offset, fetch)
            return LedgerDelta([], offset)
        end = data.rfind(b"\n") + 1
        _write_at(handle, data[:end], offset)
        os.fsync(handle)
        if end:
            self._put_piece(offset, data[:end])
        return read_ledger(self.syncing, offset)

    @contextmanager
    def _growing(self) -> Iterator[int]:
        """The growing copy, locked. Two processes may run a slot for a moment (docs/decisions/0601): what one of them
        cuts off and writes again, the other one may not read or move meanwhile.

        Raises:
            FileNotFoundError: it was moved to its place.
        """
        while True:
            handle = os.open(self.syncing, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self._is_it(handle):
                    if self._pieces is None and self.final.exists():  # moved before this one was made
                        self.syncing.unlink()
                        break
                    yield handle
                    return
            finally:
                os.close(handle)
            if self.final.exists():
                break
        raise FileNotFoundError(f"{self.syncing} is complete, and was moved")

    def _is_it(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.syncing.stat())
        except FileNotFoundError:
            return False

    def _check_job_folder(self, offset: int, fetch: Callable[[int, int], bytes]) -> None:
        """An agent in another folder than the one before it would send again what was granted."""
        if offset and not fetch(offset - 1, 1):
            raise LedgerError(
                f"the agent's {self.lease.ledger_name} is shorter than the {offset} bytes that were counted: its job "
                "folder isn't the one that the lease was begun in. Run the slot on the machine that has it, or give "
                "the server up with `mailfleet send lose-server`"
            )

    def _fill(self, handle: int, have: int, offset: int, fetch: Callable[[int, int], bytes]) -> None:
        missing = fetch(have, offset - have)
        if len(missing) != offset - have:
            raise LedgerError(
                f"{self.syncing} has {have} bytes, but {offset} were accounted for, and the agent's ledger doesn't "
                "have the rest; restore the snapshot store from its backup"
            )
        _write_at(handle, missing, have)
        self._put_piece(have, missing)

    def append(self, records: Iterable[Record]) -> int:
        """Add records of our own after what was accounted for (and nothing else), durably. Returns the new size."""
        data = b"".join(encode(record) for record in records)
        offset = self.lease.ledger_bytes
        if isinstance(self.final, S3Path):  # nothing follows them: the ledger is complete
            before = self._counted() if offset else b""
            _check_size(self.path, len(before), offset)
            self.final.write_bytes(before + data)
            return offset + len(data)
        path = self.final if self.final.exists() else self.syncing
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _check_size(path, os.fstat(handle).st_size, offset)
            os.ftruncate(handle, offset)
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
            try:
                self._move()
            except (LedgerError, FileNotFoundError):
                if not self.final.exists():  # else a second execution of the slot, for a moment, was quicker
                    raise
        if self._pieces is not None:
            self._pieces.remove_all()
            self.syncing.unlink(missing_ok=True)
        elif isinstance(self.final, Path):
            folder = os.open(self.final.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _move(self) -> None:
        self._catch_up()
        if not self.syncing.exists():
            self._check_complete(0)
        with self._growing() as handle:
            self._check_complete(os.fstat(handle).st_size)
            if isinstance(self.final, S3Path):
                self.final.write_bytes(self.syncing.read_bytes())
            else:
                self.syncing.replace(self.final)

    def _check_complete(self, size: int) -> None:
        if size != self.lease.ledger_bytes:
            raise LedgerError(
                f"{self.syncing} has {size} bytes, but {self.lease.ledger_bytes} were accounted for; restore it "
                "from the job folder or the backup"
            )

    # --- on S3 --------------------------------------------------------------------------------------------------------

    def _put_piece(self, offset: int, data: bytes) -> None:
        if self._pieces is not None:
            (self._pieces / f"{offset:012d}-{offset + len(data):012d}").write_bytes(data)

    def _catch_up(self) -> None:
        """Make the growing copy again from the store, where another machine wrote what this one doesn't have."""
        if self._pieces is None:
            return
        through = self.lease.ledger_bytes
        have = self.syncing.stat().st_size if self.syncing.exists() else 0
        if have >= through:
            return
        by_name = {piece.name: piece for piece in self._pieces.files()}
        chain = chain_of(by_name, through)
        if chain is None:
            return  # whoever needs the bytes says that they are missing
        data = b"".join(by_name[name].read_bytes() for name in chain)
        self.syncing.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.syncing.with_name(f".{self.syncing.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(self.syncing)


def chain_of(names: Iterable[str], through: int) -> list[str] | None:
    """Deltas that follow each other from byte 0 to ``through``; None when there is no such row of them.

    Each counted delta begins where the one before ended. One that was stored and never counted (its writer was killed
    in between) may begin at the same byte and end elsewhere: it leads nowhere, or to the same bytes.
    """
    following: dict[int, list[int]] = {}
    for name in names:
        first, _, end = name.partition("-")
        if first.isdecimal() and end.isdecimal() and int(end) > int(first):
            following.setdefault(int(first), []).append(int(end))
    return _chain(following, through)


def _chain(following: Mapping[int, list[int]], through: int) -> list[str] | None:
    came_from: dict[int, int] = {0: 0}
    waiting = [0]
    while waiting:
        at = waiting.pop()
        for end in following.get(at, ()):
            if end <= through and end not in came_from:
                came_from[end] = at
                waiting.append(end)
    if through not in came_from:
        return None
    chain: list[str] = []
    while through:
        chain.append(f"{came_from[through]:012d}-{through:012d}")
        through = came_from[through]
    return chain[::-1]


def _check_size(path: StorePath, size: int, offset: int) -> None:
    if size < offset:
        raise LedgerError(f"{path} is shorter than the {offset} bytes accounted for; restore it from the backup")


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        offset += written
        view = view[written:]
