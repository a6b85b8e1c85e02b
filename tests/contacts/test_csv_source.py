"""Reading a customer's file: no record is lost, whatever stands in it."""

import csv
import gzip
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.contacts.csv_source import MAX_LINE_CHARS, CsvError, open_csv
from mailer_lib.contacts.records import BadRecord, Record, SourceError, each

CELL = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\r\n\0"), max_size=8)


def read(path: Path, **options: str) -> list[Record | BadRecord]:
    with open_csv(path, **options) as source:
        return list(source)


def good(path: Path, **options: str) -> list[list[str]]:
    return [item.cells for item in read(path, **options) if isinstance(item, Record)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "people.csv"


def test_header_and_rows_with_their_lines(file: Path) -> None:
    file.write_text('mail,name\na@x.org,Ann\n\nb@x.org,"Bo\nBerg"\nc@x.org,Cy\n')
    with open_csv(file) as source:
        assert source.header == ["mail", "name"]
        items = list(source)
        assert source.bytes_read == source.size
    assert items == [Record(2, ["a@x.org", "Ann"]), Record(4, ["b@x.org", "Bo\nBerg"]), Record(6, ["c@x.org", "Cy"])]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(file: Path, delimiter: str) -> None:
    file.write_text(delimiter.join(["mail", '"na,m;e"', "city"]) + "\n" + delimiter.join(["a@x.org", "Ann", "Oslo"]))
    assert good(file) == [["a@x.org", "Ann", "Oslo"]]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems(file: Path, newline: str) -> None:
    file.write_bytes(newline.join(["mail,name", "a@x.org,Ann", "b@x.org,Bo"]).encode())
    assert good(file) == [["a@x.org", "Ann"], ["b@x.org", "Bo"]]


def test_a_byte_order_mark_is_no_part_of_the_header(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfmail\na@x.org\n")
    with open_csv(file) as source:
        assert source.header == ["mail"]


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252", "utf-16"])
def test_other_encodings_by_option(file: Path, encoding: str) -> None:
    file.write_bytes("mail,name\na@x.org,Jürgen\n".encode(encoding))
    assert good(file, encoding=encoding) == [["a@x.org", "Jürgen"]]


def test_wrong_bytes_cost_their_row_only(file: Path) -> None:
    file.write_bytes(b"mail,name\na@x.org,J" + b"\xfc" + "rgen\nb@x.org,Bø\n".encode())
    first, second = read(file)
    assert isinstance(first, BadRecord)
    assert first.line == 2
    assert "--encoding latin-1" in first.reason
    assert second == Record(3, ["b@x.org", "Bø"])


def test_an_open_quote_costs_its_line_only(file: Path) -> None:
    file.write_text('mail,name\n"a@x.org,Ann\nb@x.org,Bo\nc@x.org,"Cy, the third"\nd@x.org,Di\n')
    items = read(file)
    assert isinstance(items[0], BadRecord)
    assert (items[0].line, items[0].raw) == (2, '"a@x.org,Ann\n')
    assert items[1:] == [
        Record(3, ["b@x.org", "Bo"]), Record(4, ["c@x.org", "Cy, the third"]), Record(5, ["d@x.org", "Di"])
    ]  # fmt: skip


def test_an_open_quote_does_not_swallow_a_long_file(file: Path) -> None:
    rows = [f"p{n}@x.org,P{n}" for n in range(500)]
    file.write_text("mail,name\n" + '"oops@x.org,Oops\n' + "\n".join(rows) + "\n")
    items = read(file)
    assert [i.line for i in items if isinstance(i, BadRecord)] == [2]
    assert [i.cells[0] for i in items if isinstance(i, Record)] == [f"p{n}@x.org" for n in range(500)]
    assert items[-1].line == 502


def test_a_line_without_end_is_skipped_and_said(file: Path) -> None:
    file.write_text("mail,name\na@x.org,Ann\n" + "x" * (3 * MAX_LINE_CHARS) + "\nb@x.org,Bo\n")
    items = read(file)
    assert [type(i) for i in items].count(BadRecord) == 1
    assert [i.line for i in items if isinstance(i, BadRecord)] == [3]
    assert Record(4, ["b@x.org", "Bo"]) in items


def test_nul_bytes_come_through_for_the_row_to_be_judged(file: Path) -> None:
    file.write_bytes(b"mail,name\na@x.org,A\0nn\n")
    assert good(file) == [["a@x.org", "A\0nn"]]


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_an_error_that_names_it(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(CsvError, match=r"people\.csv is empty"):
        read(file)


def test_utf_16_that_was_not_asked_for(file: Path) -> None:
    file.write_bytes("mail\na@x.org\n".encode("utf-16"))
    with pytest.raises(CsvError, match="--encoding utf-16"):
        read(file)


@pytest.mark.parametrize(
    ("options", "words"), [({"encoding": "klingon"}, "klingon"), ({"delimiter": ";;"}, "one character")]
)
def test_options_that_cannot_be(file: Path, options: dict[str, str], words: str) -> None:
    file.write_text("mail\n")
    with pytest.raises(CsvError, match=words):
        read(file, **options)


@given(st.lists(st.lists(CELL, min_size=2, max_size=4), max_size=20))
def test_whatever_a_csv_writer_wrote_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["mail", "name"], *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    assert good(path, delimiter=",") == [row for row in rows if any(row)]


@given(st.lists(st.text(st.sampled_from('ab",\t é'), max_size=12), min_size=1, max_size=30))
def test_every_line_is_in_exactly_one_record(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    """Even of garbage: the lines of good and bad records together are the lines of the file."""
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_text("h1,h2\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    covered: list[int] = []
    for item in read(path, delimiter=","):
        if isinstance(item, BadRecord):
            assert item.raw == lines[item.line - 2] + "\n"
            covered.append(item.line)
        else:
            covered += range(item.line, item.line + 1 + sum(cell.count("\n") for cell in item.cells))
    assert len(covered) == len(set(covered))
    left_out = set(range(2, len(lines) + 2)) - set(covered)
    assert not any(any(next(csv.reader([lines[number - 2]]), [])) for number in left_out)


# --- blocks -----------------------------------------------------------------------------------------------------------


@given(
    parts=st.lists(
        st.sampled_from(["a@x.org", ",", "\n", "\r\n", "\r", '"', "é", "\udcfc", " ", "x" * 30, '"b,c"', "\n\n"]),
        max_size=40,
    ),
    block_chars=st.integers(1, 60),
)
def test_a_file_is_the_same_however_it_falls_into_blocks(parts: list[str], block_chars: int) -> None:
    """Read a character at a time, every record goes the exact way; that is the reference."""
    text = "mail,name\n" + "".join(parts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "people.csv"
        path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        with open_csv(path) as source:
            items = list(source)
        with open_csv(path) as source:
            source.block_chars = block_chars
            assert list(source) == items
        with open_csv(path) as source:
            assert list(each(source.one_by_one())) == items


def test_a_compressed_file_is_told_by_its_content(file: Path) -> None:
    content = gzip.compress(b"mail,name\n" + b"a@x.org,Ann\n" * 20_000)
    file.write_bytes(content)
    assert len(good(file)) == 20_000
    file.write_bytes(content[:-20])
    with pytest.raises(SourceError, match="not copied to its end"):
        good(file)
