"""Importing by a profile: several lists in one pass, each with its own consent. On both databases."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mailer_lib.contacts import consent
from mailer_lib.contacts.importer import ImportReport, import_contacts
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.contacts.precedence import EVERYWHERE, KeptOut
from mailer_lib.contacts.profile_file import load_profile
from mailer_lib.contacts.profile_plan import ProfileRequest
from mailer_lib.database.engine import open_engine, write
from mailer_lib.database.migrate import upgrade
from mailer_lib.settings import Settings
from mailer_lib.terms import SubscriptionState, SuppressionReason
from tests.contacts.emptied import emptied
from tests.contacts.world import World, at

PROFILE = """\
fields: {address: Kontakt, given_name: Vorname, locale: {column: Sprache, words: {Deutsch: de}, value: en}}
attributes:
  city: Ort
  points: {column: Punkte, decimal: ","}
  tier: {value: basic}
consent: {state: confirmed, at: {column: Am, format: "%m/%d/%Y"}, source: {value: shop}}
lists:
  - list: newsletter
  - {list: other, column: Weitere, yes: [x], no: ["-"], consent: {at: Weitere am}}
  - {column: Gruppen, separator: /, words: {Wandern: hiking, Alt: ""}, consent: {state: pending}}
"""
SOME = PROFILE.replace("- list: newsletter", "- {list: newsletter, column: News}")
HEAD = "Kontakt,Vorname,Sprache,Ort,Punkte,Am,News,Weitere,Weitere am,Gruppen\n"


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "shop.yaml"
    path.write_text(PROFILE)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def load(world: World, profile: Path, file: Path, text: str | None = None, **more: Any) -> ImportReport:
    if text is not None:
        file.write_text(text)
    with write(world.engine) as connection:
        ensure_list(connection, "hiking", "Hiking")
    return import_contacts(world.engine, world.settings, file, ProfileRequest(load_profile(profile), **more))


def lists_of(world: World, address: str) -> dict[str, str]:
    with write(world.engine) as connection:
        ids = {name: ensure_list(connection, name, name) for name in ("newsletter", "other", "hiking")}
    states = {name: world.subscription(address, id_) for name, id_ in ids.items()}
    return {name: state for name, state in states.items() if state is not None}


def by_list(report: ImportReport) -> dict[str, tuple[int, int]]:
    return {one.name: (one.confirmed, one.pending) for one in report.lists}


def test_everybody_joins_the_lists_that_their_row_names(world: World, profile: Path, file: Path) -> None:
    report = load(
        world, profile, file,
        HEAD + 'a@x.org,Ann,Deutsch,Linz,"1,5",12/31/2025,,x,2026-01-05,wandern / ALT\n'
        "b@x.org,,,,,01/02/2026,,-,,\nc@x.org,,,,,01/02/2026,,x,,Alt\n",
    )  # fmt: skip
    assert lists_of(world, "a@x.org") == {"newsletter": "confirmed", "other": "confirmed", "hiking": "pending"}
    assert lists_of(world, "b@x.org") == {"newsletter": "confirmed"}
    assert lists_of(world, "c@x.org") == {"newsletter": "confirmed", "other": "confirmed"}
    ann = world.contact("a@x.org")
    assert (ann.given_name, ann.locale, ann.attributes) == (
        "Ann",
        "de",
        {"city": "Linz", "points": 1.5, "tier": "basic"},
    )
    assert (world.contact("b@x.org").locale, world.contact("b@x.org").attributes) == ("en", {"tier": "basic"})
    assert [(action, moment) for action, moment in sorted(world.evidence("a@x.org"))] == [
        ("confirmed", at("2025-12-31")), ("confirmed", at("2026-01-05")), ("requested", at("2025-12-31"))
    ]  # fmt: skip
    assert (report.rows, report.new) == (3, 3)
    assert by_list(report) == {"newsletter": (3, 0), "other": (2, 0), "hiking": (0, 1)}
    assert [one.undated for one in report.lists] == [0, 1, 0]  # c joined "other", nobody knows when


def test_run_twice_it_changes_nothing(world: World, profile: Path, file: Path) -> None:
    load(world, profile, file, HEAD + "a@x.org,Ann,,,,12/31/2025,,x,2026-01-05,Wandern\nb@x.org,,,,,12/31/2025,,,,\n")
    before = world.tables()
    report = load(world, profile, file)
    assert (report.new, report.updated, report.unchanged) == (0, 0, 2)
    assert world.tables() == before


def test_who_joins_a_second_list_is_updated_and_no_contact_twice(world: World, profile: Path, file: Path) -> None:
    load(world, profile, file, HEAD + "a@x.org,Ann,,,,12/31/2025,,-,,\n")
    report = load(world, profile, file, HEAD + "a@x.org,Ann,,,,12/31/2025,,x,2026-01-05,\n")
    assert (report.new, report.updated, report.unchanged) == (0, 1, 0)
    assert lists_of(world, "a@x.org") == {"newsletter": "confirmed", "other": "confirmed"}


def test_a_row_of_no_list_is_counted_and_nothing_is_stored_of_it(world: World, profile: Path, file: Path) -> None:
    profile.write_text(SOME)
    report = load(
        world, profile, file,
        HEAD + "a@x.org,Ann,,,,12/31/2025,no,,,\nb@x.org,,,,,12/31/2025,yes,,,\nb@x.org,Bo,,,,12/31/2025,no,-,,alt\n",
    )  # fmt: skip
    assert (report.rows, report.new, report.outside, report.duplicates) == (3, 1, 2, 0)
    assert world.contact("a@x.org") is None and world.evidence("a@x.org") == []
    assert world.contact("b@x.org").given_name is None


def test_no_takes_nobody_off(world: World, profile: Path, file: Path) -> None:
    profile.write_text(SOME)
    load(world, profile, file, HEAD + "a@x.org,,,,,12/31/2025,yes,x,,\n")
    load(world, profile, file, HEAD + "a@x.org,,,,,12/31/2025,yes,-,,\n")
    assert lists_of(world, "a@x.org") == {"newsletter": "confirmed", "other": "confirmed"}


def test_an_older_consent_to_one_list_gains_nothing_by_a_newer_one_to_another(
    world: World, profile: Path, file: Path
) -> None:
    """They left everything in May. The consent of June lifts that, for its own list; the one of January is void."""
    for order in (PROFILE, PROFILE.replace("  - list: newsletter\n", "") + "  - list: newsletter\n"):
        emptied(world.engine)
        profile.write_text(order)
        world.do(consent.unsubscribe, "a@x.org", list_id=None, method="form", source=None, at=at("2026-05-01"))
        report = load(world, profile, file, HEAD + "a@x.org,,,,,06/01/2026,,x,2026-01-01,\n")
        assert lists_of(world, "a@x.org") == {"newsletter": "confirmed", "other": "unsubscribed"}
        assert world.active("a@x.org") == []
        assert report.kept_out == {KeptOut.UNSUBSCRIBED: 1}


def test_nothing_is_kept_of_the_erased_whatever_lists_they_are_to_join(world: World, profile: Path, file: Path) -> None:
    world.do(consent.suppress, "a@x.org", reason=SuppressionReason.ERASED, source="x", at=at("2020-01-01"))
    report = load(world, profile, file, HEAD + "a@x.org,,,,,06/01/2026,,x,2026-01-01,Wandern\n")
    assert (report.rows, report.new, report.erased, report.kept_out) == (1, 0, 1, {KeptOut.ERASED: 3})
    assert world.contact("a@x.org") is None and world.evidence("a@x.org") == []


def test_rejects_are_mended_and_imported_with_the_same_profile(world: World, profile: Path, file: Path) -> None:
    profile.write_text(PROFILE + "other_columns: refuse\n")
    text = HEAD.replace("News,", "") + (
        "a@x.org,,,,,12/31/2025,perhaps,,\nb@x.org,,,,1.5,12/31/2025,,,\nc@x.org,,,,,31.12.2025,,,\n"
        "d@x.org,,,,,12/31/2025,x,soon,\ne@x.org,,,,,12/31/2025,,,Klettern\nf@x.org,,,,,12/31/2025,-,soon,Wandern\n"
    )
    report = load(world, profile, file, text)
    assert (report.new, report.rejected) == (1, 5)  # f's consent to a list that they don't join isn't read
    assert report.rejects is not None
    with report.rejects.open(encoding="utf-8-sig", newline="") as lines:
        said = [(row["rejected_column"], row["rejected_reason"]) for row in csv.DictReader(lines)]
    assert said == [
        ("Weitere", "it is none of the profile's words for yes and no"),
        ("Punkte", "it is not a number written like 1234,5"),
        ("Am", "it is not a date and time written as %m/%d/%Y"),
        ("Weitere am", "it is not a date and time like 2024-12-31 18:00"),
        ("Gruppen", "one of its words means no list of the profile"),
    ]
    mended = report.rejects.read_text(encoding="utf-8-sig")
    for wrong, right in (
        (",perhaps,", ",x,"), (",1.5,", ',"1,5",'), (",31.12.2025,", ",12/31/2025,"), (",soon,", ",2026-01-01,"),
        (",Klettern,", ",Wandern,"),
    ):  # fmt: skip
        mended = mended.replace(wrong, right, 1)
    report = load(world, profile, file, mended)
    assert (report.rows, report.new, report.rejected) == (5, 5, 0)
    assert lists_of(world, "e@x.org") == {"newsletter": "confirmed", "hiking": "pending"}


def test_a_dry_run_says_by_list_what_would_happen_and_writes_nothing(world: World, profile: Path, file: Path) -> None:
    text = HEAD + "a@x.org,,,,,12/31/2025,,x,,Wandern\nb@x.org,,,,,12/31/2025,,,,\nx,,,,,,,,,\n"
    dry = load(world, profile, file, text, dry_run=True)
    assert world.tables()["contacts"] == [] and not (world.settings.storage / "rejects").exists()
    real = load(world, profile, file)
    assert dry.lists == real.lists
    assert by_list(dry) == {"newsletter": (2, 0), "other": (1, 0), "hiking": (0, 1)}


def test_json_lines_by_a_profile(world: World, profile: Path, tmp_path: Path) -> None:
    row = {"Kontakt": "a@x.org", "Vorname": "Ann", "Sprache": None, "Ort": "", "Punkte": "2,5", "Am": "12/31/2025"}
    row |= {"Weitere": "x", "Weitere am": "", "Gruppen": "Wandern"}
    load(world, profile, tmp_path / "people.jsonl", json.dumps(row) + "\n")
    assert len(lists_of(world, "a@x.org")) == 3
    assert world.contact("a@x.org").attributes["points"] == 2.5


# --- the books, and whatever order things come in ---------------------------------------------------------------------

PEOPLE = [f"p{n}@x{n % 3}.org" for n in range(7)]
DATES = ["", "01/01/2026", "03/01/2026", "05/01/2026", "07/01/2026"]


def _rows(r: random.Random, *, unique: bool) -> list[list[str]]:
    dates = DATES if unique else DATES[1:]
    people = r.sample(PEOPLE, r.randrange(1, 7)) if unique else r.choices([*PEOPLE, "nobody"], k=r.randrange(1, 25))
    return [
        [
            r.choice([address, address.upper()]), r.choice(["", "Ann", "Bo"]), r.choice(["", "Deutsch", "fr"]),
            r.choice(["", "Linz"]), r.choice(["", "1,5"]), r.choice(dates), r.choice(["yes", "no", ""]),
            r.choice(["x", "-", ""]), "", r.choice(["", "Alt"]),
        ]
        for address in people
    ]  # fmt: skip


def _happen(world: World, r: random.Random) -> None:
    address, when = r.choice(PEOPLE), at("2026-02-01") + timedelta(days=r.randrange(120))
    with write(world.engine) as connection:
        scope = r.choice([EVERYWHERE, world.list_id, ensure_list(connection, "other", "Other")])
    match r.randrange(4):
        case 0:
            world.do(consent.unsubscribe, address, list_id=scope, method="form", source=None, at=when)
        case 1:
            reason = r.choice([reason for reason in SuppressionReason if reason is not SuppressionReason.ERASED])
            world.do(consent.suppress, address, reason=reason, source="x", list_id=scope, at=when)
        case 2:
            world.do(consent.suppress, address, reason=SuppressionReason.ERASED, source="x", at=when)
        case _:
            world.do(consent.suppress_domain, domain="x1.org", source="x")


def _write(file: Path, rows: list[list[str]]) -> None:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([HEAD.strip().split(","), *rows])


def _tables(world: World) -> dict[str, list[str]]:
    tables = world.tables()
    # evidence without a date is recorded with the time of the import
    tables["consent"] = [(*row[:3], min(row[3], at("2026-09-01")), *row[4:]) for row in tables["consent"]]
    return {name: sorted(map(repr, rows)) for name, rows in tables.items()}


@given(seed=st.integers(0, 2**32), batch_rows=st.integers(1, 9))
@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_pass_over_several_lists_is_a_pass_for_each(
    world: World, profile: Path, file: Path, seed: int, batch_rows: int
) -> None:
    """Of rows whose consent has one date for all lists, nobody twice."""
    common = SOME.replace(", consent: {at: Weitere am}", "")
    joins = {"newsletter": lambda row: row[6] == "yes", "other": lambda row: row[7] == "x"}
    alone = common[: common.index("lists:")] + "lists: [{list: LIST}]\n"
    ends = []
    for together in (True, False):
        emptied(world.engine)
        r = random.Random(seed)
        counts = []
        for _ in range(2):
            for _ in range(r.randrange(5)):
                _happen(world, r)
            rows = _rows(r, unique=True)
            if together:
                profile.write_text(common)
                _write(file, rows)
                report = load(world, profile, file, batch_rows=batch_rows)
                counts += [
                    (one.confirmed, one.undated, sum(one.kept_out.values()))
                    for one in report.lists
                    if one.name in joins
                ]
                assert report.outside == sum(not any(join(row) for join in joins.values()) for row in rows)
            else:
                for name, join in joins.items():
                    profile.write_text(alone.replace("LIST", name))
                    _write(file, [row for row in rows if join(row)])
                    (one,) = load(world, profile, file).lists
                    counts.append((one.confirmed, one.undated, sum(one.kept_out.values())))
        ends.append((counts, _tables(world)))
    assert ends[0] == ends[1]


@given(seed=st.integers(0, 2**32), batch_rows=st.integers(1, 9))
@hypothesis_settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_a_batch_ends_decides_nothing_and_every_row_is_accounted_for(
    small_world: World, profile: Path, file: Path, seed: int, batch_rows: int
) -> None:
    profile.write_text(SOME)
    world, ends = small_world, []
    for size in (batch_rows, 1000):
        emptied(world.engine)
        r = random.Random(seed)
        _write(file, _rows(r, unique=False))
        one = load(world, profile, file, batch_rows=size)
        assert one.rows == one.new + one.updated + one.unchanged + one.duplicates + one.rejected + one.outside
        ends.append((one.new, one.duplicates, one.rejected, one.outside, by_list(one), _tables(world)))
    assert ends[0] == ends[1]


# --- interrupted ------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from tests.contacts.test_profile_import import load
from tests.contacts.world import World
s = load_settings()
world = World(open_engine(s.url), s, 0)
print("ready", flush=True)
load(world, Path(sys.argv[1]), Path(sys.argv[2]), batch_rows=25)
"""
KILLS = 4


