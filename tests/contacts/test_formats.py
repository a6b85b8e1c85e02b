"""CSV, JSON Lines and Parquet with the same people are the same import."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mailer_lib.contacts.formats import FileFormat, format_of, open_source
from mailer_lib.contacts.records import BadRecord, Record, SourceError, each
from tests.contacts.world import World

PEOPLE = [
    {"email": "lena@x.org", "first_name": "Lena", "points": 12, "vip": True, "customer_since": "2024-12-31"},
    {"email": "bo@x.org", "first_name": None, "points": 1.5, "vip": False, "customer_since": None},
    {"email": "cy@x.org", "first_name": 'Cy, "the third"', "points": None, "vip": None, "customer_since": "2025-01-01"},
]


def items(path: Path, **options: object) -> list[Record | BadRecord]:
    with open_source(path, **options) as source:  # type: ignore[arg-type]
        return list(each(source.blocks()))


def json_lines(people: list[dict[str, object]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in people)


@pytest.mark.parametrize("name", ["people.csv", "people.csv.gz", "people.jsonl", "people.ndjson.gz", "people.parquet"])
def test_all_formats_are_the_same_import(small_world: World, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pa.Table.from_pylist(PEOPLE)
    if name.endswith("parquet"):
        pq.write_table(table, path)
    else:
        text = json_lines(PEOPLE) if "json" in name else (
            "email,first_name,points,vip,customer_since\nlena@x.org,Lena,12,true,2024-12-31\nbo@x.org,,1.5,false,\n"
            'cy@x.org,"Cy, ""the third""",,,2025-01-01\n'
        )  # fmt: skip
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    report = small_world.load(path, consent_at="2026-03-01")
    assert (report.rows, report.new, report.ignored_columns) == (3, 3, ())
    lena, bo, cy = (small_world.contact(f"{who}@x.org") for who in ("lena", "bo", "cy"))
    assert (lena.given_name, lena.attributes) == ("Lena", {"points": 12, "vip": True, "customer_since": "2024-12-31"})
    assert (bo.given_name, bo.attributes) == (None, {"points": 1.5, "vip": False})
    assert (cy.given_name, cy.attributes) == ('Cy, "the third"', {"customer_since": "2025-01-01"})


@pytest.mark.parametrize(
    ("name", "format_"),
    [("a.csv", "csv"), ("a.CSV.GZ", "csv"), ("a.txt", "csv"), ("a.jsonl.gz", "jsonl"), ("a.Parquet", "parquet")],
)
def test_the_name_tells_the_format(name: str, format_: str) -> None:
    assert format_of(Path(name)) == format_


def test_what_is_no_object_costs_its_line_only(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    good = '{"email": "a@x.org", "tags": ["a", "b"]}'
    bad = [
        "{",
        "[1]",
        '{"email": {"x": 1}}',
        '{"email": "a", "tags": ["a|b"]}',
        '{"e": "\udcff"}',
        '{"email": "' + "x" * 70_000,
    ]
    path.write_text("\n".join([good, *bad, "", good]) + "\n", errors="surrogateescape")
    found = items(path)
    assert [item.line for item in found] == [1, 2, 3, 4, 5, 6, 7, 9]
    assert [isinstance(item, BadRecord) for item in found] == [False, *[True] * 6, False]
    assert found[-1].cells == ["a@x.org", "a|b"]


def test_a_key_that_comes_late_is_rejected_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(
        json_lines([{"email": f"p{n}@x.org"} for n in range(1000)] + [{"email": "q@x.org", "city": "Linz"}])
    )
    *_, last = items(path)
    assert isinstance(last, BadRecord)
    assert "'city'" in last.reason


def test_values_of_parquet_as_cells(tmp_path: Path) -> None:
    from datetime import UTC, date, datetime

    path = tmp_path / "people.parquet"
    columns = {
        "email": pa.array(["a@x.org", "b@x.org"]).dictionary_encode(), "n": [float(3), None], "m": [7, None],
        "at": [datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), None], "day": [date(2025, 1, 2), None],
        "tags": [["a", "b"], []], "small": [1e-7, 1e20],
    }  # fmt: skip
    pq.write_table(pa.table(columns), path)
    assert [item.cells for item in items(path)] == [
        ["a@x.org", "3", "7", "2025-01-02T03:04:05+00:00", "2025-01-02", "a|b", "0.0000001"],
        ["b@x.org", "", "", "", "", "|", "100000000000000000000"],
    ]


def test_a_value_without_a_form_costs_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "people.parquet"
    pq.write_table(pa.table({"email": ["a@x.org", "b@x.org"], "more": [{"x": 1}, None]}), path)
    first, second = items(path)
    assert isinstance(first, BadRecord)
    assert "'more'" in first.reason
    assert second == Record(2, ["b@x.org", ""])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"[]\n", "no JSON object"),
        ("a.csv.gz", gzip.compress(b"x" * 1000, mtime=0)[:20], "is damaged"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words):
        items(path)


def test_an_encoding_belongs_to_csv(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="of CSV files"):
        items(tmp_path / "a.jsonl", encoding="latin-1")
    assert FileFormat("jsonl") is FileFormat.JSON_LINES
