"""What Alembic runs. The connection is handed in by ``database/migrate.py``, which also owns the transaction."""

from alembic import context

from mailer_lib.database.migrate import COMPARISON
from mailer_lib.database.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, **COMPARISON)
with context.begin_transaction():
    context.run_migrations()