def _many(count: int) -> list[list[str]]:
    joins = [("x", "Wandern"), ("-", ""), ("x", ""), ("", "Wandern/Alt")]
    return [
        [f"P{n}@x{n % 7}.org", f"P{n}", "Deutsch", "Linz", f"{n},5", "12/31/2025", "", *_joining(*joins[n % 4])]
        for n in range(count)
    ]


def _joining(other: str, groups: str) -> list[str]:
    return [other, "2026-01-05", groups]


def torn(world: World) -> list[str]:
    """Contacts who lack one of the subscriptions that their row names."""
    tables = world.tables()
    found: dict[str, int] = {}
    for row in tables["subscriptions"]:
        found[row[0]] = found.get(row[0], 0) + 1
    expected = [3, 1, 2, 2]
    return [row[1] for row in tables["contacts"] if found.get(row[1], 0) != expected[int(row[1][1:].split("@")[0]) % 4]]


@pytest.mark.fault
def test_killed_at_random_moments_nobody_is_in_one_list_and_forgotten_in_another(
    world: World, profile: Path, file: Path, settings: Settings, tmp_path: Path
) -> None:
    rows = _many(1500)
    rows[500:500] = [["nobody", *[""] * 9], rows[17], [*rows[18][:3], "Graz", *rows[18][4:]]]
    _write(file, rows)
    moments = random.Random(20)
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(profile), str(file)],
            cwd=Path(__file__).parents[2], env=os.environ, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        before = len(world.tables()["contacts"])
        while len(world.tables()["contacts"]) == before:
            assert child.poll() is None, "the import reached its end before it was killed"
        time.sleep(moments.random() * 0.02)
        child.kill()
        child.wait()
        child.stdout.close()
        assert torn(world) == []
    report = load(world, profile, file, batch_rows=25)

    elsewhere = Settings(home=tmp_path / "elsewhere", identity_key=settings.identity().secret.hex())
    engine = open_engine(f"sqlite:///{tmp_path}/elsewhere.db")
    upgrade(engine)
    undisturbed = World.make(engine, elsewhere)
    expected = load(undisturbed, profile, file, batch_rows=25)
    assert world.tables() == undisturbed.tables()
    assert report.resumed_after > 0
    assert (report.rows, report.new, report.duplicates, report.rejected) == (1503, 1500, 2, 1)
    assert (report.lists, report.new) == (expected.lists, expected.new)
    engine.dispose()


def test_another_profile_is_another_import(world: World, profile: Path, file: Path) -> None:
    _write(file, _many(100))
    with write(world.engine) as connection:
        ensure_list(connection, "hiking", "Hiking")

    def interrupt(done: int, total: int | None) -> None:
        raise ZeroDivisionError

    request = ProfileRequest(load_profile(profile), batch_rows=20)
    with pytest.raises(ZeroDivisionError):
        import_contacts(world.engine, world.settings, file, request, interrupt)
    profile.write_text(PROFILE.replace("state: pending", "state: confirmed"))
    report = load(world, profile, file)
    assert (report.resumed_after, report.new, report.updated + report.unchanged) == (0, 80, 20)
    assert SubscriptionState.CONFIRMED in lists_of(world, "p0@x0.org")["hiking"]
