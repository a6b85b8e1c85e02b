"""Lists have a name for operators and a title for recipients."""

import pytest
from sqlalchemy import Engine

from mailer_lib.contacts.lists import ListError, all_lists, ensure_list, list_id
from mailer_lib.database.engine import read, write


def test_made_once(engine: Engine) -> None:
    with write(engine) as connection:
        first = ensure_list(connection, "newsletter", "Fjord & Fern News")
        assert ensure_list(connection, "newsletter", "Another title") == first
    with read(engine) as connection:
        assert list_id(connection, "newsletter") == first
        assert [one.title for one in all_lists(connection)] == ["Fjord & Fern News"]


def test_an_unknown_list_offers_near_matches(sqlite_engine: Engine) -> None:
    with write(sqlite_engine) as connection:
        ensure_list(connection, "newsletter", "News")
        with pytest.raises(ListError, match="did you mean newsletter"):
            list_id(connection, "newletter")


@pytest.mark.parametrize(("name", "title"), [("News letter", "x"), ("", "x"), ("news", " "), ("news", "a\nb\x07")])
def test_names_and_titles_that_cannot_be(sqlite_engine: Engine, name: str, title: str) -> None:
    with write(sqlite_engine) as connection, pytest.raises(ListError):
        ensure_list(connection, name, title)
