"""Importing a file: what gets in, what stays out, and that running it again is harmless. On both databases."""

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from mailer_lib.contacts import consent
from mailer_lib.contacts.columns import MappingError
from mailer_lib.contacts.csv_source import CsvError
from mailer_lib.contacts.import_options import ImportOptions
from mailer_lib.contacts.import_plan import ConsentOptionError
from mailer_lib.contacts.importer import ImportReport, import_contacts
from mailer_lib.contacts.lists import ListError
from mailer_lib.contacts.precedence import EVERYWHERE, KeptOut
from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.migrate import upgrade
from mailer_lib.database.schema import audit_log, contacts, import_jobs
from mailer_lib.settings import Settings
from mailer_lib.terms import ContactState, SubscriptionState, SuppressionReason
from tests.contacts.world import World, at
from tests.support import times

HEAD = "E-Mail,First name,Language,City,Points,VIP,Customer since,Signed up at,Signed up from,Sign-up IP\n"
LENA = "Lena@Example.org,Lena,de-AT,Linz,12,yes,2024-12-31,2026-03-01T10:00:00Z,/shop,192.0.2.1\n"
BO = "bo@example.org,Bo,en,York,0,no,2023-01-01,2026-03-02T10:00:00Z,/fair,192.0.2.2\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def rejected(path: Path | None) -> list[dict[str, str]]:
    assert path is not None
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        return list(csv.DictReader(lines))


def test_a_contact_with_all_that_the_file_says(world: World, file: Path) -> None:
    report = world.load(file, HEAD + LENA, consent_wording="News, please")
    assert (report.rows, report.new, report.confirmed, report.rejected) == (1, 1, 1, 0)
    lena = world.contact("lena@example.org")
    assert (lena.address_given, lena.domain, lena.provider) == ("Lena@Example.org", "example.org", "other")
    assert lena.address_hash == world.key("lena@example.org")
    assert (lena.given_name, lena.family_name, lena.locale) == ("Lena", None, "de-AT")
    assert lena.attributes == {"city": "Linz", "points": 12, "vip": True, "customer_since": "2024-12-31"}
    assert world.subscription("lena@example.org") == "confirmed"
    assert world.tables()["consent"] == [
        (
            world.key("lena@example.org"), world.list_id, "confirmed", at("2026-03-01 10:00"), "import", "/shop",
            "News, please", "192.0.2.1",
        )
    ]  # fmt: skip


def test_umlauts_make_two_people_whatever_the_database_collates(world: World, file: Path) -> None:
    report = world.load(file, "mail\nmüller@example.org\nmuller@example.org\nMÜLLER@example.org\n")
    assert (report.new, report.duplicates) == (2, 1)


def test_run_twice_it_changes_nothing(world: World, file: Path) -> None:
    world.load(file, HEAD + LENA + BO)
    before = world.tables()
    report = world.load(file)
    assert (report.new, report.updated, report.unchanged) == (0, 0, 2)
    assert world.tables() == before


def test_undated_consent_run_twice_is_recorded_once(world: World, file: Path) -> None:
    report = world.load(file, "mail\nlena@example.org\n")
    assert report.undated == 1
    world.load(file)
    assert len(world.evidence("lena@example.org")) == 1


def test_an_empty_cell_erases_nothing_and_a_new_value_replaces(world: World, file: Path) -> None:
    world.load(file, HEAD + LENA)
    report = world.load(file, "E-Mail,First name,City,Points\nlena@example.org,,Graz,\n", consent_at="2026-03-01")
    assert report.updated == 1
    lena = world.contact("lena@example.org")
    assert lena.given_name == "Lena"
    assert (lena.attributes["city"], lena.attributes["points"]) == ("Graz", 12)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_of_two_rows_the_last_one_wins_wherever_the_batch_ends(small_world: World, file: Path, batch_rows: int) -> None:
    again = LENA.replace("Lena@", "LENA@").replace("Linz", "Graz").replace(",12,", ",,")
    report = small_world.load(file, HEAD + LENA + BO + again, batch_rows=batch_rows)
    assert (report.rows, report.new, report.duplicates) == (3, 2, 1)
    lena = small_world.contact("lena@example.org")
    assert (lena.address_given, lena.attributes["city"], lena.attributes["points"]) == ("LENA@Example.org", "Graz", 12)


