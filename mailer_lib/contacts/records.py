"""What a file of contacts is to the import, whatever its format: a header, and records as texts, each with its line."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


class SourceError(ValueError):
    """The file as a whole can't be read; the sentence names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    line: int  # of its first line, from 1; of Parquet the number of the row
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Rows:
    """Sound records of consecutive lines. Their numbers of cells may still differ from the header's."""

    first_line: int
    cells: list[list[str]]


@dataclass(frozen=True, slots=True)
class BadRecord:
    line: int
    reason: str
    raw: str
    cells: list[str]  # as far as they could be told


class RecordSource(Protocol):
    """An open file. ``bytes_read`` of ``size`` bytes are behind; ``encoding`` and ``delimiter`` suit its rejects."""

    header: list[str]
    encoding: str
    delimiter: str
    size: int

    @property
    def bytes_read(self) -> int: ...

    def blocks(self) -> Iterator[Rows | BadRecord]:
        """All records in the order of the file, once."""
        ...


def each(blocks: Iterable[Rows | BadRecord]) -> Iterator[Record | BadRecord]:
    """The records of blocks, one by one."""
    for block in blocks:
        if isinstance(block, BadRecord):
            yield block
        else:
            for line, cells in enumerate(block.cells, block.first_line):
                yield Record(line, cells)
