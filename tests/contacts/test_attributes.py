"""Attributes are declared once, with a type."""

import pytest
from sqlalchemy import Engine

from mailer_lib.contacts import attributes
from mailer_lib.contacts.attributes import AttributeKeyError
from mailer_lib.database.engine import read, write
from mailer_lib.terms import AttributeType


def test_declared_once_and_again(engine: Engine) -> None:
    with write(engine) as connection:
        assert attributes.declare(connection, "points", AttributeType.NUMBER)
        assert not attributes.declare(connection, "points", AttributeType.NUMBER)
    with read(engine) as connection:
        assert attributes.declared(connection) == {"points": AttributeType.NUMBER}


@pytest.mark.parametrize(
    ("key", "words"),
    [("Points", "can't be"), ("x" * 65, "can't be"), ("locale", "every contact has"), ("a-b", "can't be")],
)
def test_keys_that_cannot_be(sqlite_engine: Engine, key: str, words: str) -> None:
    with write(sqlite_engine) as connection, pytest.raises(AttributeKeyError, match=words):
        attributes.declare(connection, key, AttributeType.TEXT)


def test_a_type_does_not_change(sqlite_engine: Engine) -> None:
    with write(sqlite_engine) as connection:
        attributes.declare(connection, "points", AttributeType.NUMBER)
        with pytest.raises(AttributeKeyError, match="is declared as number already"):
            attributes.declare(connection, "points", AttributeType.TEXT)
