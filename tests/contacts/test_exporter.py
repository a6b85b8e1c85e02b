"""import(export(x)) = x, in every format."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mailer_lib.contacts import attributes, consent
from mailer_lib.contacts.export_files import ExportError, write_file
from mailer_lib.contacts.exporter import export_header, export_rows
from mailer_lib.database.engine import snapshot, write
from mailer_lib.terms import AttributeType, SuppressionReason
from tests.contacts.emptied import emptied
from tests.contacts.world import World, at

NAMES = ["", "Åse", 'O\'Neil "x"', "NULL", "\\N", "a,b", "=1+1", "李"]
HEAD = "email,given_name,family_name,locale,timezone,language,city,points,vip,since,likes,at,from,words,ip\n"


def export(world: World, path: Path, list_id: int | None) -> int:
    with snapshot(world.engine) as connection:
        return write_file(path, export_header(connection), export_rows(connection, list_id=list_id))


def _people(r: random.Random) -> str:
    rows = [
        [
            f"P{n}@{r.choice(['X.org', 'bücher.example'])}", r.choice(NAMES), r.choice(NAMES), r.choice(["", "de-AT"]),
            r.choice(["", "Europe/Oslo"]), r.choice(["", "Norsk"]), r.choice(NAMES),
            r.choice(["", "12", "1.50", "0.000000000001", "-999999999999999", "2.0"]), r.choice(["", "yes", "no"]),
            r.choice(["", "2024-12-31"]), r.choice(["", "|", "a|b", "c"]),
            f"2026-03-{r.randrange(1, 29):02}T10:00:{r.randrange(60):02}.{r.randrange(10**6):06}Z",
            r.choice(["/shop", "/fair"]),
            r.choice(["", "News, please"]), r.choice(["", "192.0.2.7"]),
        ]
        for n in range(r.randrange(12))
    ]  # fmt: skip
    return HEAD + "".join(",".join('"' + c.replace('"', '""') + '"' for c in row) + "\n" for row in rows)


@given(seed=st.integers(0, 2**32), name=st.sampled_from(["x.csv", "x.csv.gz", "x.jsonl", "x.jsonl.gz", "x.parquet"]))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_exported_is_imported_as_it_was(world: World, tmp_path: Path, seed: int, name: str) -> None:
    emptied(world.engine)
    with write(world.engine) as connection:
        for key, type_ in (
            ("since", AttributeType.DATE),
            ("likes", AttributeType.TEXT_LIST),
            ("language", AttributeType.TEXT),
        ):
            attributes.declare(connection, key, type_)
    said = {"consent_at": "at", "consent_source": "from", "consent_wording": "words", "consent_ip": "ip"}
    first = world.load(tmp_path / "people.csv", _people(random.Random(seed)), **said)
    assert first.rejected == 0
    before = world.tables()
    path = tmp_path / name
    path.unlink(missing_ok=True)
    assert export(world, path, world.list_id) == first.new
    assert path.stat().st_mode & 0o777 == 0o600
    emptied(world.engine)
    if first.new or name.endswith(("csv", "csv.gz", "parquet")):  # JSON Lines of nobody have no columns
        report = world.load(path)
        assert (report.new, report.rejected, report.ignored_columns) == (first.new, 0, ())
    assert world.tables() == before


def test_who_has_left_or_is_suppressed_is_not_exported_with_a_consent(world: World, tmp_path: Path) -> None:
    names = ["in", "left", "manual", "elsewhere", "pending"]
    world.load(tmp_path / "p.csv", "email\n" + "".join(f"{n}@x.org\n" for n in names[:4]) + "a@barred.org\n")
    world.do(consent.unsubscribe, "left@x.org", list_id=None, method="form", source=None, at=at("2026-06-01"))
    world.do(consent.suppress, "manual@x.org", reason=SuppressionReason.MANUAL, source="x", at=at("2026-06-01"))
    world.do(
        consent.suppress, "elsewhere@x.org", reason=SuppressionReason.MANUAL, source="x", list_id=world.list_id + 99,
        at=at("2026-06-01"),
    )  # fmt: skip
    world.do(consent.suppress_domain, domain="barred.org", source="x")
    with snapshot(world.engine) as connection:
        assert [row[0] for row in export_rows(connection, list_id=world.list_id)] == ["in@x.org", "elsewhere@x.org"]
        assert len(list(export_rows(connection))) == 5


def test_a_file_that_is_there_is_left_alone(small_world: World, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export(small_world, path, None)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.csv"]
