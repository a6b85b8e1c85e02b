"""Suppressions that come from files, many at a time: reason ``imported``, everywhere, one active row for each source.

One row a source, so that a list can be lifted without unbarring whom another list names too.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from mailer_lib.contacts.precedence import EVERYWHERE
from mailer_lib.database.bulk_lookup import IN_CHUNK
from mailer_lib.database.engine import now
from mailer_lib.database.schema import suppressions
from mailer_lib.terms import SuppressionReason

_s = suppressions.c
_STANDING = (_s.lifted_at.is_(None), _s.list_id == EVERYWHERE, _s.reason == SuppressionReason.IMPORTED.value)


def suppress_imported(connection: Connection, keys: Sequence[bytes], *, source: str, at: datetime) -> set[bytes]:
    """Bar address hashes; returns those that this source didn't bar yet. ``contacts.state`` doesn't depend on it."""
    source = source[:200]
    wanted, known = list(dict.fromkeys(keys)), set[bytes]()
    for start in range(0, len(wanted), IN_CHUNK):
        chunk = wanted[start : start + IN_CHUNK]
        query = select(_s.address_hash).where(_s.address_hash.in_(chunk), _s.source == source, *_STANDING)
        known.update(bytes(key) for key in connection.scalars(query))
    new = [key for key in wanted if key not in known]
    if new:
        same = {
            "list_id": EVERYWHERE, "reason": SuppressionReason.IMPORTED.value, "source": source, "refused_at": at,
            "created_at": now(),
        }  # fmt: skip
        connection.execute(insert(suppressions), [{"address_hash": key, **same} for key in new])
    return set(new)


def lift_source(connection: Connection, source: str, *, by: str) -> int:
    """Lift what came of one source; returns how many. ``imported`` never changes ``contacts.state``."""
    lifting = update(suppressions).where(_s.source == source[:200], *_STANDING)
    return connection.execute(lifting.values(lifted_at=now(), lifted_by=by[:200])).rowcount
