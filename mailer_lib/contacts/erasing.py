"""A person is erased from the central tables and from rejects files; what stays names nobody (docs/decisions/0303).

What stays: the suppression by keyed hash, reason ``erased``, so that no import brings them back; and the evidence of
consent by keyed hash, without the IP address, because whoever sent must be able to show that he was allowed to (GDPR
Art. 7(1), 17(3)(e)).
"""

import codecs
import contextlib
import csv
import io
import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from mailer_lib.contacts.address import Address, AddressError, normalise
from mailer_lib.contacts.consent import suppress
from mailer_lib.contacts.hash_lists import forget_person
from mailer_lib.contacts.rejects import LINE
from mailer_lib.database.schema import consent_events, contacts, seed_addresses, subscriptions
from mailer_lib.terms import SuppressionReason

_WORD_ENDS = re.compile(r"""[\s,;|<>"'()]+""")


@dataclass(frozen=True)
class ErasedRows:
    contacts: int
    subscriptions: int
    ip_addresses: int
    seeds: int


def erase_rows(connection: Connection, address: Address, address_hash: bytes, *, by: str, at: datetime) -> ErasedRows:
    """Everything central, in the open write transaction. Doing it again finds nothing."""
    suppress(connection, address_hash=address_hash, reason=SuppressionReason.ERASED, source=by, at=at)
    forget_person(connection, address)
    person = select(contacts.c.id).where(contacts.c.address_hash == address_hash).scalar_subquery()
    left = connection.execute(delete(subscriptions).where(subscriptions.c.contact_id == person)).rowcount
    gone = connection.execute(delete(contacts).where(contacts.c.address_hash == address_hash)).rowcount
    ips = connection.execute(
        update(consent_events)
        .where(consent_events.c.address_hash == address_hash, consent_events.c.ip.is_not(None))
        .values(ip=None)
    ).rowcount
    domain = f"@{address.domain}"
    seeds = 0
    for row in connection.execute(select(seed_addresses.c.list_name, seed_addresses.c.address)).all():
        if row.address.lower().endswith(domain) and _is(row.address, address):
            mine = (seed_addresses.c.list_name == row.list_name, seed_addresses.c.address == row.address)
            seeds += connection.execute(delete(seed_addresses).where(*mine)).rowcount
    return ErasedRows(gone, left, ips, seeds)


def without_person(data: bytes, address: Address) -> tuple[bytes, int]:
    """A rejects file without the rows that name this address in any cell, and how many those were.

    The encoding is that of the imported file, which isn't noted. UTF-16 begins with a byte order mark; all others have
    ASCII's delimiters and are read as Latin-1, which gives every byte back as it was.

    Raises:
        csv.Error: a cell is too large.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if marked else "latin-1"
    text = data.decode(encoding)
    header = text.split("\n", 1)[0]
    after = header.find(LINE) + len(LINE)
    delimiter = header[after : after + 1] or ","
    kept = io.StringIO()
    writer = csv.writer(kept, delimiter=delimiter)
    dropped = 0
    for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        if any(_names(cell, address) for cell in cells):
            dropped += 1
        else:
            writer.writerow(cells)
    return kept.getvalue().encode(encoding), dropped


def _names(cell: str, address: Address) -> bool:
    if "@" not in cell:
        return False
    readings = {cell}
    with contextlib.suppress(UnicodeError):
        readings.add(cell.encode("latin-1").decode("utf-8"))
    return any(_is(word, address) for reading in readings for word in _WORD_ENDS.split(reading) if "@" in word)


def _is(text: str, address: Address) -> bool:
    try:
        return normalise(text).normalised == address.normalised
    except AddressError:
        return False