def test_rejected_rows_can_be_mended_and_imported(world: World, file: Path) -> None:
    bad = [
        LENA.replace("Lena@Example.org", "lena"),
        LENA.replace(",12,", ",many,"),
        LENA.replace("\n", ",?\n"),
        LENA.replace("2026-03-01", "2206-03-01"),
    ]
    report = world.load(file, HEAD + bad[0] + BO + "".join(bad[1:]))
    assert (report.rows, report.new, report.rejected) == (5, 1, 4)
    rows = rejected(report.rejects)
    assert [(row["rejected_line"], row["rejected_column"]) for row in rows] == [
        ("2", "E-Mail"), ("4", "Points"), ("5", ""), ("6", "Signed up at")
    ]  # fmt: skip
    assert "no @" in rows[0]["rejected_reason"]
    assert rows[2]["rejected_raw"].endswith(",?")
    assert report.rejects is not None
    assert report.rejects.stat().st_mode & 0o777 == 0o600

    text = report.rejects.read_text().replace("lena,", "lena@example.org,", 1).replace(",many,", ",12,")
    mended = file.with_name("mended.csv")
    mended.write_text(text.replace("2206", "2026"))
    report = world.load(mended)
    assert (report.rows, report.rejected, report.new) == (4, 0, 1)
    assert report.ignored_columns == ()


def test_wrong_bytes_and_open_quotes_are_rejected_with_their_text(small_world: World, file: Path) -> None:
    file.write_bytes((HEAD + LENA).encode() + b'x@y.org,J\xfcrgen,,,,,,,,\n"open@y.org,Opa,,,,,,,,\n' + BO.encode())
    report = small_world.load(file)
    assert (report.new, report.rejected) == (2, 2)
    latin, quote = rejected(report.rejects)
    assert latin["First name"].encode("utf-8", "surrogateescape") == b"J\xfcrgen"
    assert quote["rejected_raw"] == '"open@y.org,Opa,,,,,,,,'


def test_latin_1_by_option(small_world: World, file: Path) -> None:
    small_world.load(file, "E-Mail;Vorname\njuergen@example.org;Jürgen\n", encoding="latin-1")
    assert small_world.contact("juergen@example.org").given_name == "Jürgen"


# --- consent ----------------------------------------------------------------------------------------------------------


def test_who_left_stays_out_of_an_older_import_and_comes_back_with_a_newer_consent(world: World, file: Path) -> None:
    world.load(file, HEAD + LENA)
    world.do(
        consent.unsubscribe,
        "lena@example.org",
        list_id=world.list_id,
        method="one-click",
        source=None,
        at=at("2026-06-01"),
    )
    report = world.load(file)
    assert report.kept_out == {KeptOut.UNSUBSCRIBED: 1}
    report = world.load(file, HEAD + LENA.replace("2026-03-01", "2026-05-01"))
    assert report.kept_out == {KeptOut.UNSUBSCRIBED: 1}
    assert world.subscription("lena@example.org") == "unsubscribed"
    assert world.evidence("lena@example.org")[-1] == ("imported-older", at("2026-05-01 10:00"))

    report = world.load(file, HEAD + LENA.replace("2026-03-01", "2026-07-01"))
    assert (report.kept_out, report.confirmed) == ({}, 1)
    assert world.subscription("lena@example.org") == "confirmed"
    assert world.active("lena@example.org") == []


def test_consent_without_a_date_lifts_nothing(world: World, file: Path) -> None:
    world.do(
        consent.unsubscribe, "lena@example.org", list_id=None, method="one-click", source=None, at=at("2020-01-01")
    )
    report = world.load(file, "mail\nlena@example.org\n")
    assert report.kept_out == {KeptOut.UNSUBSCRIBED: 1}
    assert world.active("lena@example.org") == [("unsubscribed", EVERYWHERE)]


