"""The made-up customers: always the same, in the mix that real lists have, with everything that goes wrong."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Engine

from examples.generate_contacts import BROKEN, COLUMNS, generate
from mailer_lib.contacts.address_file import read_addresses
from mailer_lib.contacts.precedence import KeptOut
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.refusals import suppress_many, unsubscribe_many
from mailer_lib.settings import Settings
from mailer_lib.terms import SubscriptionState
from tests.contacts.world import World

PEOPLE = 2000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("customers")
    generate(folder, PEOPLE)
    return folder


@pytest.fixture
def world(sqlite_engine: Engine, settings: Settings) -> World:
    return World.make(sqlite_engine, settings)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        return [next(csv.reader([line])) for line in lines][1:]  # an open quote would swallow the file


def test_the_same_seed_gives_the_same_bytes(files: Path, tmp_path: Path) -> None:
    generate(tmp_path, PEOPLE)
    for name in ("contacts.csv", "pending.csv", "unsubscribed.csv", "suppressed.csv"):
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (files, tmp_path)}
        assert len(digests) == 1


def test_the_mix_of_mailbox_providers(files: Path) -> None:
    found = Counter(
        provider_of(row[0].rpartition("@")[2].lower()) for row in rows(files / "contacts.csv") if "@" in row[0]
    )
    share = {provider: count / found.total() for provider, count in found.items()}
    assert 0.63 < share["gmail"] < 0.71
    assert 0.06 < share["outlook"] < 0.12
    assert 0.04 < share["yahoo"] < 0.08
    assert len(found) > 12


def test_people_of_many_languages_and_scripts(files: Path) -> None:
    people = rows(files / "contacts.csv")
    assert len({row[COLUMNS.index("Language")] for row in people if len(row) == len(COLUMNS)}) >= 15
    assert any("ø" in row[2] for row in people if len(row) > 2)
    assert any(not row[0].isascii() for row in people)
    assert any(ord(max(row[1], default="a")) > 0x3000 for row in people if len(row) > 1)


def test_the_import_takes_all_but_the_broken_rows(files: Path, world: World) -> None:
    report = world.load(files / "contacts.csv")
    broken = round(150 * PEOPLE / 20_000)
    assert (report.rows, report.rejected, report.duplicates) == (PEOPLE - 40, broken, 15)
    assert report.new == report.confirmed == PEOPLE - 40 - broken - 15
    assert report.undated == 0
    assert report.ignored_columns == ()
    identity = world.settings.identity()
    left = unsubscribe_many(
        world.engine, identity, read_addresses(files / "unsubscribed.csv"), list_id=world.list_id, source="old"
    )
    barred = suppress_many(world.engine, identity, read_addresses(files / "suppressed.csv", domains=True), source="old")
    assert (left.new, len(left.problems)) == (50, 0)
    assert (barred.new, len(barred.problems)) == (26, 0)
    again = world.load(files / "contacts.csv")
    assert again.kept_out[KeptOut.UNSUBSCRIBED] == 50
    assert again.kept_out[KeptOut.IMPORTED] == 24
    pending = world.load(files / "pending.csv", consent=SubscriptionState.PENDING)
    assert pending.new == 40


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=[name for name, _ in BROKEN])
def test_every_broken_row_is_rejected_alone(number: int, world: World, tmp_path: Path) -> None:
    from examples.generate_contacts import People, line

    people = People(7)
    before, row, after = people.row(), people.row(), people.row()
    file = tmp_path / "one.csv"
    file.write_bytes(line(list(COLUMNS)) + line(before) + BROKEN[number][1](row) + line(after))
    report = world.load(file)
    assert (report.rows, report.new, report.rejected) == (3, 2, 1)
