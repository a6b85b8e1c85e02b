"""Reading what sinks took: every Maildir below a root, with an index of the headers that lists and searches need.

A file is read once; later looks only list the folders for new names. File names never change, so an index entry is good
for as long as its file is there.
"""

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path

HEAD_BYTES = 16 * 1024
FOLDERS = ("new", "cur")
_FIELD = re.compile(rb"\r?\n(?![ \t])")


class NoSuchMessageError(ValueError):
    """No message of this id is in any sink; the sentence says where was looked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in a list. ``id`` is the queue id, unique among the sinks of a root."""

    id: str
    sink: str
    path: Path
    taken_at: int  # Unix seconds
    size: int  # bytes of the file
    sender: str  # From, decoded
    recipient: str  # envelope
    subject: str
    message_id: str

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.taken_at, UTC)

    def matches(self, words: list[str]) -> bool:
        """Whether every word (lower case) is in sender, recipient, subject, sink or id."""
        text = f"{self.sender}\0{self.recipient}\0{self.subject}\0{self.sink}\0{self.id}\0{self.message_id}".lower()
        return all(word in text for word in words)


@dataclass
class _Folder:
    """One Maildir folder as last seen."""

    sink: str
    path: Path
    modified_ns: int = -1
    entries: dict[str, Entry] = field(default_factory=dict)  # by file name


class SinkStore:
    """The messages of all sinks below ``root``. Safe for threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[Path, _Folder] = {}
        self._sorted: list[Entry] = []
        self._lock = threading.Lock()

    def sinks(self) -> list[str]:
        """Names of the sinks that have a Maildir."""
        if not self.root.is_dir():
            return []
        return sorted(folder.name for folder in self.root.iterdir() if (folder / "Maildir" / "new").is_dir())

    def count(self) -> dict[str, int]:
        """Messages by sink; no file is opened."""
        return {
            name: sum(len(_names(self.root / name / "Maildir" / folder)) for folder in FOLDERS) for name in self.sinks()
        }

    def refresh(self, progress: Callable[[int, int | None], None] | None = None) -> None:
        """Take in what came, and forget what was deleted, since the last time."""
        with self._lock:
            wanted = {self.root / name / "Maildir" / folder: name for name in self.sinks() for folder in FOLDERS}
            changed = bool(self._folders.keys() - wanted.keys())
            self._folders = {path: self._folders.get(path) or _Folder(name, path) for path, name in wanted.items()}
            for folder in self._folders.values():
                changed = _refresh(folder, progress) or changed
            if changed:
                everything = [entry for folder in self._folders.values() for entry in folder.entries.values()]
                self._sorted = sorted(everything, key=lambda entry: (entry.taken_at, entry.id))

    def entries(self) -> list[Entry]:
        """As of the last ``refresh``, in the order of arrival."""
        return self._sorted

    def get(self, queue_id: str) -> Entry:
        """The message of a queue id.

        Raises:
            NoSuchMessageError: there is none.
        """
        if not re.fullmatch(r"[0-9A-Za-z-]{3,64}", queue_id):
            raise NoSuchMessageError(f"{queue_id[:70]!r} isn't the id of a message")
        for sink in self.sinks():
            for folder in FOLDERS:
                path = self.root / sink / "Maildir" / folder
                for name in _names(path):
                    if name.split(".")[1:2] == [queue_id]:
                        return read_entry(sink, path / name)
        raise NoSuchMessageError(f"no message {queue_id} in the sinks below {self.root} ({', '.join(self.sinks())})")


def _refresh(folder: _Folder, progress: Callable[[int, int | None], None] | None) -> bool:
    """Bring one folder up to date; whether anything changed."""
    try:
        modified_ns = folder.path.stat().st_mtime_ns
    except FileNotFoundError:
        modified_ns = 0
    # A folder's time has the kernel's tick as its grain: one that changed a moment ago may change again unseen.
    settled = time.time_ns() - modified_ns > 2_000_000_000
    if modified_ns == folder.modified_ns:
        return False
    names = _names(folder.path)
    new = names - folder.entries.keys()
    gone = folder.entries.keys() - names
    for name in gone:
        del folder.entries[name]
    for number, name in enumerate(new, 1):
        try:
            folder.entries[name] = read_entry(folder.sink, folder.path / name)
        except FileNotFoundError:
            continue
        if progress is not None and number % 500 == 0:
            progress(number, len(new))
    folder.modified_ns = modified_ns if settled else -1
    return bool(new or gone)


def _names(folder: Path) -> set[str]:
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}  # noqa: PTH208 - 20,000 Paths are slow
    except FileNotFoundError:
        return set()


def read_entry(sink: str, path: Path) -> Entry:
    """The index entry of one Maildir file; only its head is read."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = os.fstat(file.fileno()).st_size
        taken = os.fstat(file.fileno()).st_mtime
    fields = header_fields(head)
    name = path.name.split(".")
    return Entry(
        id=name[1] if len(name) > 1 else path.name,
        sink=sink,
        path=path,
        taken_at=int(name[0]) if name[0].isdecimal() else int(taken),
        size=size,
        sender=decoded(first(fields, "from")),
        recipient=decoded(first(fields, "envelope-to")),
        subject=decoded(first(fields, "subject")),
        message_id=decoded(first(fields, "message-id")).strip("<> "),
    )


def header_fields(message: bytes) -> list[tuple[str, bytes]]:
    """(lower-case name, raw unfolded value) of a message's header, top to bottom."""
    end = re.search(rb"\r?\n\r?\n", message)
    fields = []
    for line in _FIELD.split(message[: end.start()] if end else message):
        name, colon, value = line.partition(b":")
        if colon and name:
            fields.append((name.decode("ascii", "replace").strip().lower(), re.sub(rb"\r?\n", b"", value).strip()))
    return fields


def first(fields: list[tuple[str, bytes]], name: str) -> bytes:
    """The first value of a field; empty when there is none."""
    return next((value for field, value in fields if field == name), b"")


def decoded(value: bytes) -> str:
    """A header's value as a person reads it: encoded words (RFC 2047) decoded, whatever can't be read replaced."""
    text = value.decode("utf-8", "replace")
    if "=?" in text:
        try:
            text = str(make_header(decode_header(text)))
        except (HeaderParseError, LookupError, UnicodeError, ValueError):
            return text
    return text
