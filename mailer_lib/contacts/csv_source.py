"""A customer's CSV file, record by record, whatever is in it: bounded memory, no record lost, each with its line.

What a record can't be read as comes out too, as ``BadRecord`` with its raw text: bytes that aren't in the encoding,
an open quote that would swallow the rest of the file, a line without end. The reader goes on with the next line.

Most blocks of a file hold nothing of the kind: one record a line, all bytes right. They are split as a whole;
any other block is read record by record.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from mailer_lib.contacts.compressed import open_bytes
from mailer_lib.contacts.records import BadRecord, Record, Rows, SourceError, each

MAX_LINE_CHARS = 65_536
MAX_RECORD_LINES = 50  # quoted line breaks are rare and few; more means that a quote was never closed
DELIMITERS = ",;\t|"
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_SURROGATE = re.compile("[\ud800-\udfff]")
BLOCK_CHARS = 262_144  # 2,000 to 3,000 records; larger ones gain nothing


class CsvError(SourceError):
    """The file as a whole can't be read; the sentence names the file and says what to do."""


class _EndlessQuoteError(Exception):
    pass


class CsvSource:
    """An open file: ``header``, then ``blocks`` (or iterate over its records)."""

    def __init__(self, path: Path, file: TextIO, raw: BinaryIO, encoding: str, delimiter: str | None) -> None:
        self.path = path
        self.encoding = encoding
        self.size = path.stat().st_size
        self._raw = raw
        self.block_chars = BLOCK_CHARS
        self._file = file
        self._line = 0  # number of the last line read
        self._again: list[TextIO] = []  # text to be read again before the file goes on, the first at the end
        self._taken: list[str] = []  # lines of the record being read
        self._overlong: list[BadRecord] = []
        self.delimiter = delimiter or self._sniff()
        self._reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
        self.header = self._read_header()

    @property
    def bytes_read(self) -> int:
        return self._raw.tell()

    def __iter__(self) -> Iterator[Record | BadRecord]:
        return each(self.blocks())

    def blocks(self) -> Iterator[Rows | BadRecord]:
        """All that is left of the file, in its order; lines without any content are left out."""
        while True:
            if self._again:
                yield from self._read_again()
            text = self._read_block()
            if not text:
                return
            rows = self._split(text)
            if rows is not None:
                yield Rows(self._line + 1, rows)
                self._line += len(rows)
            else:
                self._again.append(io.StringIO(text, newline=""))

    def one_by_one(self) -> Iterator[Rows | BadRecord]:
        """The same, record by record: the exact way, which ``blocks`` must equal."""
        while True:
            item = self._next()
            yield from self._overlong
            self._overlong.clear()
            if item is None:
                return
            if isinstance(item, BadRecord):
                yield item
            elif any(item.cells):
                yield Rows(item.line, [item.cells])

    def _read_again(self) -> Iterator[Rows | BadRecord]:
        """The records of the text to be read again, and of what they run on into."""
        for item in self.one_by_one():
            yield item
            if not self._again:
                return

    def _read_block(self) -> str:
        """Whole lines, but for an overlong one at its end."""
        text = self._file.read(self.block_chars)
        if text and text[-1] != "\n":
            text += self._file.readline(MAX_LINE_CHARS)
        return text

    def _split(self, text: str) -> list[list[str]] | None:
        """The block's records; None when it isn't one sound record with content for each line."""
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        lines = text.removesuffix("\n").split("\n")
        if "\r" in text or (not text.isascii() and _SURROGATE.search(text)) or max(map(len, lines)) >= MAX_LINE_CHARS:
            return None
        if '"' not in text:
            delimiter = self.delimiter
            rows = [line.split(delimiter) for line in lines]
        else:
            try:
                rows = list(csv.reader(lines, delimiter=self.delimiter, strict=True))
            except csv.Error:
                return None
        return rows if len(rows) == len(lines) and all(map(any, rows)) else None

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
        if rest:
            self._again.append(io.StringIO("".join(rest), newline=""))
        self._line = first
        self._reader = csv.reader(self._lines(), delimiter=self.delimiter, strict=True)
        cells = next(csv.reader([raw], delimiter=self.delimiter), [])
        return BadRecord(first, reason, raw, cells)

    def _lines(self) -> Iterator[str]:
        while True:
            line = self._read_line()
            if line is None:
                return
            if len(self._taken) >= MAX_RECORD_LINES:
                self._again.append(io.StringIO(line, newline=""))
                raise _EndlessQuoteError
            self._line += 1
            self._taken.append(line)
            yield line

    def _read_line(self) -> str | None:
        while True:
            line = self._readline()
            if not line:
                return None
            if len(line) < MAX_LINE_CHARS or line[-1] in "\r\n":
                return line
            head = line[:200]
            while line and line[-1] not in "\r\n":
                line = self._readline()
            self._line += 1
            reason = f"the line is longer than {MAX_LINE_CHARS:,} characters; here are its first 200"
            self._overlong.append(BadRecord(self._line, reason, head, []))

    def _readline(self) -> str:
        while self._again:
            line = self._again[-1].readline(MAX_LINE_CHARS)
            if line and (line[-1] in "\r\n" or len(line) >= MAX_LINE_CHARS):
                return line
            self._again.pop()
            if line:  # the block ended in the middle of it
                rest = self._readline()
                if not rest:
                    return line
                self._again.append(io.StringIO(line + rest, newline=""))
        return self._file.readline(MAX_LINE_CHARS)

    def _wrong_bytes(self) -> str:
        hint = "; if the whole file is like this, say --encoding latin-1" if self.encoding.startswith("utf-8") else ""
        return f"there are bytes in it that are not {self.encoding.removesuffix('-sig')}{hint}"

    def _sniff(self) -> str:
        """The delimiter that is most frequent in the first line, outside quotes."""
        line, head = "", ""
        while not line.strip():
            read = self._read_line()
            if read is None:
                raise CsvError(f"{self.path} is empty: it needs a header line and a row for each contact")
            head += read
            line = read
        self._again.append(io.StringIO(head, newline=""))
        bare = re.sub(r'"[^"]*"', "", line)
        return max(DELIMITERS, key=bare.count)

    def _read_header(self) -> list[str]:
        for item in self.one_by_one():
            if isinstance(item, BadRecord):
                raise CsvError(f"{self.path}, line {item.line}: the header can't be read: {item.reason}")
            return [cell.strip() for cell in item.cells[0]]
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
    with open_bytes(path) as (content, raw):
        start = content.read(3)
        content.seek(0)
        for bom, marked in _BOMS:
            if start.startswith(bom) and marked.replace("-sig", "") != name:
                raise CsvError(
                    f"{path} is written in {marked.replace('-sig', '')}: say --encoding {marked.replace('-sig', '')}"
                )
        name = {"utf-8": "utf-8-sig", "iso8859-1": "latin-1"}.get(name, name)
        errors = "surrogateescape" if "16" not in name and "32" not in name else "replace"
        try:
            yield CsvSource(path, io.TextIOWrapper(content, name, errors, newline=""), raw, name, delimiter)
        except UnicodeError as error:
            raise CsvError(f"{path} is not {encoding}: {error}") from None
