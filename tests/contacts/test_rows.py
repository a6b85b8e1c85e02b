"""One row: contact, evidence, or the reason why not."""

from datetime import UTC, datetime

import pytest

from mailer_lib.contacts.attributes import ValueProblemError
from mailer_lib.contacts.columns import map_columns
from mailer_lib.contacts.rows import ConsentDefaults, ParsedRow, RowParser, RowProblemError, parse_locale, parse_moment
from mailer_lib.terms import AttributeType

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TYPES = {
    "city": AttributeType.TEXT, "since": AttributeType.DATE, "points": AttributeType.NUMBER,
    "vip": AttributeType.BOOLEAN,
}  # fmt: skip
HEADER = [
    "E-Mail",
    "First name",
    "Language",
    "Time zone",
    "City",
    "Since",
    "Points",
    "VIP",
    "Signed up at",
    "Sign-up IP",
]
ROW = [
    "Lena@Example.org",
    "Lena",
    "de_at",
    "europe/vienna",
    "Linz",
    "31.12.2024",
    "12.5",
    "Ja",
    "2025-01-02T03:04:05Z",
    "192.0.2.1",
]


def parse(row: list[str], defaults: ConsentDefaults | None = None) -> ParsedRow:
    columns = map_columns("people.csv", HEADER, TYPES, {}, {})
    return RowParser(columns, TYPES, defaults or ConsentDefaults(None, "people.csv", None), NOW).parse(row)


def changed(column: str, value: str) -> list[str]:
    return [value if name == column else cell for name, cell in zip(HEADER, ROW, strict=True)]


def test_a_good_row() -> None:
    row = parse(ROW)
    assert row.address.normalised == "lena@example.org"
    assert row.fields == {"given_name": "Lena", "locale": "de-AT", "timezone": "Europe/Vienna"}
    assert row.attributes == {"city": "Linz", "since": "2024-12-31", "points": 12.5, "vip": True}
    assert row.evidence[0].at == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (row.evidence[0].source, row.evidence[0].ip) == ("people.csv", "192.0.2.1")


def test_empty_cells_say_nothing() -> None:
    row = parse(["lena@example.org", *[""] * (len(HEADER) - 1)])
    assert (row.fields, row.attributes) == ({}, {})
    assert row.evidence[0].at is None


def test_one_date_for_all_counts_where_the_cell_is_empty() -> None:
    assert parse(changed("Signed up at", ""), ConsentDefaults(NOW, "fair", "yes")).evidence[0].at == NOW
    assert parse(ROW, ConsentDefaults(NOW, "fair", "yes")).evidence[0].at != NOW


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("E-Mail", "lena.example.org", "no @"),
        ("First name", "x" * 201, "longer than 200"),
        ("First name", "Le\x07na", "control character"),
        ("City", "Li\0nz", "control character"),
        ("Language", "English (UK)", "language tag"),
        ("Time zone", "Mars/Olympus", "time zone"),
        ("Since", "12/31/2024", "date like"),
        ("Since", "2024-02-30", "no such day"),
        ("Points", "1.234,5", "number like"),
        ("Points", "nan", "number like"),
        ("Points", "1e400", "number like"),
        ("VIP", "maybe", "yes nor no"),
        ("City", "x" * 1001, "longer than 1000"),
        ("Signed up at", "yesterday", "date and time"),
        ("Signed up at", "2206-01-01", "future"),
        ("Signed up at", "0200-01-01", "before 1990"),
        ("Sign-up IP", "300.1.2.3", "IP address"),
    ],
)
def test_what_is_wrong_is_said_by_column(column: str, value: str, reason: str) -> None:
    with pytest.raises(RowProblemError, match=reason) as refused:
        parse(changed(column, value))
    assert refused.value.column == column
    assert value not in str(refused.value)


@pytest.mark.parametrize("cells", [ROW[:-1], [*ROW, "?"]])
def test_a_ragged_row(cells: list[str]) -> None:
    with pytest.raises(RowProblemError, match=f"it has {len(cells)} columns where the header has {len(HEADER)}"):
        parse(cells)


def test_a_cell_is_one_of_the_choices_or_several_texts() -> None:
    header = ["E-Mail", "tier", "interests"]
    types = {"tier": AttributeType.ENUM, "interests": AttributeType.TEXT_LIST}
    columns = map_columns("people.csv", header, types, {}, {})
    parser = RowParser(columns, types, ConsentDefaults(None, "people.csv", None), NOW, {"tier": ("gold",)})
    row = parser.parse(["lena@example.org", "gold", "snow|hiking"])
    assert row.attributes == {"tier": "gold", "interests": ["snow", "hiking"]}
    with pytest.raises(RowProblemError, match="none of the choices gold") as caught:
        parser.parse(["lena@example.org", "silver", ""])
    assert caught.value.column == "tier"


def test_white_space_in_names_becomes_one_space() -> None:
    assert parse(changed("First name", " Anna\u00a0\n Lena ")).fields["given_name"] == "Anna Lena"


@pytest.mark.parametrize(
    ("text", "tag"),
    [("DE", "de"), ("pt_br", "pt-BR"), ("zh-hant-tw", "zh-Hant-TW"), ("es-419", "es-419"), (" en ", "en")],
)
def test_language_tags(text: str, tag: str) -> None:
    assert parse_locale(text) == tag


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-12-31", datetime(2024, 12, 31, tzinfo=UTC)),
        ("2024-12-31 18:00", datetime(2024, 12, 31, 18, tzinfo=UTC)),
        ("2024-12-31T18:00:00+02:00", datetime(2024, 12, 31, 16, tzinfo=UTC)),
        ("31.12.2024 18:00", datetime(2024, 12, 31, 18, tzinfo=UTC)),
        ("1.2.2024", datetime(2024, 2, 1, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize("text", ["12/31/2024", "31.12.2024 at noon", "", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueProblemError):
        parse_moment(text)
