"""``plan.json``: everything that a snapshot's ranges share, frozen before the first one is read.

A range may be read hours later, by another process, after a kill: it binds the same ``max_contact_id`` and ``as_of``.
Decisions (how many ranges and shards) are pure functions below.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mailer_lib.settings import Settings
from mailer_lib.shard.store import S3Path, StorePath
from mailer_lib.terms import AttributeType

FORMAT = 1
MAX_RANGES = 1024  # Airflow maps a task at most 1,024 times
PLAN_FILE = "plan.json"
_P = TypeVar("_P", Path, S3Path)
_BUILDING = ".building-"
MAX_VARIANTS = 127  # int8
MAX_WEIGHTS = 2**31  # all together: freezing.variants_of multiplies in 64 bits


class SnapshotError(RuntimeError):
    """A snapshot can't be planned, built or published; the sentence says why and what to do."""


class PlanSource(StrEnum):
    CRITERIA = "criteria"
    SEEDS = "seeds"


class IdRange(BaseModel):
    """Contacts ``first <= id <= last``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    first: int
    last: int


class FrequencyCap(BaseModel):
    """At most so many messages of campaigns of one class to a person in so many days."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: int = Field(ge=1)
    days: int = Field(ge=1)
    campaign_class: str


class ControlGroup(BaseModel):
    """``percent`` of all people, the same for the same seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percent: float = Field(gt=0, le=100)
    seed: str


class Exclude(BaseModel):
    """Whom the campaign leaves out besides those whom nobody may mail (``exclusions.py``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lists: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    control_group: ControlGroup | None = None
    frequency_cap: FrequencyCap | None = None
    references: dict[str, Any] = {}  # the trees of ``criteria`` and of all that they lead to; filled by the plan


class Slice(BaseModel):
    """The test slice: ``percent`` or a number of ``people``; both are ``through`` when an earlier phase drew it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    percent: float | None = Field(default=None, gt=0, lt=100)
    people: int | None = Field(default=None, ge=1)
    through: str | None = None  # the last point in the slice, hex (slicing.py)
    decide_within_s: float | None = None
    otherwise: str | None = None  # "stop", or the variant that the rest gets when nobody decides in time


class Inputs(BaseModel):
    """What the caller wants frozen. A plan is resumed only for the same inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: PlanSource
    criteria_name: str = ""
    rules: Any = None  # source criteria: the tree
    references: dict[str, Any] = {}  # the other criteria that ``rules`` leads to, as they were then
    rules_sha256: str = ""  # of both
    seed_list: str = ""  # source seeds
    list_id: int
    exclude: Exclude = Exclude()
    attributes: dict[str, AttributeType] = {}  # used keys, with their types
    weights: tuple[int, ...] = Field(min_length=1, max_length=MAX_VARIANTS)
    test_slice: Slice | None = None
    alone: tuple[str, ...] = ()  # mailbox providers that get shards of their own
    zones: str | None = None  # shards by the recipients' time zones; this one for who has none


class SnapshotPlan(BaseModel):
    """One phase of one send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    send_id: int
    campaign: str
    edition: str
    phase: int
    inputs: Inputs
    as_of: datetime  # "now" of every range
    max_contact_id: int
    thresholds: dict[str, str] = {}  # of the criteria's random samples (sampling.py)
    matching: int  # nearly, whoever may be mailed: for the numbers of ranges and shards; the manifest's is exact
    shards: int  # publication raises it to a multiple when a shard would grow too big
    ranges: tuple[IdRange, ...]

    def folder(self, settings: Settings) -> Path:
        """Where it is built."""
        return building_folder(edition_folder(settings, self.campaign, self.edition), self.phase)

    def published_folder(self, settings: Settings) -> Path:
        return edition_folder(settings, self.campaign, self.edition) / str(self.phase)

    def path(self, settings: Settings) -> Path:
        """Of ``plan.json``, while it is built."""
        return self.folder(settings) / PLAN_FILE

    def range(self, index: int) -> IdRange:
        """Raises:
        SnapshotError: there is no such range.
        """
        if not 0 <= index < len(self.ranges):
            raise SnapshotError(f"the snapshot of {self} has {len(self.ranges)} ranges; there is no range {index}")
        return self.ranges[index]

    def __str__(self) -> str:
        return f"{self.campaign}#{self.edition} (phase {self.phase})"


def edition_folder(settings: Settings, campaign: str, edition: str) -> Path:
    """``snapshots/<campaign>/<edition>`` in the snapshot store.

    Raises:
        SnapshotError: a name that can't be a folder's.
    """
    for name in (campaign, edition):
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise SnapshotError(f"{name!r} can't name a folder of the snapshot store; rename the campaign or edition")
    return settings.storage / "snapshots" / campaign / edition


def building_folder(edition: _P, phase: int) -> _P:
    return edition / f"{_BUILDING}{phase}"


def load_plan(path: StorePath) -> SnapshotPlan:
    """Read ``plan.json``; where ``.building-<phase>`` was published meanwhile, the one in ``<phase>``.

    Raises:
        SnapshotError: it isn't there, or isn't one of ours.
    """
    published = path.parent.parent / path.parent.name.removeprefix(_BUILDING) / path.name
    try:
        path = path if path.exists() else published
        return SnapshotPlan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SnapshotError(f"{path}: there is no such plan; the snapshot was discarded") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise SnapshotError(f"{path}: {place}: {first['msg']}; remove its folder and build again") from None


def range_count(matching: int) -> int:
    """4 for 20,000, 29 for a million, 200 for 50 million: each costs a task's second, and bounds what a kill costs."""
    return 0 if matching == 0 else min(MAX_RANGES, max(1, math.ceil(math.sqrt(matching / 1250))))


def id_ranges(first: int, last: int, count: int) -> tuple[IdRange, ...]:
    """``first..last`` cut into at most ``count`` contiguous ranges of nearly equal width."""
    if count <= 0 or last < first:
        return ()
    span = last - first + 1
    count = min(count, span)
    edges = [first + span * n // count for n in range(count + 1)]
    return tuple(IdRange(index=n, first=edges[n], last=edges[n + 1] - 1) for n in range(count))


def shard_count(matching: int, shard_rows: int) -> int:
    return max(1, math.ceil(matching / shard_rows))


def check_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """Raises:
    SnapshotError: no variant, too many, a negative weight, none above 0, or too much together.
    """
    if not 1 <= len(weights) <= MAX_VARIANTS or min(weights) < 0 or not 0 < sum(weights) < MAX_WEIGHTS:
        raise SnapshotError(
            f"the weights of the variants are {list(weights)}: 1 to {MAX_VARIANTS} whole numbers, one above 0, "
            f"together less than {MAX_WEIGHTS}"
        )
    return tuple(weights)


def used_attributes(keys: Sequence[str], declared: Mapping[str, AttributeType]) -> dict[str, AttributeType]:
    """Raises:
    SnapshotError: a key that isn't declared.
    """
    missing = sorted(set(keys) - declared.keys())
    if missing:
        raise SnapshotError(
            f"the message uses attributes that aren't declared: {', '.join(missing)}; declare them with "
            "`mailfleet attributes`"
        )
    return {key: declared[key] for key in sorted(set(keys))}
