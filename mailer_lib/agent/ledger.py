"""The ledger: what an agent did about each row of one lease, written before it is done (docs/architecture.md).

Text, one record a line, fields parted by tabs, each line closed by tab + CRC-32 of the bytes before that tab (8 hex)
and a newline. One writer, many readers. ``write(2)`` of an intent returns before the message's bytes go to the kernel,
so a killed agent leaves at most rows *in doubt* behind, never an unrecorded message. SIGKILL loses nothing that was
written; a power loss may lose the end that wasn't synced yet (``LedgerWriter.sync``). Then the ``boot_id`` has changed
and the last agent hasn't closed the ledger (``E``): whoever opens it next knows that rows may have been handed over of
which nothing is left here (docs/decisions/0502).

A line without its newline is *torn*: its ``write(2)`` never returned, so nothing was done on the strength of it, and
the next writer cuts it off. A line that has its newline and a wrong CRC is damage, and an error.
"""

import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mailer_lib.terms import Outcome

VERSION = 1
READ_BYTES = 4 * 1024 * 1024  # of one delta; a longer ledger is read in several
_TEXT_CHARS = 400
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")


class LedgerError(RuntimeError):
    """A ledger that is damaged, isn't the one expected, or can't be written; the sentence names file and byte."""


class Header(NamedTuple):
    """``H``: the first line; whose ledger this is."""

    job_id: str
    shard: int
    phase: int
    epoch: int
    first_row: int


class Opened(NamedTuple):
    """``S``: an agent opened the ledger. ``incarnation`` counts the agents of one job folder."""

    incarnation: int
    boot_id: str
    pid: int
    t_ms: int


class Connected(NamedTuple):
    """``C``: a connection about to be used by rows of this ledger; the MTA's log stood at (inode, offset) then."""

    conn: str  # "<incarnation>.<number>"
    local_port: int
    t_ms: int
    log_inode: int  # 0: there was no log to look at
    log_offset: int


class Intent(NamedTuple):
    """``I``: the row's message is about to be given to the MTA."""

    row: int
    message_key: bytes
    attempt: int  # from 1
    conn: str
    t_ms: int


class Deferral(NamedTuple):
    """``D``: a 4xx, or code 0 when the MTA's records showed that an interrupted hand-over hadn't happened."""

    row: int
    code: int
    enhanced: str
    provider: str
    next_at_ms: int
    t_ms: int
    text: str  # without addresses


class Final(NamedTuple):
    """``O``: what became of the row. ``code`` is 0 where no reply is behind it."""

    row: int
    outcome: Outcome
    code: int
    enhanced: str
    queue_id: str
    conn: str
    variant: int
    provider: str
    t_ms: int
    text: str  # without addresses


class Amended(NamedTuple):
    """``A``: what became of the row after all, written by the centre into a kept ledger whose lease has ended: a
    message taken back out of the MTA's queue, or the truth about one that was unknown (docs/decisions/0609)."""

    row: int
    outcome: Outcome
    code: int
    enhanced: str
    queue_id: str
    conn: str
    variant: int
    provider: str
    t_ms: int
    text: str  # without addresses


class Closed(NamedTuple):
    """``E``: the agent ended in order; written when all before it was synced, so nothing of it can be missing."""

    incarnation: int
    t_ms: int


Record: TypeAlias = Header | Opened | Connected | Intent | Deferral | Final | Amended | Closed

# Outcomes that may still change, and into what. All others stand.
AMENDABLE: Mapping[Outcome, frozenset[Outcome]] = {
    Outcome.INJECTED: frozenset({Outcome.CANCELLED, Outcome.UNKNOWN}),
    Outcome.UNKNOWN: frozenset(Outcome) - {Outcome.UNKNOWN},
}


class LedgerDelta(NamedTuple):
    """Records from an offset on, and the offset to go on from. ``torn`` bytes at the end are not a whole line (yet)."""

    records: list[Record]
    next_offset: int
    torn: int = 0


def clean(text: str) -> str:
    """Text that fits a field: one line, no tab, at most 400 characters."""
    if not text.isprintable():
        text = _UNWRITABLE.sub(" ", text)
    return text[:_TEXT_CHARS].strip()


