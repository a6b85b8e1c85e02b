"""The settings and the central database of this installation, as a task sees them.

Airflow connections win over the environment, so that secrets can live in Airflow's secrets backend:

``mailfleet_db``    the central database (type MySQL, or any type with ``extra.sqlalchemy_url``)
``mailfleet_keys``  ``extra`` holds ``identity_key`` and ``token_key``, 64 hex digits each

Without them it is ``MAILFLEET_DATABASE_URL``, ``MAILFLEET_IDENTITY_KEY``, … or the files below ``MAILFLEET_HOME``.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowNotFoundException

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from sqlalchemy import Engine

    from mailer_lib.settings import Settings

DATABASE_CONNECTION = "mailfleet_db"
KEYS_CONNECTION = "mailfleet_keys"
_DRIVERS = {"mysql": "mysql+mysqldb", "mariadb": "mysql+mysqldb", "sqlite": "sqlite"}


def overrides(database: Connection | None, keys: Connection | None) -> dict[str, Any]:
    """Arguments of ``Settings`` that the two connections stand for.

    Raises:
        SettingsError: a connection is there and doesn't hold what it should.
    """
    found: dict[str, Any] = {}
    if database is not None:
        found["database_url"] = _url(database)
    if keys is not None:
        found |= {name: keys.extra_dejson[name] for name in ("identity_key", "token_key") if name in keys.extra_dejson}
    return found


def _url(connection: Connection) -> str:
    from sqlalchemy.engine import URL

    from mailer_lib.settings import SettingsError

    if "sqlalchemy_url" in connection.extra_dejson:
        return str(connection.extra_dejson["sqlalchemy_url"])
    driver = _DRIVERS.get(connection.conn_type)
    if driver is None:
        raise SettingsError(
            f"the Airflow connection {connection.conn_id} is of type {connection.conn_type!r}: use MySQL, or give its "
            "SQLAlchemy URL as sqlalchemy_url in the extra field"
        )
    url = URL.create(
        driver,
        username=connection.login or None,
        password=connection.password or None,
        host=connection.host or None,
        port=connection.port,
        database=connection.schema or None,
    )
    return url.render_as_string(hide_password=False)


def _connection(conn_id: str) -> Connection | None:
    from airflow.sdk import Connection

    with suppress(AirflowNotFoundException):
        return Connection.get(conn_id)
    return None


@lru_cache(maxsize=1)
def installation() -> tuple[Engine, Settings]:
    """Engine and settings of this process. Never called while a DAG file is parsed.

    Raises:
        SettingsError: a setting is wrong or missing.
    """
    from pydantic import ValidationError

    from mailer_lib.database.engine import open_engine
    from mailer_lib.settings import Settings, SettingsError, load_settings

    settings = load_settings()
    if changed := overrides(_connection(DATABASE_CONNECTION), _connection(KEYS_CONNECTION)):
        try:
            settings = Settings(**changed)
        except ValidationError as error:
            fields = ", ".join(str(e["loc"][0]) for e in error.errors())
            raise SettingsError(
                f"the Airflow connections {DATABASE_CONNECTION} and {KEYS_CONNECTION} give a wrong value for: {fields}"
            ) from None
    return open_engine(settings.url), settings
