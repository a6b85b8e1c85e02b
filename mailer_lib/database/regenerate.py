"""``python -m mailer_lib.database.regenerate``: write migration 0001 again from ``schema.py``.

Only until the first release: afterwards every change of the tables is a migration of its own
(``alembic revision --autogenerate`` does the same work). Triggers and data live in later, hand-written migrations.
"""

import sys
import tempfile
from pathlib import Path

from alembic import command

from mailer_lib.database.engine import open_engine, write
from mailer_lib.database.migrate import config

INITIAL = "0001"


def regenerate(target: Path) -> Path:
    """Write ``0001_initial.py`` into the folder ``target`` and return its path."""
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob(f"{INITIAL}_*.py"):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(f"sqlite:///{folder}/empty.db")
        with write(engine) as connection:
            alembic = config(connection)
            alembic.set_main_option("version_locations", folder)  # as if there were no migration yet
            command.revision(
                alembic,
                message="initial",
                autogenerate=True,
                rev_id=INITIAL,
                version_path=folder,
                head="base",
                splice=True,
            )
        engine.dispose()
        (made,) = Path(folder).glob(f"{INITIAL}_*.py")
        path = target / made.name
        path.write_text(
            made.read_text().replace(
                '"""initial"""', '"""The first tables: ``regenerate.py`` wrote this from ``schema.py``."""'
            )
        )
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{regenerate(Path(__file__).parent / 'migrations' / 'versions')}\n")
