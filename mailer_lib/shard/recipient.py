"""One recipient, as a shard's row holds it: the contract between snapshot, message and agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

SHARD_COLUMNS = (
    # column, pyarrow type (see audience/snapshot.py)
    ("contact_id", "int64"),
    ("message_key", "fixed_size_binary[16]"),
    ("address_hash", "fixed_size_binary[16]"),
    ("address", "string"),  # deliverable: local part as given, domain in ASCII (IDNA)
    ("domain", "string"),
    ("provider", "string"),
    ("variant", "int8"),  # index into the bundle's variants; REST: whatever a person decides after the test slice
    ("given_name", "string"),
    ("family_name", "string"),
    ("locale", "string"),
    ("timezone", "string"),
    # then one column for each attribute that is used: "attribute.<key>", typed by its declaration
)
ATTRIBUTE_PREFIX = "attribute."
REST = -1  # variant of a row outside the test slice

AttributeValue: TypeAlias = str | float | bool | list[str] | None  # dates as ISO 8601 text


@dataclass(frozen=True, slots=True)
class Recipient:
    """A frozen row. Text columns may be None; ``attributes`` holds only keys that have a value."""

    contact_id: int
    message_key: bytes
    address_hash: bytes
    address: str
    domain: str
    provider: str
    variant: int = 0
    given_name: str | None = None
    family_name: str | None = None
    locale: str | None = None
    timezone: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def bound_variant(variant: int, decided: int | None) -> int:
    """The variant that a row gets: its own, or for the rest of a test slice the one decided on. ``REST``: not yet."""
    return decided if variant == REST and decided is not None else variant
