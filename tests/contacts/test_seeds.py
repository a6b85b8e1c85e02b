"""Seed lists."""

import pytest
from sqlalchemy import Engine

from mailer_lib.contacts.address import AddressError
from mailer_lib.contacts.seeds import Seed, SeedError, add_seed, list_seeds, remove_seed
from mailer_lib.database.engine import write


def test_added_once_and_removed(engine: Engine) -> None:
    with write(engine) as connection:
        assert add_seed(connection, "team", "Ann@Example.org", "Ann")
        assert not add_seed(connection, "team", "Ann@example.org")
        add_seed(connection, "press", "pia@example.org")
        assert list_seeds(connection, "team") == [Seed("team", "Ann@example.org", "Ann")]
        assert [seed.list_name for seed in list_seeds(connection)] == ["press", "team"]
        assert remove_seed(connection, "team", "Ann@example.org")
        assert not remove_seed(connection, "team", "Ann@example.org")


def test_what_cannot_be(sqlite_engine: Engine) -> None:
    with write(sqlite_engine) as connection:
        with pytest.raises(SeedError):
            add_seed(connection, "My Team", "ann@example.org")
        with pytest.raises(AddressError):
            add_seed(connection, "team", "ann")
