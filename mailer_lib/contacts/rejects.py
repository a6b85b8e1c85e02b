"""The rejects file: the rows that an import refused, in the original columns, with line, column and reason.

Mend it and import it: the three columns at the end are known and skipped. It holds personal data, so its mode is 0600,
and housekeeping removes it with the other rejects.
"""

import csv
import os
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

LINE, COLUMN, REASON, RAW = "rejected_line", "rejected_column", "rejected_reason", "rejected_raw"
REJECT_COLUMNS = (LINE, COLUMN, REASON, RAW)


def rejects_path(storage: Path, source: Path, at: datetime) -> Path:
    return storage / "rejects" / f"{source.stem}-{at:%Y%m%dT%H%M%S%f}.csv"


class RejectsWriter:
    """Opened by the first rejected row; an import without rejects leaves no file.

    ``kept_bytes``: an earlier run's file, of which so much stays.
    """

    def __init__(self, path: Path, header: list[str], encoding: str, delimiter: str, kept_bytes: int = 0) -> None:
        self.path = path
        self.size = kept_bytes
        self._header = [column for column in header if column not in REJECT_COLUMNS]
        self._kept = [index for index, column in enumerate(header) if column not in REJECT_COLUMNS]
        self._width = len(header)
        self._encoding = encoding
        self._delimiter = delimiter
        self._file: TextIO | None = None
        self._writer: Any = None

    def write(self, line: int, column: str, reason: str, cells: list[str], raw: str = "") -> None:
        """``raw`` is kept when the cells don't fit the header, so that nothing is lost."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)
            errors = "strict" if "16" in self._encoding or "32" in self._encoding else "surrogateescape"
            os.truncate(self.path, self.size)
            self._file = self.path.open("a", encoding=self._encoding, errors=errors, newline="")
            self._writer = csv.writer(self._file, delimiter=self._delimiter)
            if not self.size:
                self._writer.writerow([*self._header, *REJECT_COLUMNS])
        padded = cells[: self._width] + [""] * (self._width - len(cells))
        if len(cells) > self._width and not raw:
            raw = self._delimiter.join(cells)
        self._writer.writerow([*(padded[index] for index in self._kept), line, column, reason, raw.rstrip("\r\n")])

    def flush(self) -> None:
        """What was written so far is on the disk; ``size`` says how much."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
