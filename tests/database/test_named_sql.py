"""Named SQL is found in a checkout and in a wheel, and each file says what it answers."""

import tomllib
from pathlib import Path

import pytest

from mailer_lib.database.named_sql import named_sql

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "include" / "sql").glob("*.sql"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_statement_is_found_by_name_and_begins_with_what_it_answers(path: Path) -> None:
    assert named_sql(path.stem).startswith("-- ")
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()


def test_a_wheel_holds_them_where_they_are_looked_for() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["include/sql"] == "mailer_lib/sql"


def test_another_name_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.sql"):
        named_sql("nothing")
