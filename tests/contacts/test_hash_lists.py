"""Suppression lists of hashes: they bar contacts who are here, and those who come later. On both databases."""

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from mailer_lib.contacts import consent, hash_lists
from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.address_file import read_addresses, read_hashes
from mailer_lib.contacts.erasing import erase_rows
from mailer_lib.contacts.hash_lists import HashList, HashListError, all_hash_lists, digests, parse_digest
from mailer_lib.contacts.precedence import EVERYWHERE, KeptOut
from mailer_lib.contacts.refusals import HashReport, suppress_hashes, suppress_many
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import listed_hashes
from mailer_lib.terms import HashAlgorithm
from tests.contacts.world import World, at

LENA, BO, CY = "lena@example.org", "bo@example.org", "cy@example.org"
PEOPLE = "E-Mail,Signed up at\nLena@Example.org,2026-03-01\nbo@example.org,2026-03-01\n"
SHA256, MD5 = HashAlgorithm.SHA256, HashAlgorithm.MD5


def hashed(address: str, algorithm: HashAlgorithm = SHA256) -> str:
    return hashlib.new(algorithm, address.encode()).hexdigest()


def take(
    world: World, tmp_path: Path, addresses: list[str], algorithm: HashAlgorithm = SHA256, name: str = "partner"
) -> HashReport:
    file = tmp_path / "hashes.txt"
    file.write_text("".join(f"{hashed(address, algorithm)}\n" for address in addresses))
    return suppress_hashes(
        world.engine, world.settings.identity(), read_hashes(file, algorithm), name=name, algorithm=algorithm,
        progress=lambda done, total: None,
    )  # fmt: skip


def load(world: World, tmp_path: Path, text: str = PEOPLE, **more: Any) -> Any:
    return world.load(tmp_path / "people.csv", text, **more)


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_a_contact_who_is_here_is_barred_at_once_and_for_running_sends(
    world: World, tmp_path: Path, algorithm: HashAlgorithm
) -> None:
    load(world, tmp_path)
    before = now()
    done = take(world, tmp_path, [LENA, CY], algorithm)
    assert (done.hashes.new, done.hashes.known, done.barred) == (2, 0, 1)
    assert (world.active(LENA), world.active(BO)) == ([("imported", EVERYWHERE)], [])
    with read(world.engine) as connection:
        barred, _ = consent.active_suppressions_since(connection, since=before, list_id=world.list_id)
    assert barred == {world.key(LENA)}


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_who_comes_later_is_barred_in_the_moment_they_come(
    world: World, tmp_path: Path, algorithm: HashAlgorithm
) -> None:
    take(world, tmp_path, [LENA], algorithm)
    dry = load(world, tmp_path, dry_run=True)
    assert world.contact(LENA) is None and world.active(LENA) == []
    report = load(world, tmp_path)
    assert (report.new, report.confirmed, report.kept_out) == (2, 1, {KeptOut.IMPORTED: 1})
    assert dry.lists == report.lists
    assert world.contact(LENA) is not None
    assert (world.active(LENA), world.active(BO)) == ([("imported", EVERYWHERE)], [])
    assert load(world, tmp_path).kept_out == {KeptOut.IMPORTED: 1}
    assert world.active(LENA) == [("imported", EVERYWHERE)]  # one row, however often they are imported


def test_a_newer_consent_lifts_nothing(world: World, tmp_path: Path) -> None:
    take(world, tmp_path, [LENA])
    load(world, tmp_path, PEOPLE.replace("2026-03-01", "2026-11-23"))
    assert world.active(LENA) == [("imported", EVERYWHERE)]


def test_the_same_list_twice_changes_nothing(world: World, tmp_path: Path) -> None:
    load(world, tmp_path)
    take(world, tmp_path, [LENA, CY])
    done = take(world, tmp_path, [LENA, CY])
    assert (done.hashes.new, done.hashes.known, done.barred) == (0, 2, 0)
    assert world.active(LENA) == [("imported", EVERYWHERE)]


def test_whom_an_operator_lets_out_stays_out_until_the_list_is_read_again(world: World, tmp_path: Path) -> None:
    load(world, tmp_path)
    take(world, tmp_path, [LENA])
    world.do(consent.lift, LENA, by="ann")
    assert load(world, tmp_path).kept_out == {}
    assert world.active(LENA) == []
    assert take(world, tmp_path, [LENA]).barred == 1
    assert world.active(LENA) == [("imported", EVERYWHERE)]


def test_dropping_a_list_unbars_nobody_whom_another_source_bars(world: World, tmp_path: Path) -> None:
    load(world, tmp_path)
    take(world, tmp_path, [LENA, BO])
    take(world, tmp_path, [LENA], MD5, name="other-partner")
    never = tmp_path / "never.txt"
    never.write_text("lena@example.org\n")
    suppress_many(world.engine, world.settings.identity(), read_addresses(never), source="never.txt")
    assert hash_lists.drop_list(world.engine, "partner", by="ann") == (2, 2)
    assert world.active(BO) == []
    assert len(world.active(LENA)) == 2
    hash_lists.drop_list(world.engine, "other-partner", by="ann")
    assert world.active(LENA) == [("imported", EVERYWHERE)]
    with pytest.raises(HashListError, match="there is no hash list 'partner'"):
        hash_lists.drop_list(world.engine, "partner", by="ann")