def encode(record: Record) -> bytes:
    """One line, newline included."""
    match record:
        case Intent(row, key, attempt, conn, t_ms):
            body = f"I\t{row}\t{key.hex()}\t{attempt}\t{conn}\t{t_ms}"
        case Final() | Amended():
            body = _outcome(record)
        case Deferral(row, code, enhanced, provider, next_at_ms, t_ms, text):
            body = f"D\t{row}\t{code}\t{clean(enhanced)}\t{clean(provider)}\t{next_at_ms}\t{t_ms}\t{clean(text)}"
        case Connected(conn, local_port, t_ms, log_inode, log_offset):
            body = f"C\t{conn}\t{local_port}\t{t_ms}\t{log_inode}\t{log_offset}"
        case Opened(incarnation, boot_id, pid, t_ms):
            body = f"S\t{incarnation}\t{clean(boot_id)}\t{pid}\t{t_ms}"
        case Closed(incarnation, t_ms):
            body = f"E\t{incarnation}\t{t_ms}"
        case Header(job_id, shard, phase, epoch, first_row):
            body = f"H\t{VERSION}\t{clean(job_id)}\t{shard}\t{phase}\t{epoch}\t{first_row}"
    return frame(body)


def _outcome(record: Final | Amended) -> str:
    row, outcome, code, enhanced, queue_id, conn, variant, provider, t_ms, text = record
    return (
        f"{'O' if isinstance(record, Final) else 'A'}\t{row}\t{outcome.value}\t{code}\t{clean(enhanced)}"
        f"\t{clean(queue_id)}\t{conn}\t{variant}\t{clean(provider)}\t{t_ms}\t{clean(text)}"
    )


def frame(body: str) -> bytes:
    """A line that shows by itself whether it is whole: fields parted by tabs, their CRC, a newline."""
    raw = body.encode("utf-8", "replace")
    return b"%b\t%08x\n" % (raw, zlib.crc32(raw))


def unframe(line: bytes) -> list[str]:
    """The fields of such a line, given without its newline.

    Raises:
        ValueError: the checksum is wrong.
    """
    body, tab, crc = line.rpartition(b"\t")
    if not tab or len(crc) != 8 or int(crc, 16) != zlib.crc32(body):
        raise ValueError("the checksum is wrong")
    return body.decode().split("\t")


def _header(field: list[str]) -> Header:
    if int(field[1]) != VERSION:
        raise ValueError(f"version {field[1]} is not known here")
    return Header(field[2], int(field[3]), int(field[4]), int(field[5]), int(field[6]))


def _key(text: str) -> bytes:
    key = bytes.fromhex(text)
    if len(key) != 16:
        raise ValueError("a message key has 16 bytes")
    return key


_DECODE: dict[str, tuple[int, Callable[[list[str]], Record]]] = {
    "H": (7, _header),
    "S": (5, lambda f: Opened(int(f[1]), f[2], int(f[3]), int(f[4]))),
    "C": (6, lambda f: Connected(f[1], int(f[2]), int(f[3]), int(f[4]), int(f[5]))),
    "E": (3, lambda f: Closed(int(f[1]), int(f[2]))),
    "I": (6, lambda f: Intent(int(f[1]), _key(f[2]), int(f[3]), f[4], int(f[5]))),
    "D": (8, lambda f: Deferral(int(f[1]), int(f[2]), f[3], f[4], int(f[5]), int(f[6]), f[7])),
    "O": (
        11,
        lambda f: Final(int(f[1]), Outcome(f[2]), int(f[3]), f[4], f[5], f[6], int(f[7]), f[8], int(f[9]), f[10]),
    ),
    "A": (
        11,
        lambda f: Amended(int(f[1]), Outcome(f[2]), int(f[3]), f[4], f[5], f[6], int(f[7]), f[8], int(f[9]), f[10]),
    ),
}


def decode(line: bytes) -> Record:
    """The record in one line, given without its newline.

    Raises:
        ValueError: a wrong CRC, an unknown kind or a wrong number of fields.
    """
    field = unframe(line)
    count, build = _DECODE.get(field[0], (0, None))
    if build is None or len(field) != count:
        raise ValueError("not a record of this version")
    return build(field)


