"""An import profile: how the files of one source are to be read, written once as YAML. What a person may write in it.

All scalars are read as texts, so that ``yes``, ``null`` and ``2024-12-31`` stay what was written.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_LISTS = 50
MAX_WORDS = 10_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Column = Annotated[str, StringConstraints(min_length=1), Field(description="A column of the file, by its header")]
Words = dict[str, str]


class State(StrEnum):
    CONFIRMED = "confirmed"
    PENDING = "pending"


class OtherColumns(StrEnum):
    IGNORE = "ignore"
    REFUSE = "refuse"
    ATTRIBUTES = "attributes"


class Unknown(StrEnum):
    REJECT = "reject"
    IGNORE = "ignore"


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _or_column(schema: dict[str, Any]) -> None:
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "minLength": 1, "description": "the column's header"}, whole]


class Said(Part):
    """A column, a value for all rows, or both: the value is for rows whose cell is empty. A text alone is a column."""

    model_config = ConfigDict(json_schema_extra=_or_column)

    column: Column | None = None
    value: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _something(self) -> "Said":
        if self.column is None and self.value is None:
            raise ValueError("say a column, a value for all rows, or both")
        return self


class Translated(Said):
    words: Words = Field(default={}, max_length=MAX_WORDS, description="The file's words, and ours for them")


class Moment(Said):
    format: Text | None = Field(default=None, description="As strptime has it: %m/%d/%Y %H:%M. UTC without %z")


class Attribute(Translated):
    format: Text | None = Field(default=None, description="Of a date, as strptime has it: %m/%d/%Y")
    decimal: str | None = Field(default=None, pattern=r"^[.,]$", description="Of a number")
    thousands: str | None = Field(default=None, pattern=r"^[.,' ]$", description="Of a number")
    yes: tuple[str, ...] = Field(default=(), description="Words for yes, of a boolean")
    no: tuple[str, ...] = Field(default=(), description="Words for no, of a boolean")
    separator: str | None = Field(default=None, min_length=1, max_length=8, description="Of a text-list")


class Fields(Part):
    address: Column
    given_name: Said | None = None
    family_name: Said | None = None
    locale: Translated | None = None
    timezone: Translated | None = None


class ListConsent(Part):
    """What proves the consent to one list; what it leaves out is the profile's."""

    state: State | None = None
    at: Moment | None = None
    source: Said | None = None
    wording: Said | None = None
    ip: Said | None = None


class Consent(ListConsent):
    state: State


class ListRule(Part):
    """``list``: everybody joins it, or with ``column`` whose cell says yes. ``words``: a column of lists' names."""

    list: Text | None = Field(default=None, description="Name of a list here")
    column: Column | None = None
    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()
    words: Words | None = Field(
        default=None, max_length=MAX_WORDS, description="The file's words, and our lists; an empty text is no list"
    )
    separator: str = Field(default=",", min_length=1, max_length=8, description="Between words")
    unknown: Unknown = Field(default=Unknown.REJECT, description="What a word that isn't here does to its row")
    consent: ListConsent = ListConsent()

    @model_validator(mode="after")
    def _one_kind(self) -> "ListRule":
        if (self.list is None) == (self.words is None):
            raise ValueError("say either list, or words that mean lists")
        if self.words is not None:
            if self.column is None:
                raise ValueError("say the column that holds the words")
            if self.yes or self.no:
                raise ValueError("yes and no are of a column that is about one list")
        elif self.column is None and (self.yes or self.no):
            raise ValueError("say the column that holds yes or no")
        if self.no and not self.yes:
            raise ValueError("say the words for yes too")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Our lists that it is about."""
        if self.words is None:
            return (self.list or "",)
        return tuple(dict.fromkeys(name.strip() for name in self.words.values() if name.strip()))


class CsvShape(Part):
    encoding: str = "utf-8"
    delimiter: str | None = Field(default=None, min_length=1, max_length=1, description="Found by itself as a rule")


class Profile(Part):
    """How the files of one source are read."""

    csv: CsvShape = CsvShape()
    fields: Fields
    attributes: dict[str, Attribute] = {}
    other_columns: OtherColumns = Field(
        default=OtherColumns.IGNORE,
        description="Of columns that the profile doesn't name: ignore them, refuse the file, or take those whose "
        "headers spell a declared attribute",
    )
    consent: Consent
    lists: tuple[ListRule, ...] = Field(min_length=1, max_length=MAX_LISTS)
