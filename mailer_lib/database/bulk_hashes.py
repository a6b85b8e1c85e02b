"""Many hashes of a suppression list at a time; those that are there already are left alone."""

from collections.abc import Sequence

from sqlalchemy import Connection


def add_hashes(connection: Connection, hash_list_id: int, digests: Sequence[bytes]) -> int:
    """Add digests to a list; returns how many weren't in it."""
    if not digests:
        return 0
    if connection.dialect.name == "sqlite":
        statement = "INSERT OR IGNORE INTO listed_hashes (digest, hash_list_id) VALUES (?, ?)"
    else:
        statement = "INSERT IGNORE INTO listed_hashes (digest, hash_list_id) VALUES (%s, %s)"
    done = connection.exec_driver_sql(statement, [(digest, hash_list_id) for digest in digests])
    return done.rowcount
