"""Which column is what."""

import pytest

from mailer_lib.contacts.attributes import AttributeKeyError
from mailer_lib.contacts.columns import Field, MappingError, map_columns, slug
from mailer_lib.terms import AttributeType

TYPES = {"customer_since": AttributeType.DATE, "vip": AttributeType.BOOLEAN}


def mapped(header: list[str], said: dict[str, str] | None = None, attributes: dict[str, str] | None = None):  # type: ignore[no-untyped-def]
    return map_columns("people.csv", header, TYPES, said or {}, attributes or {})


def test_well_known_headers_and_declared_attributes_match_by_themselves() -> None:
    header = [
        "E-Mail",
        "First name",
        "Nachname",
        "Language",
        "Time zone",
        "Customer since",
        "VIP",
        "Signed up at",
        "Shoe size",
    ]
    columns = mapped(header)
    assert columns.fields == {
        Field.ADDRESS: 0, Field.GIVEN_NAME: 1, Field.FAMILY_NAME: 2, Field.LOCALE: 3, Field.TIMEZONE: 4,
        Field.CONSENT_AT: 7,
    }  # fmt: skip
    assert columns.attributes == {"customer_since": 5, "vip": 6}
    assert columns.ignored == ("Shoe size",)


def test_what_is_said_wins_over_what_looks_alike() -> None:
    columns = mapped(["email", "work"], {"work": "address"})
    assert columns.fields[Field.ADDRESS] == 1
    assert columns.ignored == ("email",)


def test_an_attribute_under_another_header() -> None:
    assert mapped(["mail", "Kunde seit"], attributes={"Kunde seit": "customer_since"}).attributes == {
        "customer_since": 1
    }


def test_the_columns_of_a_rejects_file_are_known() -> None:
    columns = mapped(["E-Mail", "rejected_line", "rejected_column", "rejected_reason", "rejected_raw"])
    assert columns.ignored == ()


@pytest.mark.parametrize(
    ("header", "said", "words"),
    [
        (["name", "phone"], {}, "--map 'COLUMN=address'"),
        (["lena@example.org", "Lena"], {}, "has no header"),
        (["E-Mail"], {"E-Mial": "address"}, "did you mean 'E-Mail'"),
        (["E-Mail"], {"E-Mail": "adress"}, "can't be mapped"),
        (["a", "a"], {"a": "address"}, "2 columns called 'a'"),
        (["a", "b"], {"a": "address", "b": "address"}, "two columns are mapped"),
    ],
)
def test_what_cannot_be_mapped(header: list[str], said: dict[str, str], words: str) -> None:
    with pytest.raises(MappingError, match=words) as refused:
        mapped(header, said)
    assert "lena@" not in str(refused.value)


def test_an_attribute_must_be_declared() -> None:
    with pytest.raises(AttributeKeyError, match="did you mean vip"):
        mapped(["E-Mail", "V"], attributes={"V": "vipp"})


@pytest.mark.parametrize(
    ("header", "key"), [("Customer since", "customer_since"), ("Größe (cm)", "große_cm"), ("Été", "ete")]
)
def test_slug(header: str, key: str) -> None:
    assert slug(header) == key.replace("ß", "ss")
