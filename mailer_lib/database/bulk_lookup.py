"""What the tables hold of many people at once, by address hash.

On MySQL and MariaDB the hashes are loaded into a table in memory and joined: 1 µs a person and question instead of 3.5
for ``IN (…)``, whose values are parsed and optimised each time. Where that is refused, and on SQLite, it is ``IN``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from mailer_lib.database import bulk_load

IN_CHUNK = 1000  # values of one IN (…): far below SQLite's 32,766 and MySQL's packet
_PEOPLE = "mailfleet_people"
_HAS_TABLE = "mailfleet_has_people_table"

# Times as text (``bulk.moment_text``): as CHAR both databases give them in the form in which they were written.
_KNOWN = """
SELECT c.address_hash, c.id, c.address_given, c.given_name, c.family_name, c.locale, c.timezone, c.attributes,
       s.state, CAST(s.confirmed_at AS CHAR(26))
FROM {people} LEFT JOIN subscriptions s ON s.contact_id = c.id AND s.list_id = {mark} {where}"""
_IDS = "SELECT c.address_hash, c.id FROM {people} {where}"
_BARRED = """
SELECT DISTINCT c.address_hash FROM {people} {where} AND c.lifted_at IS NULL AND c.list_id IN (0, {mark})"""
_EVIDENCE = """
SELECT c.address_hash, CAST(c.occurred_at AS CHAR(26)), c.source
FROM {people} {where} AND c.list_id = {mark} AND c.method = {mark}"""


class People:
    """Some people, named by their hashes, in an open transaction. Only the last made of a connection is good."""

    def __init__(self, connection: Connection, hashes: Sequence[bytes]) -> None:
        self._connection = connection
        self._hashes = hashes
        self._mark = "?" if connection.dialect.name == "sqlite" else "%s"
        self._staged = _stage(connection, hashes)

    def contacts(self, list_id: int) -> Iterator[tuple[Any, ...]]:
        """(address_hash, id, address_given, given_name, family_name, locale, timezone, attributes as JSON text, state
        of the subscription to the list or None, its confirmed_at as text) of each who is a contact."""
        return self._select(_KNOWN, "contacts", "uq_contacts_address_hash", before=(list_id,))

    def ids(self) -> dict[bytes, int]:
        """Ids of those who are contacts."""
        return {row[0]: row[1] for row in self._select(_IDS, "contacts", "uq_contacts_address_hash")}

    def barred(self, list_id: int) -> set[bytes]:
        """Who has an active suppression, of this list or everywhere."""
        return {row[0] for row in self._select(_BARRED, "suppressions", "ix_suppressions_address", after=(list_id,))}

    def evidence(self, list_id: int, method: str) -> Iterator[tuple[Any, ...]]:
        """(address_hash, occurred_at as text, source) of the evidence that this method left for the list."""
        return self._select(_EVIDENCE, "consent_events", "ix_consent_events_address", after=(list_id, method))

    def _select(
        self, sql: str, table: str, index: str, *, before: tuple[Any, ...] = (), after: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Any, ...]]:
        if self._staged:
            # in this order and by this index, whatever the statistics of a growing table say
            people = f"{_PEOPLE} p STRAIGHT_JOIN {table} c FORCE INDEX ({index}) ON c.address_hash = p.address_hash"
            statement = sql.format(people=people, where="WHERE 1 = 1", mark=self._mark)
            yield from self._connection.exec_driver_sql(statement, (*before, *after))
            return
        for start in range(0, len(self._hashes), IN_CHUNK):
            chunk = self._hashes[start : start + IN_CHUNK]
            where = f"WHERE c.address_hash IN ({', '.join([self._mark] * len(chunk))})"
            statement = sql.format(people=f"{table} c", where=where, mark=self._mark)
            yield from self._connection.exec_driver_sql(statement, (*before, *chunk, *after))


def _stage(connection: Connection, hashes: Sequence[bytes]) -> bool:
    if connection.dialect.name == "sqlite" or bulk_load.load_refused(connection):
        return False
    if _HAS_TABLE not in connection.info:
        try:
            connection.exec_driver_sql(
                f"CREATE TEMPORARY TABLE IF NOT EXISTS {_PEOPLE} (address_hash BINARY(16) NOT NULL) ENGINE=MEMORY"
            )
        except DBAPIError:  # no privilege for it
            connection.info[_HAS_TABLE] = False
        else:
            connection.info[_HAS_TABLE] = True
    if not connection.info[_HAS_TABLE]:
        return False
    connection.exec_driver_sql(f"DELETE FROM {_PEOPLE}")  # noqa: S608
    return bulk_load.load(connection, _PEOPLE, {"address_hash": list(hashes)}) is True