def test_of_an_erased_person_no_hash_is_kept(world: World, tmp_path: Path) -> None:
    load(world, tmp_path)
    take(world, tmp_path, [LENA, BO])
    with write(world.engine) as connection:
        assert hash_lists.lists_naming(connection, normalise(LENA)) == ["partner"]
        erase_rows(connection, normalise(LENA), world.key(LENA), by="request", at=now())
        assert hash_lists.lists_naming(connection, normalise(LENA)) == []
        assert connection.scalar(select(func.count()).select_from(listed_hashes)) == 1
    assert load(world, tmp_path).kept_out == {KeptOut.ERASED: 1, KeptOut.IMPORTED: 1}


def test_whom_a_batch_brings_that_looked_before_the_list_was_there_is_barred_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch has found no list and hasn't committed its people; the list's own look at all contacts must wait."""
    looked, go_on = threading.Event(), threading.Event()

    def look_and_wait(connection: Connection) -> list[HashList]:
        found = all_hash_lists(connection)
        looked.set()
        assert go_on.wait(20)
        return found

    monkeypatch.setattr("mailer_lib.contacts.batch.all_hash_lists", look_and_wait)
    done: list[HashReport] = []
    importing = threading.Thread(target=lambda: load(world, tmp_path))
    importing.start()
    assert looked.wait(20)
    taking = threading.Thread(target=lambda: done.append(take(world, tmp_path, [LENA])))
    taking.start()
    time.sleep(0.5)
    assert done == []
    go_on.set()
    importing.join(20)
    taking.join(20)
    assert done[0].barred == 1 and world.active(LENA) == [("imported", EVERYWHERE)]


def test_a_list_keeps_its_algorithm_and_has_a_possible_name(small_world: World, tmp_path: Path) -> None:
    take(small_world, tmp_path, [LENA])
    with pytest.raises(HashListError, match="is of sha256 hashes; say another --name"):
        take(small_world, tmp_path, [LENA], MD5)
    with pytest.raises(HashListError, match="say --name NAME"):
        take(small_world, tmp_path, [LENA], name="our partner")


# --- hashes and addresses as others write them ------------------------------------------------------------------------


@given(data=st.binary(min_size=0, max_size=40), upper=st.booleans(), space=st.sampled_from(["", " ", "\t"]))
def test_hexadecimal_digits_in_any_case_and_of_the_right_number(data: bytes, upper: bool, space: str) -> None:
    text = space + (data.hex().upper() if upper else data.hex()) + space
    for algorithm, length in ((SHA256, 32), (MD5, 16)):
        if len(data) == length:
            assert parse_digest(text, algorithm) == data
        else:
            with pytest.raises(HashListError, match="hexadecimal digits"):
                parse_digest(text, algorithm)


@given(st.text(max_size=70))
def test_any_other_text_is_a_problem_and_is_not_repeated(text: str) -> None:
    try:
        parse_digest(text, SHA256)
    except HashListError as error:
        assert len(text.strip()) < 4 or text.strip() not in str(error)
    else:
        assert len(bytes.fromhex(text.strip())) == 32


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (" Lena@Example.ORG ", "lena@example.org"),
        ("Straße@Example.org", "straße@example.org"),
        ("Lena@BÜCHER.example", "lena@bücher.example"),
        ("Lena@BÜCHER.example", "lena@xn--bcher-kva.example"),
    ],
)
def test_an_address_has_the_hashes_that_others_make_of_it(ours: str, theirs: str) -> None:
    for algorithm in HashAlgorithm:
        assert bytes.fromhex(hashed(theirs, algorithm)) in digests(normalise(ours), algorithm)


@pytest.mark.parametrize("head", ["", "SHA256\n", "id;email_sha256\n"])
def test_a_file_of_hashes(tmp_path: Path, head: str) -> None:
    first = "7;" if ";" in head else ""
    file = tmp_path / "hashes.csv"
    file.write_text(f"{head}{first}{hashed(LENA).upper()}\n{first}lena@example.org\n{first}{hashed(BO)[:-1]}\n")
    good, address, short = read_hashes(file, SHA256)
    assert good.digest == hashlib.sha256(LENA.encode()).digest()
    assert address.problem is not None and "import it without --hashes" in address.problem
    assert (short.line, short.text) == ((4 if head else 3), hashed(BO)[:-1])


def test_undated_people_are_barred_too(world: World, tmp_path: Path) -> None:
    take(world, tmp_path, [CY])
    report = load(world, tmp_path, "E-Mail\ncy@example.org\n", consent_at=None)
    assert report.kept_out == {KeptOut.IMPORTED: 1}
    assert world.evidence(CY)[0][1] > at("2026-01-01")