@pytest.mark.parametrize("reason", [SuppressionReason.MANUAL, SuppressionReason.IMPORTED])
def test_an_operators_suppression_stays(world: World, file: Path, reason: SuppressionReason) -> None:
    world.do(consent.suppress, "lena@example.org", reason=reason, source="ann", at=at("2020-01-01"))
    assert world.load(file, HEAD + LENA).kept_out == {KeptOut(reason.value): 1}
    assert world.active("lena@example.org") == [(reason.value, EVERYWHERE)]


def test_nothing_is_kept_of_the_erased(world: World, file: Path) -> None:
    world.do(
        consent.suppress, "lena@example.org", reason=SuppressionReason.ERASED, source="request", at=at("2020-01-01")
    )
    report = world.load(file, HEAD + LENA)
    assert (report.rows, report.new, report.kept_out) == (1, 0, {KeptOut.ERASED: 1})
    assert world.contact("lena@example.org") is None
    assert world.evidence("lena@example.org") == []


def test_a_dead_mailbox_comes_back_with_a_newer_consent_only(world: World, file: Path) -> None:
    world.do(
        consent.suppress, "lena@example.org", reason=SuppressionReason.HARD_BOUNCE, source="mta", at=at("2026-06-01")
    )
    assert world.load(file, HEAD + LENA).kept_out == {KeptOut.HARD_BOUNCE: 1}
    assert world.contact("lena@example.org").state == ContactState.BOUNCED
    world.load(file, HEAD + LENA.replace("2026-03-01", "2026-07-01"))
    assert world.contact("lena@example.org").state == ContactState.ACTIVE
    assert world.active("lena@example.org") == []


def test_a_barred_domain(world: World, file: Path) -> None:
    world.do(consent.suppress_domain, domain="example.org", source="ann")
    assert world.load(file, HEAD + LENA).kept_out == {KeptOut.DOMAIN: 1}


def test_pending_waits_and_never_demotes(world: World, file: Path) -> None:
    world.load(file, HEAD + LENA)
    report = world.load(file, HEAD + LENA + BO, consent=SubscriptionState.PENDING)
    assert (report.confirmed, report.pending) == (1, 1)
    assert world.subscription("lena@example.org") == "confirmed"
    assert world.subscription("bo@example.org") == "pending"
    assert world.evidence("bo@example.org") == [("requested", at("2026-03-02 10:00"))]
    world.load(file, HEAD + BO)
    assert world.subscription("bo@example.org") == "confirmed"


def test_consent_said_once_for_all(small_world: World, file: Path) -> None:
    small_world.load(
        file, "mail,when,where,what\nlena@example.org,1.5.2026,fair,News\n",
        consent_at="when", consent_source="where", consent_wording="what",
    )  # fmt: skip
    assert small_world.tables()["consent"][0][3:] == (at("2026-05-01"), "import", "fair", "News", None)


def test_one_date_that_was_said_beats_a_column_that_looks_like_it(small_world: World, file: Path) -> None:
    report = small_world.load(file, HEAD + LENA, consent_at="2026-04-01")
    assert report.ignored_columns == ("Signed up at",)
    assert small_world.evidence("lena@example.org") == [("confirmed", at("2026-04-01"))]


# --- what is wrong with the whole file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        ("", {}, CsvError, "is empty"),
        ("lena@example.org\nbo@example.org\n", {}, MappingError, "has no header"),
        ("name\nLena\n", {}, MappingError, "--map"),
        ("mail\nx@y.org\n", {"list_name": "newletter"}, ListError, "did you mean newsletter"),
        ("mail\nx@y.org\n", {"consent_at": "last summer"}, MappingError, "neither a column"),
        ("mail\nx@y.org\n", {"consent_at": "2999-01-01"}, ConsentOptionError, "future"),
        ("mail\nx@y.org\n", {"consent_ip": "IP"}, MappingError, "no column 'IP'"),
        ("mail\nx@y.org\n", {"consent": SubscriptionState.UNSUBSCRIBED}, ConsentOptionError, "unsubscribe"),
    ],
)
def test_a_sentence_before_anything_is_stored(
    small_world: World, file: Path, text: str, options: dict[str, object], error: type[ValueError], words: str
) -> None:
    with pytest.raises(error, match=words):
        small_world.load(file, text, **options)
    with read(small_world.engine) as connection:
        assert connection.scalar(select(func.count()).select_from(audit_log)) == 0


