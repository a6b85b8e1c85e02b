"""Attributes are declared once, with a type."""

import pytest
from sqlalchemy import Engine, inspect, select, update

from mailer_lib.contacts import attributes
from mailer_lib.contacts.attributes import AttributeKeyError, IndexingError
from mailer_lib.database import generated, migrate
from mailer_lib.database.engine import open_engine, read, write
from mailer_lib.database.schema import attribute_types, audit_log, contacts
from mailer_lib.settings import load_settings
from mailer_lib.terms import AttributeType
from tests.contacts.world import World


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


# --- indexes ----------------------------------------------------------------------------------------------------------


def log(engine: Engine) -> list[tuple[str, str, str]]:
    with read(engine) as connection:
        rows = connection.execute(select(audit_log.c.actor, audit_log.c.action, audit_log.c.object))
        return [tuple(row) for row in rows.all()]


def columns(engine: Engine) -> set[str]:
    with read(engine) as connection:
        return set(generated.existing(connection))


def test_an_index_is_made_and_dropped_once_audited_and_no_difference_of_the_tables(engine: Engine) -> None:
    with write(engine) as connection:
        attributes.declare(connection, "tier", AttributeType.TEXT)
    assert attributes.index(engine, "tier", actor="ann")
    assert not attributes.index(engine, "tier", actor="ann")
    assert (columns(engine), set(attributes.indexed(engine))) == ({"tier"}, {"tier"})
    assert migrate.differences(engine) == []
    assert attributes.unindex(engine, "tier", actor="bob")
    assert not attributes.unindex(engine, "tier", actor="bob")
    assert (columns(engine), attributes.indexed(engine)) == (set(), {})
    assert log(engine) == [
        ("ann", "attributes.index", "attribute:tier"),
        ("bob", "attributes.unindex", "attribute:tier"),
    ]


def test_what_broke_off_in_the_middle_is_finished_or_taken_back(engine: Engine) -> None:
    with write(engine) as connection:
        attributes.declare(connection, "points", AttributeType.NUMBER)
    with write(engine) as connection:
        generated.add(connection, "points", AttributeType.NUMBER)
        connection.exec_driver_sql(
            "DROP INDEX ix_attr_points" + ("" if connection.dialect.name == "sqlite" else " ON contacts")
        )
    assert attributes.index(engine, "points", actor="ann")
    with read(engine) as connection:
        assert "ix_attr_points" in {each["name"] for each in inspect(connection).get_indexes("contacts")}
    with write(engine) as connection:
        connection.execute(update(attribute_types).values(indexed=0))  # killed between the mark and the column
    attributes.unindex(engine, "points", actor="ann")
    assert columns(engine) == set()


@pytest.mark.parametrize("key", ["interests", "k" * 57])
def test_what_can_not_be_indexed_is_a_sentence(sqlite_engine: Engine, key: str) -> None:
    with write(sqlite_engine) as connection:
        attributes.declare(connection, "interests", AttributeType.TEXT_LIST)
        attributes.declare(connection, "k" * 57, AttributeType.TEXT)
    with pytest.raises(AttributeKeyError, match="can't be indexed"):
        attributes.index(sqlite_engine, key, actor="ann")
    with pytest.raises(AttributeKeyError, match="there is no attribute"):
        attributes.index(sqlite_engine, "intrests", actor="ann")


def test_long_texts_have_an_index_too(engine: Engine) -> None:
    world = World.make(engine, load_settings())
    attributes.index(engine, "city", actor="ann")
    long = "x" * attributes.MAX_TEXT
    world.load(world.settings.home / "a.csv", f"email,city\na@example.org,{long}\nb@example.org,{long[:-1]}\n")
    with read(engine) as connection:
        city = generated.generated_column("city", AttributeType.TEXT)
        assert connection.scalars(select(contacts.c.address).where(city == long)).all() == ["a@example.org"]


@pytest.mark.mariadb
def test_a_long_reader_is_not_waited_for(mariadb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "LOCK_WAIT_S", 1)
    engine = open_engine(mariadb_url)
    with write(engine) as connection:
        attributes.declare(connection, "tier", AttributeType.TEXT)
    with read(engine) as connection:
        connection.execute(select(contacts.c.id)).all()
        with pytest.raises(IndexingError, match="try again"):
            attributes.index(engine, "tier", actor="ann")
    assert attributes.index(engine, "tier", actor="ann")
    engine.dispose()
