"""Where one person stands in a published snapshot: their row in a shard, or the reasons that left them out.

One shard's file is read, the one that their hash points to, and of excluded people two columns: tens of milliseconds at
3 million recipients (docs/decisions/0308).
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import ColumnElement

from mailer_lib.audience.freezing import column_of
from mailer_lib.audience.manifest import Manifest
from mailer_lib.database.schema import shards
from mailer_lib.shard.files import ShardError
from mailer_lib.shard.store import StoreError, StorePath, arrow_source
from mailer_lib.terms import ExclusionReason


def may_hold(manifest: Manifest, address_hash: bytes) -> ColumnElement[bool]:
    """Condition on the shards of the manifest's snapshot: a person's row can be in this one."""
    return shards.c.number % manifest.shard_count == manifest.shard_of(address_hash)


@dataclass(frozen=True)
class FrozenRow:
    """What a snapshot says of a recipient besides who it is."""

    row: int  # 0-based place in the shard's file, as leases and ledgers count
    message_key: bytes
    provider: str
    variant: int  # REST: what was decided on after the test slice
    blanked: bool  # the person was erased, or the snapshot has expired


def find_row(path: StorePath, address_hash: bytes) -> FrozenRow | None:
    """A person's row in a shard's file, which must be one of those that ``may_hold`` names.

    Raises:
        ShardError: the file can't be read.
    """
    names = ["address_hash", "message_key", "provider", "variant", "address"]
    table = _read(path, names)
    row = pc.index(table.column("address_hash"), pa.scalar(address_hash, pa.binary(16))).as_py()
    if row < 0:
        return None
    found = {name: table.column(name)[row].as_py() for name in names}
    return FrozenRow(row, found["message_key"], found["provider"], found["variant"], not found["address"])


def find_exclusion(folder: StorePath, manifest: Manifest, address_hash: bytes) -> ExclusionReason:
    """All reasons for which a person who matched was left out; none when they aren't among the excluded.

    Every file is looked through: a person whose contact was deleted and made anew stands under another id, in another
    range's file.

    Raises:
        ShardError: a file can't be read.
    """
    wanted = pa.scalar(address_hash, pa.binary(16))
    reasons = ExclusionReason(0)
    for entry in manifest.excluded:
        table = _read(folder / entry.path, ["address_hash", "reasons"])
        for mask in column_of(table.filter(pc.equal(table.column("address_hash"), wanted)), "reasons"):
            reasons |= ExclusionReason(mask)
    return reasons


def _read(path: StorePath, columns: list[str]) -> pa.Table:
    """Without ``pq.read_table``, whose first call loads a second of code."""
    try:
        with pq.ParquetFile(arrow_source(path)) as file:
            return file.read(columns=columns)
    except StoreError:
        raise  # says what the service answered
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such file; restore the snapshot store") from None
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: can't be read as Parquet: {error}") from None
