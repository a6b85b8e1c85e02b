"""Which format a file of contacts has, and what opens it."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from mailer_lib.contacts.csv_source import open_csv
from mailer_lib.contacts.json_lines import open_json_lines
from mailer_lib.contacts.records import RecordSource, SourceError


class FileFormat(StrEnum):
    """CSV and JSON Lines may be compressed with gzip."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    PARQUET = "parquet"


_BY_SUFFIX = {
    ".jsonl": FileFormat.JSON_LINES, ".ndjson": FileFormat.JSON_LINES, ".parquet": FileFormat.PARQUET,
}  # fmt: skip


def format_of(path: Path) -> FileFormat:
    """By the ending of the name, ``.gz`` left aside; CSV unless it says something else."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return _BY_SUFFIX.get(name.suffix.lower(), FileFormat.CSV)


@contextmanager
def open_source(
    path: Path, format_: FileFormat | None = None, encoding: str = "utf-8", delimiter: str | None = None
) -> Iterator[RecordSource]:
    """Open a file of contacts. ``format_`` None: by its name. Encoding and delimiter are of CSV.

    Raises:
        SourceError: it can't be read as that format; the sentence says what to do.
        OSError: it can't be opened.
    """
    found = format_ or format_of(path)
    if found is not FileFormat.CSV and (encoding != "utf-8" or delimiter is not None):
        raise SourceError(f"{path} is {found}: encoding and delimiter are of CSV files")
    if found is FileFormat.JSON_LINES:
        with open_json_lines(path) as lines:
            yield lines
    elif found is FileFormat.PARQUET:
        from mailer_lib.contacts.parquet_source import open_parquet  # Arrow takes 60 MB

        with open_parquet(path) as rows:
            yield rows
    else:
        with open_csv(path, encoding, delimiter) as text:
            yield text
