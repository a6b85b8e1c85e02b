"""An import profile: what may be said in it, and how each mistake is named. Nothing here touches a contact."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mailer_lib.contacts import profile_schema
from mailer_lib.contacts.attributes import ValueProblemError
from mailer_lib.contacts.profile import Unknown
from mailer_lib.contacts.profile_file import ProfileError, load_profile
from mailer_lib.contacts.profile_plan import ProfileRequest
from mailer_lib.contacts.profile_readers import (
    date_reader,
    folded,
    items_reader,
    joins_by_words,
    joins_if_yes,
    moment_reader,
    number_reader,
    yes_no_reader,
)
from tests.contacts.world import World

SCHEMA = Path(__file__).parents[2] / "docs" / "import-profile.schema.json"
DOCS = Path(__file__).parents[2] / "docs" / "contacts.md"
GOOD = """\
fields:
  address: E-Mail
consent:
  state: confirmed
lists:
  - list: newsletter
"""
HEADER = ["E-Mail", "Ort", "Punkte", "VIP", "News", "Gruppen", "Wann"]


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("  address: E-Mail", "  given_name: X", "profile.yaml, line 1, fields.address: is missing; add it"),
        ("state: confirmed", "state: sure", "profile.yaml, line 4, consent.state: input should be 'confirmed' or"),
        ("- list: newsletter", "- lst: newsletter", "profile.yaml, line 6, lists[0].lst: there is no such field"),
        (
            "- list: newsletter", "- list: newsletter\n  - {words: {Weekly: newsletter}}",
            "profile.yaml, line 7, lists[1]: say the column that holds the words",
        ),
        (
            "- list: newsletter", "- {list: newsletter, yes: [Ja]}",
            "profile.yaml, line 6, lists[0]: say the column that holds yes or no",
        ),
        (
            "- list: newsletter", "- {list: newsletter, column: News, no: [nee]}",
            "profile.yaml, line 6, lists[0]: say the words for yes too",
        ),
        ("- list: newsletter", "- {column: X}", "profile.yaml, line 6, lists[0]: say either list, or words"),
        ("  address: E-Mail", "  address: E-Mail\n  address: Mail", "profile.yaml, line 3, fields.address: it is said"),
        ("  address: E-Mail", "  address: E-Mail\n  locale: {}", "fields.locale: say a column, a value for all rows"),
        ("lists:", "lists: [", "not valid YAML"),
        ("fields:", "felder:", "profile.yaml, line 1, felder: there is no such field"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, GOOD.replace(before, after, 1))


def test_a_profile_that_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path, "- a\n") == "profile.yaml: a profile is a mapping with fields:, consent: and lists:"
    with pytest.raises(ProfileError, match="there is no file"):
        load_profile(tmp_path / "elsewhere.yaml")


def planned(world: World, tmp_path: Path, text: str, header: list[str] | None = None) -> str:
    """What the profile and the file's header are refused with; empty when they aren't."""
    profile, file = tmp_path / "profile.yaml", tmp_path / "people.csv"
    profile.write_text(text)
    file.write_text(",".join(header or HEADER) + "\n")
    from mailer_lib.contacts.importer import import_contacts

    try:
        import_contacts(world.engine, world.settings, file, ProfileRequest(load_profile(profile), dry_run=True))
    except ProfileError as error:
        return str(error).replace(f"{tmp_path}/", "")
    return ""


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("  - {list: other, column: Nws}", "line 7, lists[1].column: people.csv has no column 'Nws'; did you mean"),
        ("  - {list: othr, column: News}", "line 7, lists[1].list: there is no list 'othr'; did you mean other?"),
        ("  - {list: newsletter}", "line 7, lists[1].list: list 'newsletter' is named by another rule already"),
        ("  - {column: Gruppen, words: {A: ''}}", "lists[1].words: none of the words means a list"),
        (
            "  - {column: Gruppen, words: {A: other, a: ''}}",
            "lists[1].words.a: the same word, in another case, means another list",
        ),
        ("  - {list: other, column: News, yes: [x], no: [X]}", "lists[1].no: 'x' means yes already"),
        ("  - {list: other, consent: {at: {value: soon}}}", "lists[1].consent.at.value: it is not a date and time"),
        ("  - {list: other, consent: {at: {value: 2999-01-01}}}", "consent.at.value: it lies in the future"),
        ("  - {list: other, consent: {ip: {column: I}}}", "lists[1].consent.ip.column: people.csv has no column 'I'"),
        ("attributes: {citty: Ort}", "line 7, attributes.citty: there is no attribute 'citty'; did you mean city?"),
        ("attributes: {city: {column: Ort, decimal: ','}}", "attributes.city.decimal: it is of a number"),
        ("attributes: {points: {column: Punkte, value: many}}", "attributes.points.value: it is not a number"),
        (
            "attributes: {points: {column: Punkte, decimal: ',', thousands: ','}}",
            "attributes.points.thousands: it can't be the decimal sign too",
        ),
        ("other_columns: refuse", "other_columns: people.csv has columns that the profile doesn't name: 'Ort', "),
    ],
)
def test_what_a_file_or_an_installation_lacks_is_said_before_a_row_is_read(
    small_world: World, tmp_path: Path, more: str, sentence: str
) -> None:
    assert sentence in planned(small_world, tmp_path, GOOD + more + "\n")


def test_all_problems_are_said_at_once(small_world: World, tmp_path: Path) -> None:
    text = GOOD.replace("E-Mail", "Post") + "attributes: {city: Stadt, points: Zahl}\n"
    assert len(planned(small_world, tmp_path, text).splitlines()) == 3


# --- how values are written -------------------------------------------------------------------------------------------

FORMATS = st.sampled_from(["%m/%d/%Y", "%d.%m.%Y", "%Y%m%d", "%d %B %Y"])


@given(day=st.dates(date(1900, 1, 1), date(2100, 1, 1)), format_=FORMATS)
def test_a_date_is_read_as_it_was_written(day: date, format_: str) -> None:
    assert date_reader(format_)(f" {day.strftime(format_)} ") == day.isoformat()


@given(moment=st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)))
def test_a_moment_is_utc_as_written_or_with_its_offset(moment: datetime) -> None:
    text = moment.strftime("%m/%d/%Y %H:%M:%S")
    assert moment_reader("%m/%d/%Y %H:%M:%S")(text) == moment.replace(microsecond=0, tzinfo=UTC)
    assert moment_reader("%m/%d/%Y %H:%M:%S %z")(f"{text} +0000") == moment.replace(microsecond=0, tzinfo=UTC)


@given(
    number=st.decimals(-999_999_999, 999_999_999, places=3), signs=st.sampled_from([(",", "."), (".", ","), (",", " ")])
)
def test_a_number_is_read_as_it_was_written(number: Any, signs: tuple[str, str]) -> None:
    decimal, thousands = signs
    written = f"{number:,.3f}".replace(",", "T").replace(".", decimal).replace("T", thousands)
    assert number_reader(decimal, thousands)(written) == float(number)
    assert number_reader(decimal, thousands)(written.replace(thousands, "")) == float(number)


@pytest.mark.parametrize("text", ["1.2345,6", "12.34", "1,2,3", "1.234.5", "", "1e5", "٣"])
def test_a_sign_in_the_wrong_place_is_not_guessed_away(text: str) -> None:
    with pytest.raises(ValueProblemError):
        number_reader(",", ".")(text)


def test_a_decimal_comma_alone_refuses_a_point() -> None:
    assert number_reader(",", None)("1234,5") == 1234.5
    with pytest.raises(ValueProblemError, match="like 1234,5"):
        number_reader(",", None)("1.234")


def test_yes_and_no_in_the_files_words() -> None:
    read = yes_no_reader(["Abonniert"], ["abgemeldet"])
    assert (read(" ABONNIERT "), read("abgemeldet")) == (True, False)
    with pytest.raises(ValueProblemError, match="none of the profile's words"):
        read("yes")


def test_items_between_other_signs_with_words_of_ours() -> None:
    assert items_reader(";", {"Wandern": "hiking"})("wandern; snow;;snow") == ["hiking", "snow"]


@given(
    st.dictionaries(st.text("abcÄß", min_size=1, max_size=4).filter(str.strip), st.integers(0, 7), max_size=6),
    st.lists(st.text("abcÄß ", max_size=4), max_size=6),
    st.sampled_from([",", ";", "||"]),
)
def test_a_cell_of_words_joins_the_lists_that_its_words_mean(
    words: dict[str, int], cell: list[str], separator: str
) -> None:
    bits = {folded(word): bit for word, bit in words.items()}
    known = [bits[folded(word)] for word in cell if folded(word) in bits]
    strangers = [word for word in cell if word.strip() and folded(word) not in bits]
    expected = 0
    for bit in known:
        expected |= bit
    assert joins_by_words(bits, separator, Unknown.IGNORE)(separator.join(cell)) == expected
    strict = joins_by_words(bits, separator, Unknown.REJECT)
    if strangers:
        with pytest.raises(ValueProblemError):
            strict(separator.join(cell))
    else:
        assert strict(separator.join(cell)) == expected


def test_an_empty_cell_joins_nothing() -> None:
    read = joins_if_yes(4, (), ())
    assert [read(text) for text in ("yes", "", " ", "nein")] == [4, 0, 0, 0]
    with pytest.raises(ValueProblemError):
        read("perhaps")


# --- the published schema ---------------------------------------------------------------------------------------------


def test_the_published_schema_is_current() -> None:
    command = "python -m mailer_lib.contacts.profile_schema docs/import-profile.schema.json"
    assert SCHEMA.read_text(encoding="utf-8") == profile_schema.text(), f"write it again: {command}"
    Draft202012Validator.check_schema(profile_schema.schema())


def example() -> str:
    """The profile in docs/contacts.md."""
    text = DOCS.read_text(encoding="utf-8")
    return text.split("```yaml\n", 1)[1].split("```", 1)[0]


def test_the_example_in_the_docs_is_a_profile_and_valid_for_editors(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text(example())
    assert load_profile(path).profile.fields.address
    data = json.loads(json.dumps(yaml.load(example(), Loader=yaml.BaseLoader)))
    Draft202012Validator(profile_schema.schema()).validate(data)


@pytest.mark.parametrize(
    "text", [GOOD.replace("list:", "lst:"), GOOD.replace("confirmed", "sure"), GOOD.replace("fields:", "felder:")]
)
def test_an_editor_sees_the_same_mistakes(text: str) -> None:
    data = yaml.load(text, Loader=yaml.BaseLoader)
    assert not Draft202012Validator(profile_schema.schema()).is_valid(data)
