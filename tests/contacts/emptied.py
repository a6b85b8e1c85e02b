"""A database without people, for tests that need many of them one after the other."""

from sqlalchemy import Engine, delete, text

from mailer_lib.database.engine import write
from mailer_lib.database.schema import (
    contacts,
    domain_suppressions,
    hash_lists,
    listed_hashes,
    metadata,
    subscriptions,
    suppressions,
)


def emptied(engine: Engine) -> None:
    with write(engine) as connection:
        for table in (subscriptions, contacts, suppressions, domain_suppressions, listed_hashes, hash_lists):
            connection.execute(delete(table))
        connection.execute(text("DROP TABLE consent_events"))  # append-only: its triggers go with it
        metadata.tables["consent_events"].create(connection)
