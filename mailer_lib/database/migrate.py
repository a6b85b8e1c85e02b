"""Bring a database to the newest tables, and say how far it is. The changes are in ``migrations/versions``.

One process migrates at a time: SQLite's write lock, and a named lock on MySQL, whose DDL commits by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, inspect, text

from mailer_lib.database.engine import read, write
from mailer_lib.database.generated import is_generated
from mailer_lib.database.lock import named_lock
from mailer_lib.database.schema import Exact, Hash16, Id, LongText, UtcDateTime

if TYPE_CHECKING:
    from alembic.config import Config

_LOCK = "mailfleet-migrate"
_LOCK_WAIT_S = 120


class MigrationError(RuntimeError):
    """The database can't be brought to, or isn't at, the tables that this release needs."""


def head() -> str:
    """The newest revision that this release knows; from file names, because importing Alembic takes half a second."""
    versions = resources.files("mailer_lib.database.migrations") / "versions"
    return max(
        entry.name.split("_", 1)[0]
        for entry in versions.iterdir()
        if entry.name[:4].isdigit() and entry.name.endswith(".py")
    )


def current(engine: Engine) -> str | None:
    """The revision that the database is at; None when it has no tables of ours."""
    with read(engine) as connection:
        return _current(connection)


def require_current(engine: Engine) -> None:
    """Do nothing when the tables are those of this release.

    Raises:
        MigrationError: they are not, and what to run.
    """
    found, wanted = current(engine), head()
    if found is None:
        raise MigrationError("the database has no tables yet: run `mailfleet init`")
    if found < wanted:
        raise MigrationError(
            f"the database is at revision {found}, this release needs {wanted}: run `mailfleet db upgrade`"
        )
    if found > wanted:
        raise MigrationError(
            f"the database is at revision {found}, newer than this release ({wanted}): upgrade Mailfleet"
        )


def upgrade(engine: Engine, revision: str = "head") -> tuple[str | None, str]:
    """Run what is missing. Returns the revisions before and after; the same when there was nothing to do."""
    from alembic import command

    with _one_at_a_time(engine), write(engine) as connection:
        before = _current(connection)
        if before is not None and before > head():
            raise MigrationError(
                f"the database is at revision {before}, newer than this release ({head()}): upgrade Mailfleet"
            )
        command.upgrade(config(connection), revision)
        after = _current(connection)
    assert after is not None
    return before, after


def config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration, without a file."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", "mailer_lib.database:migrations")
    made.set_main_option("path_separator", "os")
    if connection is not None:
        made.attributes["connection"] = connection
    return made


def differences(engine: Engine) -> list[Any]:
    """What Alembic would change to make the database equal ``schema.py``; empty when they agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from mailer_lib.database.schema import metadata

    with read(engine) as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts=dict(COMPARISON)), metadata))


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """Until the last revision's number is committed. On SQLite BEGIN IMMEDIATE does it."""
    with named_lock(engine, _LOCK, _LOCK_WAIT_S) as got:
        if not got:
            raise MigrationError(
                f"another process has been migrating this database for {_LOCK_WAIT_S} s; try again when it is done"
            )
        yield


def _render(kind: str, item: Any, autogen_context: Any) -> str | bool:
    """Write our column types into a migration by their names in ``schema.py``."""
    if kind != "type":
        return False
    if isinstance(item, UtcDateTime):
        return "UtcDateTime()"
    for name, known in (("Hash16", Hash16), ("Id", Id), ("LongText", LongText)):
        if item is known:
            return name
    length = getattr(item, "length", None)
    if isinstance(length, int) and repr(item) == repr(Exact(length)):
        variants = getattr(item, "_variant_mapping", {})
        if variants:
            return f"Exact({length})"
    return False


def _types_differ(
    context: Any, inspected_column: Any, metadata_column: Any, inspected_type: Any, metadata_type: Any
) -> bool | None:
    """MariaDB's JSON is LONGTEXT with a check (https://mariadb.com/kb/en/json/); the rest is Alembic's business."""
    from sqlalchemy import JSON
    from sqlalchemy.dialects.mysql import LONGTEXT

    if isinstance(metadata_type, JSON) and isinstance(inspected_type, LONGTEXT):
        return False
    return None


def _is_ours(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Columns that an installation made for its own attributes are no difference."""
    return kind not in {"column", "index"} or not is_generated(item.table.name, name)


COMPARISON: dict[str, Any] = {
    "include_object": _is_ours,
    "compare_type": _types_differ,
    "compare_server_default": True,
    "render_item": _render,
    "transactional_ddl": True,
}
