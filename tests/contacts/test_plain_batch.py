"""The quick way into the database gives what the exact way gives: the same tables and the same counts."""

import random
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mailer_lib.contacts import consent
from mailer_lib.contacts.precedence import EVERYWHERE, Standing, weigh
from mailer_lib.settings import Settings
from mailer_lib.terms import SubscriptionState, SuppressionReason
from tests.contacts.emptied import emptied
from tests.contacts.exact_import import import_exactly
from tests.contacts.world import World, at

HEAD = "E-Mail,First name,City,Points,Signed up at,Signed up from\n"
ADDRESSES = [f"p{n}@x{n % 3}.org" for n in range(8)]
DATES = ["", "2026-01-01", "2026-03-01", "2026-05-01T10:00:00+02:00", "2026-07-01"]


@given(date=st.datetimes(timezones=st.just(at("2026-01-01").tzinfo)), requested=st.booleans())
def test_without_a_refusal_the_time_of_the_consent_decides_nothing(date: datetime, requested: bool) -> None:
    for state in (None, SubscriptionState.CONFIRMED, SubscriptionState.PENDING):
        standing = Standing(state)
        assert weigh(requested, date, standing) == weigh(requested, None, standing)


def _file(r: random.Random) -> str:
    rows = [
        ",".join(
            [
                r.choice(ADDRESSES).upper() if r.random() < 0.2 else r.choice([*ADDRESSES, *ADDRESSES, "nobody"]),
                r.choice(["", "Ann", "Bo"]), r.choice(["", "Linz", "Graz"]), r.choice(["", "1", "1.0", "2", "x"]),
                r.choice(DATES), r.choice(["/shop", "/fair"]),
            ]
        )
        for _ in range(r.randrange(25))
    ]  # fmt: skip
    return HEAD + "".join(f"{row}\n" for row in rows)


def _happen(world: World, r: random.Random) -> None:
    """Something that befalls a person between two imports."""
    address, when = r.choice(ADDRESSES), at("2026-02-01") + timedelta(days=r.randrange(120))
    match r.randrange(6):
        case 0:
            scope = r.choice([None, world.list_id])
            world.do(consent.unsubscribe, address, list_id=scope, method="form", source=None, at=when)
        case 1 | 2:
            scope = r.choice([EVERYWHERE, world.list_id])
            world.do(
                consent.suppress, address, reason=r.choice(list(SuppressionReason)), source="x", list_id=scope, at=when
            )
        case 3:
            world.do(consent.lift, address, by="ann")
        case 4:
            world.do(consent.suppress_domain, domain="x1.org", source="x")
        case _:
            world.do(consent.confirm, address, list_id=world.list_id, method="form", source="/form", at=when)


@given(
    seed=st.integers(0, 2**32), requested=st.lists(st.booleans(), min_size=3, max_size=3), batch_rows=st.integers(1, 12)
)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_ends_as_if_everybody_had_been_weighed_one_by_one(
    world: World, tmp_path: Path, seed: int, requested: list[bool], batch_rows: int
) -> None:
    ends = []
    for load in (world.load, SimpleNamespace(load=lambda *a, **o: import_exactly(world, *a, **o)).load):
        emptied(world.engine)
        r = random.Random(seed)
        reports = []
        for asked in requested:
            path = tmp_path / "people.csv"
            path.write_text(_file(r))
            state = SubscriptionState.PENDING if asked else SubscriptionState.CONFIRMED
            report = load(path, consent=state, batch_rows=batch_rows)
            reports.append(
                (report.rows, report.new, report.updated, report.unchanged, report.duplicates, report.rejected,
                 report.confirmed, report.pending, dict(report.kept_out), report.undated)
            )  # fmt: skip
            for _ in range(r.randrange(5)):
                _happen(world, r)
        tables = world.tables()
        # evidence without a date is recorded with the time of the import
        tables["consent"] = [(*row[:3], min(row[3], at("2026-09-01")), *row[4:]) for row in tables["consent"]]
        tables["suppressions"] = [row[:3] for row in tables["suppressions"]]
        ends.append((reports, {name: sorted(map(repr, rows)) for name, rows in tables.items()}))
    assert ends[0] == ends[1]


def test_a_value_that_looks_like_null_or_an_escape_is_stored_as_it_is(world: World, tmp_path: Path) -> None:
    names = ["NULL", "\\N", "\\", "a\\tb", "x\\"]
    rows = "".join(f"p{n}@x.org,{name},C:\\{name},,2026-01-01,\\N\n" for n, name in enumerate(names))
    world.load(tmp_path / "people.csv", HEAD + rows)
    for n, name in enumerate(names):
        found = world.contact(f"p{n}@x.org")
        assert (found.given_name, found.attributes["city"], found.family_name) == (name, f"C:\\{name}", None)


@pytest.mark.mariadb
def test_a_server_that_takes_no_files_gets_statements(
    mariadb_server,
    mariadb_url: str,
    settings: Settings,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    from mailer_lib.database.engine import open_engine

    engine = open_engine(mariadb_url)
    world = World.make(engine, settings)
    mariadb_server.execute("SET GLOBAL local_infile = 0")
    try:
        report = world.load(tmp_path / "people.csv", HEAD + "a@x.org,Ann,Linz,1,2026-01-01,/shop\n")
    finally:
        mariadb_server.execute("SET GLOBAL local_infile = 1")
    assert (report.new, report.without_load_data) == (1, True)
    assert world.contact("a@x.org").given_name == "Ann"
    engine.dispose()
