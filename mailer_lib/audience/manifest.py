"""``manifest.json``: what a published snapshot holds, with the checksum of every file."""

import hashlib
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mailer_lib.audience.plan import Exclude, Slice, SnapshotError
from mailer_lib.shard.store import StorePath

FORMAT = 1
MANIFEST_FILE = "manifest.json"
PEOPLE_FOLDER = "people"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CriteriaText(_Part):
    source: str  # criteria | seeds
    name: str  # of the stored criteria or the seed list; empty when the rules came from elsewhere
    rules: Any
    references: dict[str, Any] = {}  # other criteria that the rules lead to, by name
    sha256: str


class RangeRead(_Part):
    """One id range: when it was read, and what was found. ``selected`` is before publication drops any."""

    index: int
    first: int
    last: int
    read_at: datetime  # when the query began
    read_s: float
    matched: int
    selected: int
    excluded: int


class FileEntry(_Part):
    path: str  # below the snapshot's folder
    rows: int
    sha256: str


class ShardEntry(FileEntry):
    number: int
    slice_rows: int | None = None  # of the test slice: the first ones of the file
    zone: str | None = None  # time zone of everybody in it; None: shards aren't parted by time zone
    provider: str | None = None  # of everybody in it; None: of all that have no shards of their own


class PeopleEntry(FileEntry):
    """Keyed hash, contact and mailbox provider of some of those in the shards (``people_files.py``)."""


class ColumnEntry(_Part):
    name: str
    type: str


class Counts(_Part):
    """``by_reason`` counts every reason of every excluded row, so it adds up to more than ``excluded``."""

    matching: int
    frozen: int
    excluded: int
    by_reason: dict[str, int]
    by_provider: dict[str, int]
    by_variant: tuple[int, ...]  # with a test slice: of its people
    rest: int = 0  # who get the variant that a person decides on after the test slice


class Amendment(_Part):
    """One file that was written anew after publication: people were blanked in it (docs/decisions/0303)."""

    at: datetime
    why: str  # erased | expired
    rows: int  # that were blanked
    was: FileEntry  # no longer there
    path: str
    sha256: str


class Manifest(_Part):
    format: int = FORMAT
    campaign: str
    edition: str
    phase: int
    send_id: int
    list_id: int
    criteria: CriteriaText
    exclude: Exclude = Exclude()
    weights: tuple[int, ...]
    test_slice: Slice | None = None  # with ``through``
    as_of: datetime
    max_contact_id: int
    published_at: datetime
    shard_count: int  # a row's shard, mod this = first four bytes of address_hash, big-endian, mod this
    columns: tuple[ColumnEntry, ...]
    ranges: tuple[RangeRead, ...]
    shards: tuple[ShardEntry, ...]  # those that have rows
    excluded: tuple[FileEntry, ...]
    people: tuple[PeopleEntry, ...] = ()  # everybody in the shards once more
    counts: Counts  # as published: amendments don't change them
    amendments: tuple[Amendment, ...] = ()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return (*self.shards, *self.excluded, *self.people)

    @property
    def blanked(self) -> int:
        """Rows of shards and of excluded people; those of ``people`` are the same persons again."""
        return sum(each.rows for each in self.amendments if not each.path.startswith(f"{PEOPLE_FOLDER}/"))

    def shard_of(self, address_hash: bytes) -> int:
        """Number, mod ``shard_count``, of the shards that can hold this person: one for each kind (parting.py)."""
        return int.from_bytes(address_hash[:4], "big") % self.shard_count

    def dump(self) -> bytes:
        """Without keys for what there is none of, so that a manifest's bytes stay what they were."""
        absent: dict[str, Any] = {} if self.amendments else {"amendments": True}
        of_shards = {kind for kind in ("zone", "provider") if not any(getattr(e, kind) for e in self.shards)}
        if self.test_slice is None:
            absent |= {"test_slice": True, "counts": {"rest"}}
            of_shards.add("slice_rows")
        if of_shards:
            absent |= {"shards": {"__all__": of_shards}}
        return self.model_dump_json(indent=1, exclude=absent).encode()


def load(folder: StorePath) -> Manifest:
    """The manifest of a snapshot's folder (or the file itself).

    Raises:
        SnapshotError: it isn't there, or isn't one of ours.
    """
    path = folder if folder.name == MANIFEST_FILE else folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise SnapshotError(f"{path}: there is no such manifest; has the snapshot been published?") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise SnapshotError(f"{path}: {'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None


def sha256(manifest: Manifest) -> str:
    """What ``snapshots.manifest_sha256`` holds: of the file's bytes, which name the checksum of every other file."""
    return hashlib.sha256(manifest.dump()).hexdigest()


def approval_digest(content_hash: str, manifest_sha256: str) -> str:
    """What an approval is bound to: SHA-256 (hex) over message and snapshot, each of them a SHA-256 in hex."""
    return hashlib.sha256(f"{content_hash}\n{manifest_sha256}\n".encode()).hexdigest()
