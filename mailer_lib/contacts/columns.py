"""Which column of a file is which field of a contact: said by the operator, or told by a well-known header."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum

from mailer_lib.contacts.attributes import require_declared
from mailer_lib.contacts.rejects import REJECT_COLUMNS
from mailer_lib.terms import AttributeType


class Field(StrEnum):
    """What a column can be mapped to, besides attributes."""

    ADDRESS = "address"
    GIVEN_NAME = "given_name"
    FAMILY_NAME = "family_name"
    LOCALE = "locale"
    TIMEZONE = "timezone"
    CONSENT_AT = "consent_at"
    CONSENT_SOURCE = "consent_source"
    CONSENT_WORDING = "consent_wording"
    CONSENT_IP = "consent_ip"


# Headers as ``_plain`` makes them. Exports of shops and of other mailers, in the languages met most.
_NAMES: dict[Field, str] = {
    Field.ADDRESS: """email emailaddress mail mailaddress emailadresse mailadresse subscriberemail adressemail
        adresseemail correoelectronico indirizzoemail courriel""",
    Field.GIVEN_NAME: "firstname givenname forename vorname prenom nombre nome imie",
    Field.FAMILY_NAME: """lastname familyname surname nachname familienname nomdefamille apellido apellidos cognome
        nazwisko""",
    Field.LOCALE: "language locale lang sprache langue idioma lingua",
    Field.TIMEZONE: "timezone zeitzone tz fuseauhoraire",
    Field.CONSENT_AT: """signedupat signupdate signuptime consentat consentdate consenttime optinat optindate optintime
        confirmedat confirmtime subscribedat""",
    Field.CONSENT_SOURCE: "signedupfrom signupsource consentsource optinsource",
    Field.CONSENT_WORDING: "consentwording consenttext",
    Field.CONSENT_IP: "signupip consentip optinip confirmip",
}
_WELL_KNOWN = {name: target for target, names in _NAMES.items() for name in names.split()}


class MappingError(ValueError):
    """The columns can't be mapped; the sentence names the column and says what to do."""


@dataclass(frozen=True)
class ColumnMap:
    """Where things are: indexes into a record's cells."""

    header: tuple[str, ...]
    fields: dict[Field, int]
    attributes: dict[str, int]  # attribute key → index
    ignored: tuple[str, ...] = field(default=())


def _plain(header: str) -> str:
    decomposed = unicodedata.normalize("NFKD", header.casefold())
    return re.sub(r"[^a-z0-9]", "", decomposed)


def slug(header: str) -> str:
    """``Customer since`` → ``customer_since``: how a header finds an attribute of that key."""
    decomposed = unicodedata.normalize("NFKD", header.casefold())
    return re.sub(r"[^a-z0-9]+", "_", "".join(c for c in decomposed if not unicodedata.combining(c))).strip("_")


def map_columns(
    where: str,
    header: list[str],
    types: dict[str, AttributeType],
    mapped: Mapping[str, str],
    attributes: Mapping[str, str],
) -> ColumnMap:
    """Match a header with the operator's ``mapped`` (column → field) and ``attributes`` (column → key), then by name.

    ``where`` names the file for the sentences.

    Raises:
        MappingError: no column holds the address; a column that was named isn't there, or is there twice.
        AttributeKeyError: an attribute that isn't declared.
    """
    fields: dict[Field, int] = {}
    keys: dict[str, int] = {}
    used: set[int] = set()
    for column, target in mapped.items():
        try:
            wanted = Field(target)
        except ValueError:
            raise MappingError(
                f"column {column!r} can't be mapped to {target!r}; the fields are {', '.join(Field)}; "
                f"for an attribute say --attribute {column}={target}"
            ) from None
        if wanted in fields:
            raise MappingError(f"two columns are mapped to {wanted}")
        fields[wanted] = index_of(where, header, column)
        used.add(fields[wanted])
    for column, key in attributes.items():
        require_declared(types, key)
        if key in keys:
            raise MappingError(f"two columns are mapped to the attribute {key!r}")
        keys[key] = index_of(where, header, column)
        used.add(keys[key])
    ignored = []
    for index, column in enumerate(header):
        if index in used or column in REJECT_COLUMNS:
            continue
        well_known = _WELL_KNOWN.get(_plain(column))
        if well_known is not None and well_known not in fields:
            fields[well_known] = index
        elif slug(column) in types and slug(column) not in keys:
            keys[slug(column)] = index
        elif column:
            ignored.append(column)
    if Field.ADDRESS not in fields:
        raise MappingError(_no_address(where, header))
    return ColumnMap(tuple(header), fields, keys, tuple(ignored))


def index_of(where: str, header: list[str], column: str) -> int:
    """Where a column stands; its name may be written in another case.

    Raises:
        MappingError: it isn't there, or is there twice.
    """
    places = [index for index, name in enumerate(header) if name == column]
    if not places:
        places = [index for index, name in enumerate(header) if name.casefold() == column.casefold()]
    if len(places) == 1:
        return places[0]
    if places:
        raise MappingError(f"{where} has {len(places)} columns called {column!r}; give them different names")
    near = get_close_matches(column, header, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has: {', '.join(header)}"
    raise MappingError(f"{where} has no column {column!r}; {hint}")


def _no_address(where: str, header: list[str]) -> str:
    if any("@" in cell for cell in header):
        return f"{where} has no header: its first line holds an address; put a line with the columns' names above it"
    return (
        f"{where}: none of its columns is known to hold the address; say which with --map 'COLUMN=address'; "
        f"it has: {', '.join(header)}"
    )
