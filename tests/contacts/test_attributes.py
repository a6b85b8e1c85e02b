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


def test_an_enum_has_choices_and_may_get_more(engine: Engine) -> None:
    with write(engine) as connection:
        assert attributes.declare(connection, "tier", AttributeType.ENUM, choices=["gold", " big  silver", "gold"])
        assert not attributes.declare(connection, "tier", AttributeType.ENUM, choices=["bronze", "gold"])
    with read(engine) as connection:
        assert attributes.declared_choices(connection) == {"tier": ("gold", "big silver", "bronze")}


@pytest.mark.parametrize(
    ("type_", "choices", "words"),
    [
        (AttributeType.ENUM, [], "1 to 500 choices"),
        (AttributeType.ENUM, ["a", " "], "none of them empty"),
        (AttributeType.ENUM, ["a\x00b"], "control character"),
        (AttributeType.TEXT, ["a"], "only an enum has choices"),
    ],
)
def test_choices_that_cannot_be(sqlite_engine: Engine, type_: AttributeType, choices: list[str], words: str) -> None:
    with write(sqlite_engine) as connection, pytest.raises(AttributeKeyError, match=words):
        attributes.declare(connection, "tier", type_, choices=choices)


def test_a_value_is_one_of_the_choices_or_several_texts() -> None:
    parse = attributes.parser_of(AttributeType.ENUM, ("gold", "big silver"))
    assert parse(" big  silver ") == "big silver"
    with pytest.raises(attributes.ValueProblemError, match="none of the choices gold, big silver"):
        parse("Gold")
    parse = attributes.parser_of(AttributeType.TEXT_LIST)
    assert parse("hiking | | deep  snow|hiking") == ["hiking", "deep snow"]
    with pytest.raises(attributes.ValueProblemError, match="more than 100"):
        parse("|".join(map(str, range(101))))


def test_a_type_does_not_change(sqlite_engine: Engine) -> None:
    with write(sqlite_engine) as connection:
        attributes.declare(connection, "points", AttributeType.NUMBER)
        with pytest.raises(AttributeKeyError, match="is declared as number already"):
            attributes.declare(connection, "points", AttributeType.TEXT)
