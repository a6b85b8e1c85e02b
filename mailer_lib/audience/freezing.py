"""From the people selected for one shard to its frozen rows: pure, one shard at a time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from mailer_lib.identity import message_key
from mailer_lib.terms import ExclusionReason

_EXCLUDED_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("contact_id", pa.int64(), nullable=False),
    pa.field("address_hash", pa.binary(16), nullable=False),
    pa.field("reasons", pa.int32(), nullable=False),  # bitmask of terms.ExclusionReason
]
EXCLUDED_SCHEMA = pa.schema(_EXCLUDED_FIELDS)


@dataclass(frozen=True)
class FrozenShard:
    rows: pa.Table  # columns of ``schema``
    dropped: pa.Table  # of EXCLUDED_SCHEMA: selected, but left out at publication


def freeze(
    people: pa.Table,
    schema: pa.Schema,
    *,
    send_key: bytes,
    weights: Sequence[int],
    barred: Mapping[bytes, ExclusionReason],
    already: Collection[bytes],
    at_cap: Collection[bytes] = (),
) -> FrozenShard:
    """Sort by person, drop whom a shard may not hold, add key and variant, interleave by mailbox provider.

    Args:
        people: what ranges selected for this shard; the shard's columns without ``message_key`` and ``variant``.
        barred: reasons by address hash of people whom another range excluded under the same address: consent wins.
        already: message keys that this edition has sent, or may have.
        at_cap: address hashes of people who got as many messages as they may.
    """
    people = people.sort_by([("address_hash", "ascending"), ("contact_id", "ascending")])
    ids: list[int] = column_of(people, "contact_id")
    hashes: list[bytes] = column_of(people, "address_hash")
    bounds = list(accumulate(weights))
    kept: list[int] = []
    keys: list[bytes] = []
    dropped: list[tuple[int, bytes, int]] = []
    previous = b""
    for place, (contact_id, address_hash) in enumerate(zip(ids, hashes, strict=True)):
        key = message_key(send_key, address_hash)
        reasons = barred.get(address_hash, ExclusionReason(0))
        if address_hash == previous:
            reasons |= ExclusionReason.DUPLICATE
        if key in already:
            reasons |= ExclusionReason.ALREADY_SENT
        if address_hash in at_cap:
            reasons |= ExclusionReason.FREQUENCY_CAP
        previous = address_hash
        if reasons:
            dropped.append((contact_id, address_hash, int(reasons)))
        else:
            kept.append(place)
            keys.append(key)
    rows = people.take(pa.array(kept, pa.int64()))
    rows = rows.append_column("message_key", pa.array(keys, pa.binary(16)))
    rows = rows.append_column("variant", pa.array([variant_of(key, bounds) for key in keys], pa.int8()))
    order = interleave(column_of(rows, "provider"))
    columns = list(zip(*dropped, strict=True)) or [(), (), ()]
    left_out = pa.table(
        [pa.array(v, f.type) for v, f in zip(columns, EXCLUDED_SCHEMA, strict=True)], schema=EXCLUDED_SCHEMA
    )
    return FrozenShard(rows.select(schema.names).take(pa.array(order, pa.int64())).cast(schema), left_out)


def column_of(table: pa.Table, name: str) -> list[Any]:
    """A column as Python values."""
    return table.column(name).to_pylist()


def variant_of(key: bytes, bounds: Sequence[int]) -> int:
    """Index of the variant that a message key falls to; ``bounds`` are the accumulated weights. The same for ever."""
    point = int.from_bytes(key[:8], "big") * bounds[-1] >> 64
    return next(index for index, bound in enumerate(bounds) if point < bound)


def interleave(providers: Sequence[str]) -> list[int]:
    """An order of the rows in which each provider is spread evenly, so that none comes in a long run.

    Row r of a provider with n rows stands at (r + ½) / n of the way; ties go by provider.
    """
    total: dict[str, int] = {}
    for provider in providers:
        total[provider] = total.get(provider, 0) + 1
    seen = dict.fromkeys(total, 0)
    names = sorted(total)
    rank = {name: n for n, name in enumerate(names)}
    at = np.empty(len(providers), np.float64)
    tie = np.empty(len(providers), np.int64)
    for place, provider in enumerate(providers):
        at[place] = (seen[provider] + 0.5) / total[provider]
        tie[place] = rank[provider]
        seen[provider] += 1
    return [int(n) for n in np.lexsort((tie, at))]
