"""Single columns of a shard file, as the centre needs them: hashes to suppress, keys to check, providers to book."""

from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from mailer_lib.shard.recipient import bound_variant
from mailer_lib.shard.store import StorePath, arrow_source


@dataclass(frozen=True)
class ShardColumns:
    """By row. ``message_key`` and ``address_hash`` are 16 bytes each."""

    message_key: list[bytes]
    address_hash: list[bytes]
    provider: list[str]
    variant: list[int]
    contact_id: list[int]

    def variant_of(self, row: int, decided: int | None) -> int:
        """With what was decided for the rest of a test slice."""
        return bound_variant(self.variant[row], decided)


def load_columns(path: StorePath) -> ShardColumns:
    """Columns without the address or anything else about the person."""
    names = ["message_key", "address_hash", "provider", "variant", "contact_id"]
    table = pq.read_table(arrow_source(path), columns=names)
    columns: dict[str, Any] = {name: table.column(name).to_pylist() for name in names}
    return ShardColumns(**columns)
