"""Files that are just addresses: who left, who must never get mail. A CSV with an address column, or a line for each.

Domains may be among them, written ``@example.org``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mailer_lib.contacts.address import Address, AddressError, normalise, normalise_domain
from mailer_lib.contacts.columns import Field, MappingError, map_columns, slug
from mailer_lib.contacts.csv_source import CsvSource, open_csv
from mailer_lib.contacts.hash_lists import HashListError, parse_digest
from mailer_lib.contacts.records import BadRecord, Record
from mailer_lib.terms import HashAlgorithm


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: an address, or a domain, or the reason why it is neither."""

    line: int
    address: Address | None = None
    domain: str | None = None
    problem: str | None = None
    digest: bytes | None = None
    text: str = ""  # as it stands in the file, of those with a problem


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
            yield Entry(item.line, problem=item.reason, text=item.raw)
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
        return Entry(line, problem=str(error), text=text)


def read_hashes(path: Path, algorithm: HashAlgorithm, encoding: str = "utf-8") -> Iterator[Entry]:
    """Read a file of hashes: a hash a line, or a CSV with a column called hash, digest, sha256, md5 or the like.

    Raises:
        CsvError: empty, not in that encoding.
        MappingError: several columns, and none is known to hold the hash.
    """
    with open_csv(path, encoding) as source:
        first, index = source.header[0], 0
        if len(source.header) > 1:
            index = next((i for i, name in enumerate(source.header) if slug(name) in _HASH_COLUMNS), -1)
            if index < 0:
                raise MappingError(
                    f"{path}: none of its columns is known to hold the hashes; call it hash; "
                    f"it has: {', '.join(source.header)}"
                )
        elif slug(first) not in _HASH_COLUMNS:
            yield _hash_entry(1, first, algorithm)
        for item in source:
            if isinstance(item, BadRecord):
                yield Entry(item.line, problem=item.reason, text=item.raw)
            elif isinstance(item, Record):
                yield _hash_entry(item.line, item.cells[index] if index < len(item.cells) else "", algorithm)


_HASH_COLUMNS = frozenset({"hash", "digest", "sha256", "sha_256", "md5", "email_hash", "email_sha256", "email_md5"})


def _hash_entry(line: int, text: str, algorithm: HashAlgorithm) -> Entry:
    try:
        return Entry(line, digest=parse_digest(text, algorithm))
    except HashListError as error:
        return Entry(line, problem=str(error), text=text)
