"""Files that are just addresses: who left, who must never get mail. A CSV with an address column, or a line for each.

Domains may be among them, written ``@example.org``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mailer_lib.contacts.address import Address, AddressError, normalise, normalise_domain
from mailer_lib.contacts.columns import Field, map_columns
from mailer_lib.contacts.csv_source import CsvSource, open_csv
from mailer_lib.contacts.records import BadRecord, Record


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: an address, or a domain, or the reason why it is neither."""

    line: int
    address: Address | None = None
    domain: str | None = None
    problem: str | None = None


def read_addresses(path: Path, encoding: str = "utf-8", *, domains: bool = False) -> Iterator[Entry]:
    """Read the file, entry by entry. ``domains``: ``@example.org`` is an entry, not a mistake.

    Raises:
        CsvError: empty, not in that encoding.
        MappingError: several columns, and none is known to hold the address.
    """
    with open_csv(path, encoding) as source:
        index = 0
        if len(source.header) == 1 and "@" in source.header[0]:
            yield _entry(1, source.header[0], domains)  # no header: the first line is an entry too
        elif len(source.header) > 1:
            index = map_columns(str(path), source.header, {}, {}, {}).fields[Field.ADDRESS]
        yield from _entries(source, index, domains)


def _entries(source: CsvSource, index: int, domains: bool) -> Iterator[Entry]:
    for item in source:
        if isinstance(item, BadRecord):
            yield Entry(item.line, problem=item.reason)
        elif isinstance(item, Record):
            if index < len(item.cells):
                yield _entry(item.line, item.cells[index], domains)
            else:
                yield Entry(item.line, problem="the column with the address is missing")


def _entry(line: int, text: str, domains: bool) -> Entry:
    try:
        if domains and text.strip().startswith("@"):
            return Entry(line, domain=normalise_domain(text))
        return Entry(line, address=normalise(text))
    except AddressError as error:
        return Entry(line, problem=str(error))
