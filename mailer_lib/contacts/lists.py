"""Lists: what a person subscribes to. A name for operators and files, a title for recipients."""

import re
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import IntegrityError

from mailer_lib.database.engine import now
from mailer_lib.database.schema import lists, subscriptions
from mailer_lib.terms import SubscriptionState

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_TITLE = 128


class ListError(ValueError):
    """No such list, or a name that a list can't have."""


@dataclass(frozen=True)
class ListRecord:
    id: int
    name: str
    title: str
    created_at: datetime


def list_id(connection: Connection, name: str) -> int:
    """The id of a list.

    Raises:
        ListError: there is none of that name; the sentence offers near matches.
    """
    found = connection.scalar(select(lists.c.id).where(lists.c.name == name))
    if found is None:
        names = [str(row) for row in connection.scalars(select(lists.c.name))]
        near = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"make it with: mailfleet lists add {name}"
        raise ListError(f"there is no list {name!r}; {hint}")
    return int(found)


def ensure_list(connection: Connection, name: str, title: str) -> int:
    """The id of the list, made when it isn't there; the title of an existing list is left alone.

    Raises:
        ListError: a name or title that a list can't have.
    """
    found = connection.scalar(select(lists.c.id).where(lists.c.name == name))
    if found is not None:
        return int(found)
    if _NAME.fullmatch(name) is None:
        raise ListError(
            f"{name!r} can't be the name of a list: lower-case letters, digits, dot, hyphen, underscore; at most 64"
        )
    title = " ".join(title.split())
    if not title or len(title) > MAX_TITLE or not title.isprintable():
        raise ListError(f"the title of list {name!r} must have 1 to {MAX_TITLE} printable characters")
    try:
        with connection.begin_nested():
            result = connection.execute(insert(lists).values(name=name, title=title, created_at=now()))
    except IntegrityError:  # somebody else made it a moment ago
        return list_id(connection, name)
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def all_lists(connection: Connection) -> list[ListRecord]:
    """Every list, by name."""
    return [
        ListRecord(row.id, row.name, row.title, row.created_at)
        for row in connection.execute(select(lists).order_by(lists.c.name))
    ]


def subscription_counts(connection: Connection) -> dict[tuple[int, SubscriptionState], int]:
    """How many subscriptions each list has in each state; a pair that is absent has none."""
    s = subscriptions.c
    query = select(s.list_id, s.state, func.count()).group_by(s.list_id, s.state)
    return {(row[0], SubscriptionState(row[1])): row[2] for row in connection.execute(query)}
