"""Where a task's settings come from: Airflow connections before the environment."""

import json

import pytest


def connection(conn_id: str, **fields):
    from airflow.sdk import Connection

    extra = fields.pop("extra", None)
    return Connection(conn_id=conn_id, extra=json.dumps(extra) if extra else None, **fields)


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        (
            {"conn_type": "mysql", "host": "db.example", "login": "mf", "password": "p@ss:w/rd", "schema": "fleet"},
            "mysql+mysqldb://mf:p%40ss%3Aw%2Frd@db.example/fleet",
        ),
        ({"conn_type": "mysql", "host": "h", "port": 3307, "schema": "s"}, "mysql+mysqldb://h:3307/s"),
        ({"conn_type": "generic", "extra": {"sqlalchemy_url": "sqlite:////tmp/x.db"}}, "sqlite:////tmp/x.db"),
    ],
)
def test_the_database_connection_becomes_a_url(fields, url):
    from mailfleet_airflow.installation import overrides

    assert overrides(connection("mailfleet_db", **fields), None) == {"database_url": url}


def test_a_connection_of_another_type_is_refused_with_what_to_do():
    from mailfleet_airflow.installation import overrides

    from mailer_lib.settings import SettingsError

    with pytest.raises(SettingsError, match="mailfleet_db is of type 'http': use MySQL"):
        overrides(connection("mailfleet_db", conn_type="http", host="h"), None)


def test_keys_come_from_the_second_connection_and_nothing_else_of_it():
    from mailfleet_airflow.installation import overrides

    extra = {"identity_key": "a" * 64, "token_key": "b" * 64, "home": "/elsewhere"}
    found = overrides(None, connection("mailfleet_keys", conn_type="generic", extra=extra))
    assert found == {"identity_key": "a" * 64, "token_key": "b" * 64}


def test_without_connections_nothing_is_overridden():
    from mailfleet_airflow.installation import overrides

    assert overrides(None, None) == {}


@pytest.fixture
def connections(monkeypatch, settings):
    """Sets Airflow connections by environment, as a secrets backend would; the engine is made anew."""
    from mailfleet_airflow.installation import installation

    def give(**values: str) -> None:
        for conn_id, text in values.items():
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", text)
        installation.cache_clear()

    yield give
    installation.cache_clear()


def test_connections_win_over_the_environment(connections, settings, tmp_path):
    from mailfleet_airflow.installation import installation

    url = f"sqlite:///{tmp_path}/other.db"
    connections(
        mailfleet_db=json.dumps({"conn_type": "generic", "extra": {"sqlalchemy_url": url}}),
        mailfleet_keys=json.dumps({"conn_type": "generic", "extra": {"token_key": "ab" * 32}}),
    )
    engine, found = installation()
    engine.dispose()
    assert found.url == url
    assert found.tokens() == bytes.fromhex("ab" * 32)
    assert found.identity() == settings.identity()
    assert found.home == settings.home


def test_a_wrong_key_in_a_connection_is_named_and_not_shown(connections):
    from mailfleet_airflow.installation import installation

    from mailer_lib.settings import SettingsError

    connections(mailfleet_keys=json.dumps({"conn_type": "generic", "extra": {"token_key": "s3cret-but-wrong"}}))
    with pytest.raises(SettingsError, match="token_key") as caught:
        installation()
    assert "s3cret" not in str(caught.value)