def read_ledger(path: Path, offset: int = 0, limit: int | None = None) -> LedgerDelta:
    """The whole records from ``offset`` on, at most about ``limit`` bytes of them (all by default).

    Safe beside a running writer: a torn end is left for the next call.

    Raises:
        LedgerError: a damaged line, with its byte; or the file is shorter than ``offset``.
        FileNotFoundError: there is no such ledger yet.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if offset > size:
            raise LedgerError(f"{path}: {size} bytes, but {offset} were read before: the ledger has been cut")
        file.seek(offset)
        data = file.read(-1 if limit is None else max(limit, 64 * 1024))
    end = data.rfind(b"\n") + 1
    records: list[Record] = []
    at = offset
    for line in data[:end].split(b"\n")[:-1]:
        try:
            records.append(decode(line))
        except ValueError as error:
            raise LedgerError(
                f"{path}, byte {at}: damaged ledger line ({error}); restore the file or settle by hand"
            ) from None
        at += len(line) + 1
    return LedgerDelta(records, at, len(data) - end)


class InDoubt(NamedTuple):
    """A row that was perhaps handed over: its last intent, and where to look for the truth."""

    row: int
    message_key: bytes
    attempt: int
    conn: str
    local_port: int
    log_inode: int
    log_offset: int
    boot_id: str
    position_ms: int = 0  # when the MTA's log stood there


class Waiting(NamedTuple):
    """A deferred row."""

    row: int
    attempts: int  # made so far
    next_at_ms: int


class LedgerState:
    """The fold of a ledger's records: for each row its final outcome, or doubt, or deferral. Rows never named are new.

    ``apply`` keeps the promise *one outcome a row*: a record that contradicts it is a ``LedgerError``.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.opened: dict[int, Opened] = {}
        self.connections: dict[str, Connected] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.deferred: dict[int, Waiting] = {}
        self._intents: dict[int, Intent] = {}
        self.unclosed: Opened | None = None  # the newest agent, unless it ended in order

    @classmethod
    def of(cls, records: Iterable[Record], name: str = "ledger") -> "LedgerState":
        state = cls()
        for record in records:
            state.apply(record, name)
        return state

    @classmethod
    def load(cls, path: Path) -> "LedgerState":
        """Fold a whole file; a missing one is an empty ledger."""
        state, offset = cls(), 0
        while path.exists():
            delta = read_ledger(path, offset, READ_BYTES)
            for record in delta.records:
                state.apply(record, str(path))
            if not delta.records:
                break
            offset = delta.next_offset
        return state

    @property
    def incarnation(self) -> int:
        """The newest agent's number, 0 when none has opened the ledger."""
        return max(self.opened, default=0)

    @property
    def in_doubt(self) -> list[InDoubt]:
        """Rows whose last intent has no deferral or outcome after it, in the order of their intents."""
        return [self._doubt(intent) for intent in self._intents.values()]

    def attempts(self, row: int) -> int:
        """Hand-overs of the row that are known to have ended without an outcome."""
        waiting = self.deferred.get(row)
        return waiting.attempts if waiting is not None else 0

    def apply(self, record: Record, name: str = "ledger") -> None:
        """Fold one more record.

        Raises:
            LedgerError: a row is given a second outcome, or touched after its outcome; two headers; no header.
        """
        if isinstance(record, Header):
            if self.header is not None:
                raise LedgerError(f"{name}: a second header")
            self.header = record
            return
        if self.header is None:
            raise LedgerError(f"{name}: no header")
        match record:
            case Intent(row):
                self._untouched(row, name)
                self._intents.pop(row, None)
                self._intents[row] = record
            case Deferral(row, _, _, _, next_at_ms):
                self._untouched(row, name)
                self._intents.pop(row, None)
                self.deferred[row] = Waiting(row, self.attempts(row) + 1, next_at_ms)
            case Final(row, outcome):
                self._untouched(row, name)
                self._intents.pop(row, None)
                self.deferred.pop(row, None)
                self.outcomes[row] = outcome
            case Amended(row, outcome):
                if outcome not in AMENDABLE.get(self.outcomes.get(row, outcome), ()):
                    was = self.outcomes.get(row, "without an outcome")
                    raise LedgerError(f"{name}: row {row} is {was} and can't become {outcome}")
                self.outcomes[row] = outcome
            case Connected(conn):
                self.connections[conn] = record
            case Opened(incarnation):
                self.opened[incarnation] = self.unclosed = record
            case Closed():
                self.unclosed = None

    def _untouched(self, row: int, name: str) -> None:
        if row in self.outcomes:
            raise LedgerError(f"{name}: row {row} is {self.outcomes[row]} and can't get another record")

    def _doubt(self, intent: Intent) -> InDoubt:
        connected = self.connections.get(intent.conn)
        opened = self.opened.get(int(intent.conn.partition(".")[0] or 0))
        return InDoubt(
            intent.row,
            intent.message_key,
            intent.attempt,
            intent.conn,
            connected.local_port if connected else 0,
            connected.log_inode if connected else 0,
            connected.log_offset if connected else 0,
            opened.boot_id if opened else "",
            connected.t_ms if connected else 0,
        )