def test_a_header_alone_is_an_import_of_nobody(small_world: World, file: Path) -> None:
    assert small_world.load(file, HEAD).rows == 0


# --- interrupted, and side by side ------------------------------------------------------------------------------------


def many(count: int) -> str:
    r = [
        f"Person{n}@example{n % 7}.org,P{n},de,Linz,{n},no,2024-01-01,2026-03-01,/shop,192.0.2.{n % 250}"
        for n in range(count)
    ]
    return HEAD + "\n".join(r) + "\n"


@pytest.mark.fault
def test_killed_in_mid_import_and_run_again_it_is_as_if_nothing_happened(world: World, file: Path) -> None:
    file.write_text(many(4000))
    program = (
        "from tests.contacts.world import World; from mailer_lib.settings import load_settings; import sys\n"
        "from pathlib import Path; from mailer_lib.database.engine import open_engine\n"
        "s = load_settings(); World(open_engine(s.url), s, 0).load(Path(sys.argv[1]), batch_rows=50)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(file)], cwd=Path(__file__).parents[2], env=os.environ)
    try:
        while _count(world) == 0:
            assert child.poll() is None, "the import ended before a row was seen"
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert 0 < _count(world) < 4000
    report = world.load(file)
    assert report.new + report.unchanged == report.rows == 4000
    interrupted = world.tables()
    assert [len(rows) for name, rows in interrupted.items() if name != "suppressions"] == [4000] * 3
    assert world.load(file).unchanged == 4000
    assert world.tables() == interrupted


KILLS = times(8, 20)
CHILD = """
import sys
from pathlib import Path
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from tests.contacts.world import World
s = load_settings()
world = World(open_engine(s.url), s, 0)
print("ready", flush=True)
world.load(Path(sys.argv[1]), batch_rows=25)
"""


@pytest.mark.fault
def test_killed_at_random_moments_it_ends_as_an_undisturbed_import(
    world: World, file: Path, settings: Settings, tmp_path: Path
) -> None:
    rows = many(6000).splitlines(keepends=True)
    rows[500:500] = ["nobody,,,,,,,,,\n", '"open,,,,,,,,,\n', rows[17], rows[18].replace("Linz", "Graz")]
    rows[2500:2500] = ["nobody,,,,,,,,,\n", rows[30]]
    file.write_text("".join(rows))
    moments = random.Random(20)
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(file)],
            cwd=Path(__file__).parents[2],
            env=os.environ,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert child.wait(moments.random() * 0.1) is None, "the import reached its end before it was killed"
        child.kill()
        child.wait()
        child.stdout.close()
    report = world.load(file, batch_rows=25)

    elsewhere = Settings(home=tmp_path / "elsewhere", identity_key=settings.identity().secret.hex())
    engine = open_engine(f"sqlite:///{tmp_path}/elsewhere.db")
    upgrade(engine)
    undisturbed = World.make(engine, elsewhere)
    expected = undisturbed.load(file, batch_rows=25)
    assert world.tables() == undisturbed.tables()
    assert report.resumed_after > 0
    assert counts(report) == counts(expected)
    assert rejected(report.rejects) == rejected(expected.rejects)
    engine.dispose()


def counts(report: ImportReport) -> tuple[object, ...]:
    return (report.rows, report.new, report.updated, report.unchanged, report.duplicates, report.rejected)


