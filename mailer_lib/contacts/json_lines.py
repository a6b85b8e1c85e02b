"""JSON Lines: an object a line, its keys are the columns. Plain, or compressed with gzip.

Numbers keep the digits they were written with, true and false become ``true`` and ``false``, null is an empty cell, and
a list of texts is joined as CSV has it (``attributes.ITEM_SEPARATOR``).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from mailer_lib.contacts.attributes import ITEM_SEPARATOR
from mailer_lib.contacts.compressed import open_bytes
from mailer_lib.contacts.csv_source import MAX_LINE_CHARS
from mailer_lib.contacts.records import BadRecord, Rows, SourceError

HEADER_LINES = 1000  # whose keys are the columns; a later line with another key is rejected, so that nothing is lost
_BLOCK_ROWS = 2000

_decode = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str).decode


class JsonLinesSource:
    """An open file: ``header``, then ``blocks``. Rejects of it are written as CSV."""

    encoding = "utf-8-sig"
    delimiter = ","

    def __init__(self, path: Path, content: BinaryIO, raw: BinaryIO) -> None:
        self.size = path.stat().st_size
        self._raw = raw
        self._content = content
        self._line = 0
        first = [item for _, item in zip(range(HEADER_LINES), self._objects(), strict=False)]
        self.header = list(dict.fromkeys(key for item in first if isinstance(item, tuple) for key in item[1]))
        if not first:
            raise SourceError(f"{path} is empty: it needs a JSON object a line")
        if not self.header:
            raise SourceError(f"{path}: its first {len(first)} lines hold no JSON object with a key")
        self._first = first
        self._places = {key: place for place, key in enumerate(self.header)}

    @property
    def bytes_read(self) -> int:
        return self._raw.tell()

    def blocks(self) -> Iterator[Rows | BadRecord]:
        """All records; lines without any content are left out."""
        rows: list[list[str]] = []
        first_line = 0
        for item in chain(self._first, self._objects()):
            cells = item if isinstance(item, BadRecord) else self._cells(*item)
            line = item.line if isinstance(item, BadRecord) else item[0]
            if rows and (isinstance(cells, BadRecord) or line != first_line + len(rows) or len(rows) >= _BLOCK_ROWS):
                yield Rows(first_line, rows)
                rows = []
            if isinstance(cells, BadRecord):
                yield cells
            else:
                first_line = first_line if rows else line
                rows.append(cells)
        if rows:
            yield Rows(first_line, rows)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]] | BadRecord]:
        while line := self._content.readline(MAX_LINE_CHARS):
            self._line += 1
            if len(line) >= MAX_LINE_CHARS and not line.endswith(b"\n"):
                head = line[:200].decode(errors="replace")
                while line and not line.endswith(b"\n"):
                    line = self._content.readline(MAX_LINE_CHARS)
                reason = f"the line is longer than {MAX_LINE_CHARS:,} bytes; here are its first 200"
                yield BadRecord(self._line, reason, head, [])
            elif line.strip():
                yield self._object(line)

    def _object(self, line: bytes) -> tuple[int, dict[str, Any]] | BadRecord:
        raw = line.decode("utf-8-sig", errors="surrogateescape").rstrip("\r\n")
        try:
            found = _decode(line.decode("utf-8-sig").strip())
        except UnicodeDecodeError:
            return BadRecord(self._line, "there are bytes in it that are not utf-8", raw, [])
        except (ValueError, RecursionError) as error:
            where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            return BadRecord(self._line, f"it is not JSON{where}", raw, [])
        if not isinstance(found, dict):
            return BadRecord(self._line, "it is not a JSON object, {…}", raw, [])
        return self._line, found

    def _cells(self, line: int, found: dict[str, Any]) -> list[str] | BadRecord:
        cells = [""] * len(self.header)
        for key, value in found.items():
            place = self._places.get(key)
            text = cell_text(value)
            if place is None:
                reason = f"the key {key!r} isn't in the file's first {HEADER_LINES:,} lines, whose keys are the columns"
                return BadRecord(line, reason, json.dumps(found, ensure_ascii=False), cells)
            if text is None:
                reason = f"{key!r} holds an object, a list in a list, or a text with the separator of lists"
                return BadRecord(line, reason, json.dumps(found, ensure_ascii=False), cells)
            cells[place] = text
        return cells


def cell_text(value: Any) -> str | None:
    """A JSON value as a cell of a CSV file would have it; None when it has no such form."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        texts = [cell_text(item) for item in value if not isinstance(item, list)]
        if len(texts) < len(value) or any(text is None or ITEM_SEPARATOR in text for text in texts):
            return None
        return ITEM_SEPARATOR.join(text for text in texts if text) or (ITEM_SEPARATOR if not value else "")
    return None


@contextmanager
def open_json_lines(path: Path) -> Iterator[JsonLinesSource]:
    """Open a file of JSON objects, one a line.

    Raises:
        SourceError: it is empty, holds no object, or is compressed and damaged.
        OSError: it can't be opened.
    """
    with open_bytes(path) as (content, raw):
        yield JsonLinesSource(path, content, raw)