class LedgerWriter:
    """The only writer of one ledger file.

    ``add`` gathers records, ``flush`` gives them to the kernel in one ``write(2)``; what follows from an intent is done
    after ``flush`` returned. ``sync`` (any thread) makes what was flushed survive a power loss.
    """

    def __init__(self, path: Path, handle: int, state: LedgerState, size: int, opened: Opened) -> None:
        self.path = path
        self.state = state  # as found on opening; the owner goes on from there
        self._opened = opened
        self._handle = handle
        self._size = size
        self._pending: list[bytes] = []
        self._unsynced = False
        self._closed = False
        self._lock = threading.Lock()  # between a sync by a helper thread and the end

    @classmethod
    def open(
        cls,
        path: Path,
        header: Header,
        opened: Opened,
        missing: Callable[[LedgerState, Opened], Iterable[Record]] = lambda state, before: (),
    ) -> "LedgerWriter":
        """Open or make the ledger, cut a torn last line off, and note the new agent (``S``).

        Args:
            missing: what to add when the last agent, of an earlier boot, didn't close the ledger: records of it that
                may not have reached the disk. They come before ``S``, so whoever is killed here finds the same again.

        Raises:
            LedgerError: the file belongs to another lease, or is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            state = LedgerState()
            delta = read_ledger(path)
            for record in delta.records:
                state.apply(record, str(path))
            if delta.torn:
                os.ftruncate(handle, delta.next_offset)
            if state.header is not None and state.header != header:
                raise LedgerError(f"{path} is the ledger of {state.header}, not of {header}; move it away")
            writer = cls(path, handle, state, delta.next_offset, opened)
            if state.header is None:
                writer.add(header)
                state.apply(header)
            before = state.unclosed
            if before is not None and before.boot_id != opened.boot_id:
                for record in missing(state, before):
                    writer.add(record)
                    state.apply(record, str(path))
            writer.add(opened)
            state.apply(opened)
            writer.flush()
            writer.sync()
            if delta.next_offset == 0:
                _sync_folder(path.parent)
        except BaseException:
            os.close(handle)
            raise
        return writer

    def forget(self) -> None:
        """Drop the state found on opening, once its owner has taken it over."""
        self.state = LedgerState()

    @property
    def unsynced(self) -> bool:
        return self._unsynced

    def add(self, record: Record) -> None:
        """Gather a record for the next ``flush``."""
        self._pending.append(encode(record))

    def flush(self) -> None:
        """Write what was gathered. After an error nothing of it is in the file, and the ledger must not be used again.

        Raises:
            LedgerError: the disk is full or failing.
        """
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        try:
            written = os.write(self._handle, data)
            while written < len(data):  # a short write: the disk is nearly full, or a signal came
                written += os.write(self._handle, data[written:])
        except OSError as error:
            os.ftruncate(self._handle, self._size)
            raise LedgerError(
                f"{self.path} can't be written: {error.strerror}; free some room, then start again"
            ) from error
        self._size += len(data)
        self._unsynced = True

    def sync(self) -> None:
        """``fdatasync``; called from a helper thread, one at a time."""
        with self._lock:
            if self._closed:
                return
            self._unsynced = False
            try:
                os.fdatasync(self._handle)
            except OSError as error:
                raise LedgerError(f"{self.path} can't be synced: {error.strerror}") from error

    def close(self) -> None:
        """Flush, sync, note the end (``E``), close."""
        if self._closed:
            return
        try:
            self.flush()
            self.sync()
            self.add(Closed(self._opened.incarnation, round(time.time() * 1000)))
            self.flush()
            self.sync()
        finally:
            with self._lock:
                self._closed = True
                os.close(self._handle)


def last_incarnation(folder: Path) -> int:
    """The highest agent number in any ledger below ``folder``, 0 when there is none.

    Looks for the last ``S`` line of each file instead of decoding all of it: 250 MB take a tenth of a second.
    """
    highest = 0
    for path in folder.glob("*.ledger"):
        for line in _lines_backwards(path, b"S\t"):
            try:
                record = decode(line)
            except ValueError:
                continue
            if isinstance(record, Opened):
                highest = max(highest, record.incarnation)
                break
    return highest


def _lines_backwards(path: Path, start: bytes) -> Iterator[bytes]:
    """Whole lines that begin with ``start``, last one first; the file's first line is never one (it is the header)."""
    data = path.read_bytes()
    end = data.rfind(b"\n")
    at = data.rfind(b"\n" + start, 0, end + 1)
    while at >= 0:
        yield data[at + 1 : data.index(b"\n", at + 1)]
        at = data.rfind(b"\n" + start, 0, at + 1)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
