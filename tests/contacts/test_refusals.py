"""Refusals from files: who left elsewhere, and suppression lists."""

from pathlib import Path

import pytest

from mailer_lib.contacts.address_file import Entry, read_addresses
from mailer_lib.contacts.columns import MappingError
from mailer_lib.contacts.refusals import suppress_many, unsubscribe_many
from tests.contacts.world import World


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


@pytest.mark.parametrize(
    "text", ["E-Mail\nLena@x.org\n@Bad.example\nnobody\n", "name,E-Mail\nLena,lena@x.org\n?,@bad.example\n?,nobody\n"]
)
def test_a_csv_with_a_header(file: Path, text: str) -> None:
    file.write_text(text)
    lena, bad, nobody = read_addresses(file, domains=True)
    assert (lena.line, lena.address and lena.address.normalised) == (2, "lena@x.org")
    assert bad == Entry(3, domain="bad.example")
    assert (nobody.line, nobody.problem) == (4, "there is no @ in it")


def test_an_address_a_line_without_a_header(file: Path) -> None:
    file.write_text("lena@x.org\nbo@x.org\n")
    assert [e.address.given for e in read_addresses(file) if e.address] == ["lena@x.org", "bo@x.org"]


def test_a_domain_is_a_mistake_where_people_leave(file: Path) -> None:
    file.write_text("@bad.example\n")
    assert [entry.problem for entry in read_addresses(file)] == ["there is nothing before the @"]


def test_several_columns_without_a_known_one(file: Path) -> None:
    file.write_text("name,phone\nLena,1\n")
    with pytest.raises(MappingError):
        list(read_addresses(file))


def test_lines_with_missing_columns_are_said(file: Path) -> None:
    file.write_text("name,mail\nLena\n")
    (entry,) = read_addresses(file)
    assert entry.problem is not None


def test_leaving_by_file(world: World, file: Path, tmp_path: Path) -> None:
    world.load(tmp_path / "in.csv", "mail\nlena@x.org\nbo@x.org\n", consent_at="2026-03-01")
    file.write_text("mail\nLENA@x.org\nnobody\nstranger@x.org\n")
    identity = world.settings.identity()
    report = unsubscribe_many(world.engine, identity, read_addresses(file), list_id=world.list_id, source="old system")
    assert (report.lines, report.new, report.known) == (3, 2, 0)
    assert report.problems == [(3, "there is no @ in it")]
    assert world.subscription("lena@x.org") == "unsubscribed"
    assert world.subscription("bo@x.org") == "confirmed"
    again = unsubscribe_many(world.engine, identity, read_addresses(file), list_id=world.list_id, source="old system")
    assert (again.new, again.known) == (0, 2)


def test_a_suppression_list(world: World, file: Path) -> None:
    file.write_text("lena@x.org\n@bad.example\nLena@X.org\n")
    report = suppress_many(
        world.engine,
        world.settings.identity(),
        read_addresses(file, domains=True),
        source="file",
        progress=lambda *_: None,
    )
    assert (report.new, report.known) == (2, 1)
    assert world.active("lena@x.org") == [("imported", 0)]
