"""What reads a cell whose values are written in a profile's way: dates, numbers, yes and no, words for ours. Pure.

Each raises ``ValueProblemError`` with a sentence that doesn't repeat the text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from mailer_lib.contacts.attributes import (
    ITEM_SEPARATOR,
    Value,
    ValueProblemError,
    parse_boolean,
    parse_items,
    parse_number,
    parser_of,
)
from mailer_lib.contacts.profile import Attribute, Unknown
from mailer_lib.terms import AttributeType

T = TypeVar("T")

# what of an attribute's rule is about which type
_SUITED: dict[str, frozenset[AttributeType]] = {
    "format": frozenset({AttributeType.DATE}),
    "decimal": frozenset({AttributeType.NUMBER}),
    "thousands": frozenset({AttributeType.NUMBER}),
    "yes": frozenset({AttributeType.BOOLEAN}),
    "no": frozenset({AttributeType.BOOLEAN}),
    "separator": frozenset({AttributeType.TEXT_LIST}),
    "words": frozenset({AttributeType.TEXT, AttributeType.ENUM, AttributeType.TEXT_LIST}),
}


def folded(word: str) -> str:
    """How words are compared: without the white space around them, in any case."""
    return " ".join(word.split()).casefold()


def unsuited(rule: Attribute, type_: AttributeType) -> list[tuple[str, str]]:
    """What a rule says that an attribute of this type can't have: the field, and a sentence."""
    found = []
    for name, types in _SUITED.items():
        if getattr(rule, name) and type_ not in types:
            found.append((name, f"it is of a {' or a '.join(sorted(types))}; this attribute is a {type_.value}"))
    if rule.no and not rule.yes:
        found.append(("no", "say the words for yes too"))
    if rule.decimal is not None and rule.decimal == rule.thousands:
        found.append(("thousands", "it can't be the decimal sign too"))
    return found


def attribute_reader(rule: Attribute, type_: AttributeType, choices: Sequence[str]) -> Callable[[str], Value]:
    """What reads the cells of an attribute's column."""
    if rule.format is not None:
        return date_reader(rule.format)
    if rule.decimal is not None or rule.thousands is not None:
        return number_reader(rule.decimal or ".", rule.thousands)
    if rule.yes:
        return yes_no_reader(rule.yes, rule.no)
    if type_ is AttributeType.TEXT_LIST:
        return items_reader(rule.separator or ITEM_SEPARATOR, rule.words)
    return translated(rule.words, parser_of(type_, choices))


def date_reader(format_: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            return datetime.strptime(text.strip(), format_).date().isoformat()  # noqa: DTZ007  a day has no zone
        except ValueError:
            raise ValueProblemError(f"it is not a date written as {format_}") from None

    return read


def moment_reader(format_: str) -> Callable[[str], datetime]:
    """A time of consent, UTC; without ``%z`` in the format it is UTC as written."""

    def read(text: str) -> datetime:
        try:
            moment = datetime.strptime(text.strip(), format_)  # noqa: DTZ007  the next line gives it its zone
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueProblemError(f"it is not a date and time written as {format_}") from None
        if moment.year < 1990:
            raise ValueProblemError("it is before 1990")
        return moment

    return read


def number_reader(decimal: str, thousands: str | None) -> Callable[[str], float | int]:
    """Digits with these signs. A sign for thousands must stand before each three digits, or nowhere."""
    point = re.escape(decimal)
    whole = r"\d+" if thousands is None else rf"(?:\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+|\d+)"
    shape = re.compile(rf"[+-]?{whole}(?:{point}\d+)?", re.ASCII)

    def read(text: str) -> float | int:
        text = text.strip()
        if shape.fullmatch(text) is None:
            example = f"1{thousands or ''}234{decimal}5"
            raise ValueProblemError(f"it is not a number written like {example}")
        if thousands is not None:
            text = text.replace(thousands, "")
        return parse_number(text.replace(decimal, "."))

    return read


def yes_no_reader(yes: Sequence[str], no: Sequence[str]) -> Callable[[str], bool]:
    """With these words; with none, those that attributes know."""
    if not yes:
        return parse_boolean
    meanings = {folded(word): True for word in yes} | {folded(word): False for word in no}

    def read(text: str) -> bool:
        try:
            return meanings[folded(text)]
        except KeyError:
            raise ValueProblemError("it is none of the profile's words for yes and no") from None

    return read


def items_reader(separator: str, words: Mapping[str, str]) -> Callable[[str], list[str]]:
    ours = {folded(word): mine for word, mine in words.items()}

    def read(text: str) -> list[str]:
        if ours:
            text = separator.join(ours.get(folded(part), part) for part in text.split(separator))
        return parse_items(text, separator)

    return read


def translated(words: Mapping[str, str], read: Callable[[str], T]) -> Callable[[str], T]:
    """Our word for the file's where there is one; any other text is read as it is."""
    if not words:
        return read
    ours = {folded(word): mine for word, mine in words.items()}
    return lambda text: read(ours.get(folded(text), text))


def joins_if_yes(bit: int, yes: Sequence[str], no: Sequence[str]) -> Callable[[str], int]:
    """A column that says yes or no to one list; an empty cell says no."""
    read = yes_no_reader(yes, no)
    return lambda text: bit if text.strip() and read(text) else 0


def joins_by_words(bits: Mapping[str, int], separator: str, unknown: Unknown) -> Callable[[str], int]:
    """A column of words that mean lists; a word that means none has no bit."""
    meanings = {folded(word): bit for word, bit in bits.items()}

    def read(text: str) -> int:
        joined = 0
        for part in text.split(separator):
            word = folded(part)
            if not word:
                continue
            if word in meanings:
                joined |= meanings[word]
            elif unknown is Unknown.REJECT:
                raise ValueProblemError("one of its words means no list of the profile")
        return joined

    return read
