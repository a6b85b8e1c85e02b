"""A customer's CSV file, record by record, whatever is in it: bounded memory, no record lost, each with its line.

What a record can't be read as comes out too, as ``BadRecord`` with its raw text: bytes that aren't in the encoding,
an open quote that would swallow the rest of the file, a line without end. The reader goes on with the next line.
"""

import codecs
import csv
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MAX_LINE_CHARS = 65_536
MAX_RECORD_LINES = 50  # quoted line breaks are rare and few; more means that a quote was never closed
DELIMITERS = ",;\t|"
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SURROGATE = re.compile("[\ud800-\udfff]")


class CsvError(ValueError):
    """The file as a whole can't be read; the sentence names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    line: int  # of its first line, from 1
    cells: list[str]


@dataclass(frozen=True, slots=True)
class BadRecord:
    line: int
    reason: str
    raw: str
    cells: list[str]  # as far as they could be told


class _EndlessQuoteError(Exception):
    pass


class CsvSource:
    """An open file: ``header``, then iterate. ``bytes_read`` and ``size`` tell how far it is."""

    def __init__(self, path: Path, file: TextIO, encoding: str, delimiter: str | None) -> None:
        self.path = path
        self.encoding = encoding
        self.size = path.stat().st_size
        self._file = file
        self._line = 0  # number of the last line read
        self._pending: deque[str] = deque()  # lines to be read again
        self._taken: list[str] = []  # lines of the record being read
        self._overlong: list[BadRecord] = []
        self.delimiter = delimiter or self._sniff()
        self._reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
        self.header = self._read_header()

    @property
    def bytes_read(self) -> int:
        return self._file.buffer.tell()

    def __iter__(self) -> Iterator[Record | BadRecord]:
        while True:
            item = self._next()
            if self._overlong:
                yield from self._overlong
                self._overlong.clear()
            if item is None:
                return
            if isinstance(item, BadRecord) or any(item.cells):
                yield item

    def _next(self) -> Record | BadRecord | None:
        self._taken = []
        try:
            cells = next(self._reader)
        except StopIteration:
            return None
        except _EndlessQuoteError:
            return self._give_up("a quote is opened in this line and never closed")
        except csv.Error as error:
            open_quote = "unexpected end" in str(error)
            reason = "a quote is opened in this line and never closed" if open_quote else f"it is not CSV: {error}"
            return self._give_up(reason)
        first = self._line - len(self._taken) + 1
        if not self.encoding.startswith("latin") and any(map(_has_surrogate, self._taken)):
            return BadRecord(first, self._wrong_bytes(), "".join(self._taken), cells)
        return Record(first, cells)

    def _give_up(self, reason: str) -> BadRecord:
        """Reject the record's first line only; the others are read again, each by itself."""
        first = self._line - len(self._taken) + 1
        raw, *rest = self._taken
        self._pending.extendleft(reversed(rest))
        self._line = first
        self._reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
        cells = next(csv.reader([raw], delimiter=self.delimiter), [])
        return BadRecord(first, reason, raw, cells)

    def _lines(self) -> Iterator[str]:
        while True:
            line = self._pending.popleft() if self._pending else self._read_line()
            if line is None:
                return
            if len(self._taken) >= MAX_RECORD_LINES:
                self._pending.appendleft(line)
                raise _EndlessQuoteError
            self._line += 1
            self._taken.append(line)
            yield line

    def _read_line(self) -> str | None:
        while True:
            line = self._file.readline(MAX_LINE_CHARS)
            if not line:
                return None
            if len(line) < MAX_LINE_CHARS or line[-1] in "\r\n":
                return line
            head = line[:200]
            while line and line[-1] not in "\r\n":
                line = self._file.readline(MAX_LINE_CHARS)
            self._line += 1
            reason = f"the line is longer than {MAX_LINE_CHARS:,} characters; here are its first 200"
            self._overlong.append(BadRecord(self._line, reason, head, []))

    def _wrong_bytes(self) -> str:
        hint = "; if the whole file is like this, say --encoding latin-1" if self.encoding.startswith("utf-8") else ""
        return f"there are bytes in it that are not {self.encoding.removesuffix('-sig')}{hint}"

    def _sniff(self) -> str:
        """The delimiter that is most frequent in the first line, outside quotes."""
        line = ""
        while not line.strip():
            read = self._read_line()
            if read is None:
                raise CsvError(f"{self.path} is empty: it needs a header line and a row for each contact")
            self._pending.append(read)
            line = read
        bare = re.sub(r'"[^"]*"', "", line)
        return max(DELIMITERS, key=bare.count)

    def _read_header(self) -> list[str]:
        for item in self:
            if isinstance(item, BadRecord):
                raise CsvError(f"{self.path}, line {item.line}: the header can't be read: {item.reason}")
            return [cell.strip() for cell in item.cells]
        raise CsvError(f"{self.path} is empty: it needs a header line and a row for each contact")


def _has_surrogate(line: str) -> bool:
    return not line.isascii() and _SURROGATE.search(line) is not None


@contextmanager
def open_csv(path: Path, encoding: str = "utf-8", delimiter: str | None = None) -> Iterator[CsvSource]:
    """Open a CSV file with a header line. UTF-8 may begin with a byte order mark.

    Raises:
        CsvError: no such encoding or delimiter, an empty file, an unreadable header, UTF-16 that is not asked for.
        OSError: the file can't be opened.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise CsvError(f"the delimiter must be one character, not {delimiter!r}")
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise CsvError(f"there is no encoding {encoding!r}; try utf-8, latin-1, windows-1252 or utf-16") from None
    with path.open("rb") as probe:
        start = probe.read(3)
    for bom, marked in _BOMS:
        if start.startswith(bom) and marked.replace("-sig", "") != name:
            raise CsvError(
                f"{path} is written in {marked.replace('-sig', '')}: say --encoding {marked.replace('-sig', '')}"
            )
    name = {"utf-8": "utf-8-sig", "iso8859-1": "latin-1"}.get(name, name)
    errors = "surrogateescape" if "16" not in name and "32" not in name else "replace"
    try:
        with path.open(encoding=name, errors=errors, newline="") as file:
            yield CsvSource(path, file, name, delimiter)
    except UnicodeError as error:
        raise CsvError(f"{path} is not {encoding}: {error}") from None
