"""Seed lists: colleagues' and test mailboxes that a test send goes to. They are no contacts and need no consent."""

import re
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.attributes import clean_text
from mailer_lib.database.engine import now
from mailer_lib.database.schema import seed_addresses

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class SeedError(ValueError):
    """A name that a seed list can't have."""


@dataclass(frozen=True)
class Seed:
    list_name: str
    address: str  # deliverable
    given_name: str | None


def add_seed(connection: Connection, list_name: str, address: str, given_name: str | None = None) -> bool:
    """Put an address on a seed list, which comes to be with its first address. Returns whether it is new.

    Raises:
        SeedError: a name that a list can't have.
        AddressError: not an address.
    """
    if _NAME.fullmatch(list_name) is None:
        raise SeedError(
            f"{list_name!r} can't be a seed list: lower-case letters, digits, dot, hyphen, underscore; at most 64"
        )
    deliverable = normalise(address).deliverable
    values = {"given_name": clean_text(given_name, 200) if given_name else None, "created_at": now()}
    try:
        with connection.begin_nested():
            connection.execute(insert(seed_addresses).values(list_name=list_name, address=deliverable, **values))
    except IntegrityError:
        return False
    return True


def remove_seed(connection: Connection, list_name: str, address: str) -> bool:
    """Returns whether it was on the list."""
    where = (seed_addresses.c.list_name == list_name) & (seed_addresses.c.address == normalise(address).deliverable)
    return connection.execute(delete(seed_addresses).where(where)).rowcount > 0


def list_seeds(connection: Connection, list_name: str | None = None) -> list[Seed]:
    """The addresses of one seed list, or of all, by list and address."""
    query = select(seed_addresses).order_by(seed_addresses.c.list_name, seed_addresses.c.address)
    if list_name is not None:
        query = query.where(seed_addresses.c.list_name == list_name)
    return [Seed(row.list_name, row.address, row.given_name) for row in connection.execute(query)]