def test_an_import_goes_on_where_it_was_interrupted(world: World, file: Path) -> None:
    file.write_text(many(100) + "nobody,,,,,,,,,\n" + many(20).split("\n", 1)[1])

    class InterruptedByTestError(Exception):
        pass

    def interrupt(done: int, total: int | None) -> None:
        if done >= 60:
            raise InterruptedByTestError

    options = ImportOptions("newsletter", SubscriptionState.CONFIRMED, batch_rows=20)
    with pytest.raises(InterruptedByTestError):
        import_contacts(world.engine, world.settings, file, options, interrupt)
    report = import_contacts(world.engine, world.settings, file, options)
    assert (report.resumed_after, report.rows, report.new, report.duplicates, report.rejected) == (60, 121, 100, 20, 1)
    with read(world.engine) as connection:
        assert connection.scalar(select(func.count()).select_from(import_jobs)) == 0
    assert list((world.settings.home / "imports").iterdir()) == []


def test_other_options_are_another_import(world: World, file: Path) -> None:
    file.write_text(many(100))
    with pytest.raises(ZeroDivisionError):
        import_contacts(
            world.engine, world.settings, file, ImportOptions("newsletter", SubscriptionState.CONFIRMED, batch_rows=20),
            lambda done, total: 1 // 0,
        )  # fmt: skip
    report = world.load(file, consent=SubscriptionState.PENDING)
    assert (report.resumed_after, report.new, report.unchanged) == (0, 80, 20)


def test_a_dry_run_says_what_would_happen_and_writes_nothing(world: World, file: Path) -> None:
    world.load(file, HEAD + LENA)
    world.do(consent.unsubscribe, "cy@example.org", list_id=None, method="form", source=None, at=at("2026-06-01"))
    before = world.tables()
    text = HEAD + LENA + BO + BO.replace("bo@", "cy@") + "nobody,,,,,,,,,\n" + BO.replace("York", "Hull")
    report = world.load(file, text, dry_run=True, batch_rows=2)
    assert world.tables() == before
    assert not (world.settings.storage / "rejects").exists()
    assert [(reject.line, reject.column) for reject in report.first_rejects] == [(5, "E-Mail")]
    real = world.load(file, batch_rows=2)
    assert replace(report, rejects=real.rejects) == real
    with read(world.engine) as connection:
        assert connection.scalar(select(func.count()).select_from(audit_log)) == 4  # two imports, both real


def _count(world: World) -> int:
    with read(world.engine) as connection:
        return connection.scalar(select(func.count()).select_from(contacts)) or 0


def test_four_imports_of_the_same_people_at_once(world: World, file: Path) -> None:
    file.write_text(many(600))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            world.load(file, batch_rows=50)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert _count(world) == 600
    assert len(world.tables()["subscriptions"]) == 600


# --- the books of an import -------------------------------------------------------------------------------------------

PEOPLE = st.sampled_from(
    ["ann@x.org", "ANN@x.org", "bo@x.org", "cy@x.org", "not an address", "erased@x.org", "left@x.org", ""]
)


@given(rows=st.lists(PEOPLE, max_size=25), batch_rows=st.integers(1, 8))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_accounted_for(small_world: World, file: Path, rows: list[str], batch_rows: int) -> None:
    world = small_world
    world.do(consent.suppress, "erased@x.org", reason=SuppressionReason.ERASED, source=None, at=at("2020-01-01"))
    world.do(consent.unsubscribe, "left@x.org", list_id=None, method="form", source=None, at=at("2026-05-01"))
    text = "mail,City\n" + "".join(f"{row},c{n}\n" for n, row in enumerate(rows))
    report = world.load(file, text, batch_rows=batch_rows, consent_at="2026-03-01")
    erased = report.kept_out.get(KeptOut.ERASED, 0)
    assert report.rows == len(rows)
    assert report.rows == (
        report.new + report.updated + report.unchanged + report.duplicates + report.rejected + erased
    )
    assert report.rejected == sum(row in ("not an address", "") for row in rows)
    people = {row.lower() for row in rows if "@" in row}
    assert report.confirmed + sum(report.kept_out.values()) == len(people)
    for person in people - {"erased@x.org"}:
        last = max(n for n, row in enumerate(rows) if row.lower() == person)
        assert world.contact(person).attributes["city"] == f"c{last}"
        assert world.subscription(person) == ("unsubscribed" if person == "left@x.org" else "confirmed")
