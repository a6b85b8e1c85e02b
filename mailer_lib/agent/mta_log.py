"""Reading an MTA's main log in Exim's form, rotated files included, from a recorded position on.

A position is (inode, offset, time). The inode alone proves nothing: once a rotated log is compressed or dropped, a new
file may get its number. So the next older log must have been finished by the recorded time. Where that fails, reading
begins after the newest log that was finished before that time. Logs must be rotated by renaming, as Debian does;
``copytruncate`` loses lines.
"""

import calendar
import gzip
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mailer_lib.agent.ledger import InDoubt

KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", re.IGNORECASE)  # a message key, hex

_CHUNK = 1 << 20
_LINE_BYTES = 8192
_SLACK_S = 2.0  # stamps may lack their fraction, and file systems round
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(\d+))?(?: ([+-])(\d\d)(\d\d))?")
# A line about a message in the MTA's hands: time, perhaps a zone and a pid, queue id, then what happened to it.
# Refusals ("… F=<…> rejected after DATA") have no such mark.
_LINE = re.compile(
    rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [+-]\d{4})?(?: \[\d+\])? (\S+) (?:<=|=>|->|>>|\*>|\*\*|==) (.*)$"
)
# What ends a message in the MTA's hands: delivered, bounced, or taken out of the queue.
_FATE = re.compile(
    rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: [+-]\d{4})?(?: \[\d+\])? (\S+) (=>|->|>>|\*\*|removed by )"
)
_SUBJECT = re.compile(rb' T="(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"\.(\d+)(?:\.gz)?")


class _MovedError(RuntimeError):
    """A file was rotated between being listed and being read."""


@dataclass(frozen=True)
class _LogFile:
    path: Path
    number: int  # 0 is the one being written
    inode: int
    size: int
    written_s: float  # last; renaming and compressing keep it

    @property
    def plain(self) -> bool:
        return self.path.suffix != ".gz"

    def open(self) -> BinaryIO:
        file = self.path.open("rb")
        if os.fstat(file.fileno()).st_ino != self.inode:
            file.close()
            raise _MovedError
        return file if self.plain else gzip.GzipFile(fileobj=file)  # type: ignore[return-value]


def search_logs(
    log: Path | None, doubts: Sequence[InDoubt], wanted: Mapping[bytes, bytes], found: dict[bytes, str]
) -> dict[bytes, str]:
    """Look for message keys since the doubts' positions.

    ``wanted`` maps hex to key; ``found`` is given the queue id of each key that is seen. Returns why absence proves
    nothing, a sentence for each key to which that applies.
    """
    if log is None:
        return dict.fromkeys((doubt.message_key for doubt in doubts), "the MTA's log isn't configured")
    for _ in range(3):
        try:
            return _search(log, doubts, wanted, found)
        except _MovedError:
            continue
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            why = f"the MTA's log {log} can't be read: {getattr(error, 'strerror', None) or error}"
            return dict.fromkeys((doubt.message_key for doubt in doubts), why)
    return dict.fromkeys((doubt.message_key for doubt in doubts), f"the MTA's log {log} is rotated all the time")


def search_removed(log: Path, queue_ids: Collection[str], since_s: float) -> set[str]:
    """Which of these messages the MTA says were removed from its queue, without a delivery before or after it.

    Args:
        since_s: Unix time before which none of them was taken: logs that were finished by then aren't read.

    Raises:
        OSError: the log can't be read, or is rotated all the time.
    """
    for _ in range(3):
        try:
            files = [file for file in _files(log) if file.written_s >= since_s - _SLACK_S]
            removed, ended = set[str](), set[str]()
            for file in files:
                with file.open() as opened:
                    for line in _lines(opened):
                        match = _FATE.match(line)
                        if match is not None and (queue_id := match[1].decode("ascii", "replace")) in queue_ids:
                            (removed if match[2] == b"removed by " else ended).add(queue_id)
            return removed - ended
        except _MovedError:
            continue
    raise OSError(f"the MTA's log {log} is rotated all the time")


def _search(
    log: Path, doubts: Sequence[InDoubt], wanted: Mapping[bytes, bytes], found: dict[bytes, str]
) -> dict[bytes, str]:
    files = _files(log)
    chain = _unbroken(files)
    start = (len(files), 0)  # index of the oldest file that is read, and where in it
    gaps: dict[bytes, str] = {}
    for doubt in doubts:
        place = _place(doubt, files, chain)
        if isinstance(place, str):
            gaps[doubt.message_key] = place
            place = (0, 0)  # read it all: presence proves something anyway
        start = min(start, place)
    for index in range(start[0], len(files)):
        _scan(files[index], start[1] if index == start[0] else 0, wanted, found)
    return gaps


def _files(log: Path) -> list[_LogFile]:
    """The log and its rotated predecessors, oldest first; of two with one number the one that isn't compressed."""
    by_number: dict[int, _LogFile] = {}
    for path in sorted(log.parent.glob(f"{log.name}*"), reverse=True):  # "….1.gz" before "….1"
        rest = path.name[len(log.name) :]
        match = _NAME.fullmatch(rest)
        if rest and match is None:
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise _MovedError from None
        number = int(match[1]) if match else 0
        by_number[number] = _LogFile(path, number, stat.st_ino, stat.st_size, stat.st_mtime)
    return [by_number[number] for number in sorted(by_number, reverse=True)]


def _unbroken(files: Sequence[_LogFile]) -> list[_LogFile]:
    """The files from the newest back to the first number that is missing, oldest first."""
    chain: list[_LogFile] = []
    for file in reversed(files):
        if file.number != len(chain):
            break
        chain.insert(0, file)
    return chain


def _place(doubt: InDoubt, files: Sequence[_LogFile], chain: Sequence[_LogFile]) -> tuple[int, int] | str:
    """(index in ``files``, offset) from which everything since the position can be read; or why it can't."""
    if not chain:
        return "the MTA's log isn't there (any more)"
    position_s = doubt.position_ms / 1000
    same = next((file for file in chain if file.plain and file.inode == doubt.log_inode), None)
    if same is not None:
        if same.number == 0 and same.size < doubt.log_offset:
            return f"the MTA's log {same.path} is shorter than it was: it has been cut"
        older = next((file for file in files if file.number == same.number + 1), None)
        if _stood_there(same, older, doubt.log_offset, position_s):
            return files.index(same), doubt.log_offset
    finished = [file for file in chain if file.written_s < position_s - _SLACK_S]
    if finished:
        return files.index(finished[-1]) + 1, 0
    if len(files) == 1:
        return 0, 0  # it was never rotated
    if len(chain) < len(files):
        return f"{files[-1].path.name}.{len(chain)} is missing beside the MTA's log"
    return f"the logs beside {files[-1].path} don't reach back to the hand-over"


def _stood_there(file: _LogFile, older: _LogFile | None, offset: int, position_s: float) -> bool:
    """Whether this is the very file in which the position was taken.

    Then the next older one was finished by that time. Where there is none, the line that ends at the offset must not be
    younger than the position.
    """
    if not 0 < offset <= file.size:
        return False
    if older is not None and older.written_s > position_s + _SLACK_S:
        return False
    back = min(offset, _LINE_BYTES)
    with file.open() as opened:
        opened.seek(offset - back)
        before = opened.read(back)
    if not before.endswith(b"\n"):
        return False
    if older is not None:
        return True
    written = _stamp(before[:-1].rpartition(b"\n")[2])
    return written is not None and written <= position_s + _SLACK_S


def _stamp(line: bytes) -> float | None:
    """Unix seconds of a line's time stamp, local time unless it has a zone; None: there is none."""
    match = _STAMP.match(line)
    if match is None:
        return None
    try:
        parts = time.strptime(match[1].decode(), "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return None
    fraction = float(b"0." + (match[2] or b"0"))
    if match[3] is None:
        return time.mktime((*parts[:8], -1)) + fraction
    zone_s = (int(match[4]) * 60 + int(match[5])) * 60 * (1 if match[3] == b"+" else -1)
    return calendar.timegm(parts) - zone_s + fraction


def _scan(file: _LogFile, offset: int, wanted: Mapping[bytes, bytes], found: dict[bytes, str]) -> None:
    with file.open() as opened:
        opened.seek(offset)
        for line in _lines(opened):
            match = _LINE.match(line)
            if match is None:
                continue
            for hexkey in KEY.findall(_SUBJECT.sub(b"", match[2])):
                key = wanted.get(hexkey.lower())
                if key is not None:
                    found.setdefault(key, match[1].decode("ascii", "replace"))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    while chunk := file.read(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
