"""What a batch of an import says, before it is stored: rows that need no weighing, and a draft for everybody else."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mailer_lib.contacts.address import Address
from mailer_lib.contacts.attributes import Value
from mailer_lib.contacts.plain_rows import PlainRows
from mailer_lib.contacts.precedence import KeptOut
from mailer_lib.contacts.rows import Evidence, ParsedRow


@dataclass(slots=True)
class Draft:
    """All that the batch says about one address: the last row's word for each value, every row's evidence."""

    address: Address
    fields: dict[str, str]
    attributes: dict[str, Value]
    evidence: dict[int, list[Evidence]]  # of each list that one of its rows joins, by the list's number


def newest(evidence: Sequence[Evidence]) -> datetime | None:
    """When the newest of some consents was given."""
    if len(evidence) == 1:
        return evidence[0].at
    return max((e.at for e in evidence if e.at is not None), default=None)


class Drafts(dict[bytes, Draft]):
    """Drafts by address hash."""

    def add(self, key: bytes, row: ParsedRow) -> None:
        """The next row of the file."""
        draft = self.get(key)
        if draft is None:
            evidence = {number: [one] for number, one in row.evidence.items()}
            self[key] = Draft(row.address, dict(row.fields), dict(row.attributes), evidence)
            return
        draft.address = row.address
        draft.fields.update(row.fields)
        draft.attributes.update(row.attributes)
        for number, one in row.evidence.items():
            said = draft.evidence.setdefault(number, [])
            if one not in said:
                said.append(one)


@dataclass
class ListCounts:
    """People who join a list; those who came earlier in the file and joined it are not counted again."""

    confirmed: int = 0
    pending: int = 0
    undated: int = 0
    kept_out: Counter[KeptOut] = field(default_factory=Counter)


@dataclass
class BatchCounts:
    """People, not rows; those whose address came earlier in the file are not counted again."""

    lists: list[ListCounts]
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    erased: int = 0  # of whom nothing is stored


@dataclass(frozen=True)
class Before:
    """Who came earlier in the file: at all, and to each list."""

    people: Collection[bytes]
    of_list: Sequence[Collection[bytes]]


@dataclass(frozen=True)
class Portion:
    """What one transaction stores. Nobody is both among ``plain`` and among ``drafts``."""

    rows: int
    plain: PlainRows
    drafts: Drafts
    reread: Callable[[int], ParsedRow]  # a plain row, by its place, once more: the exact way
    outside: int = 0  # rows that join no list; nothing is stored of them

    @property
    def keys(self) -> list[bytes]:
        """Whom it is about, each once."""
        return [*self.plain.keys, *self.drafts]

    def keys_of(self, number: int) -> list[bytes]:
        """Who joins a list, each once."""
        drafts = (key for key, draft in self.drafts.items() if number in draft.evidence)
        return [*self.plain.of_list(number).keys, *drafts]
