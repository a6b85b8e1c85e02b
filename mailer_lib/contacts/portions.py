"""From the blocks of a file to the portions that a transaction stores: which rows are plain, exact, rejected. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mailer_lib.contacts.drafts import Drafts, Portion
from mailer_lib.contacts.plain_rows import PlainReader
from mailer_lib.contacts.records import BadRecord, Rows
from mailer_lib.contacts.rows import ParsedRow, RowParser, RowProblemError


@dataclass(slots=True)
class Chunk:
    """Some records of a file, in its order."""

    lines: list[int] = field(default_factory=list)
    cells: list[list[str]] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)

    @property
    def records(self) -> int:
        return len(self.cells) + len(self.bad)


@dataclass(frozen=True, slots=True)
class Reject:
    line: int
    column: str
    reason: str
    cells: list[str]
    raw: str = ""


def without_first(blocks: Iterable[Rows | BadRecord], records: int) -> Iterator[Rows | BadRecord]:
    """The blocks without their first records: those that an earlier run has stored."""
    for block in blocks:
        held = 1 if isinstance(block, BadRecord) else len(block.cells)
        if records >= held:
            records -= held
        elif records and not isinstance(block, BadRecord):
            yield Rows(block.first_line + records, block.cells[records:])
            records = 0
        else:
            yield block


def chunks(blocks: Iterable[Rows | BadRecord], records: int) -> Iterator[Chunk]:
    """The file in chunks of that many records; the last one is smaller."""
    chunk = Chunk()
    for block in blocks:
        if isinstance(block, BadRecord):
            chunk.bad.append(block)
            if chunk.records >= records:
                yield chunk
                chunk = Chunk()
            continue
        start = 0
        while start < len(block.cells):
            end = min(start + records - chunk.records, len(block.cells))
            chunk.cells += block.cells[start:end]
            chunk.lines += range(block.first_line + start, block.first_line + end)
            start = end
            if chunk.records >= records:
                yield chunk
                chunk = Chunk()
    if chunk.records:
        yield chunk


class PortionReader:
    """``RowParser`` for all rows, the quick way for those that it is sure of."""

    def __init__(self, parser: RowParser, address_hash: Callable[[str], bytes]) -> None:
        self._parser = parser
        self._address_hash = address_hash
        self._plain = PlainReader(parser, address_hash)

    def read(self, chunk: Chunk) -> tuple[Portion, list[Reject]]:
        """What is to be stored of a chunk, and what can't be. Rows with one address are gathered into one draft."""
        plain = self._plain.read(chunk.cells)
        rejects = [Reject(bad.line, "", bad.reason, bad.cells, bad.raw) for bad in chunk.bad]
        exact: dict[int, tuple[bytes, ParsedRow]] = {}
        if len(plain.places) < len(chunk.cells):
            for place in sorted(set(range(len(chunk.cells))).difference(plain.places)):
                try:
                    row = self._parser.parse(chunk.cells[place])
                except RowProblemError as problem:
                    rejects.append(Reject(chunk.lines[place], problem.column, str(problem), chunk.cells[place]))
                else:
                    exact[place] = (self._address_hash(row.address.normalised), row)
        once = set(plain.keys)
        repeated = {key for key, _ in exact.values()} & once
        if len(once) < len(plain.keys):
            repeated.update(key for key, count in Counter(plain.keys).items() if count > 1)
        rows = len(plain.keys) + len(exact)
        if repeated:
            for place, key in zip(plain.places, plain.keys, strict=True):
                if key in repeated:
                    exact[place] = (key, self._parser.parse(chunk.cells[place]))
            plain = plain.only([key not in repeated for key in plain.keys])
        outside = 0
        if self._parser.joining.columns:
            outside = plain.joins.count(0)
            plain = plain.only(plain.joins) if outside else plain
        drafts = Drafts()
        for place in sorted(exact):
            if exact[place][1].evidence:
                drafts.add(*exact[place])
            else:
                outside += 1
        rejects.sort(key=lambda reject: reject.line)
        portion = Portion(rows - outside, plain, drafts, lambda place: self._parser.parse(chunk.cells[place]), outside)
        return portion, rejects
