"""From the people selected for one shard to its frozen rows: pure, one shard at a time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mailer_lib.terms import ExclusionReason

_EXCLUDED_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("contact_id", pa.int64(), nullable=False),
    pa.field("address_hash", pa.binary(16), nullable=False),
    pa.field("reasons", pa.int32(), nullable=False),  # bitmask of terms.ExclusionReason
]
EXCLUDED_SCHEMA = pa.schema(_EXCLUDED_FIELDS)


@dataclass(frozen=True)
class FrozenShard:
    rows: pa.Table  # columns of a shard
    dropped: pa.Table  # of EXCLUDED_SCHEMA: selected, but left out at publication


def freeze(
    people: pa.Table,
    rows: NDArray[np.int64],
    *,
    barred: Mapping[bytes, ExclusionReason],
    already: Collection[bytes],
    at_cap: Collection[bytes] = (),
) -> FrozenShard:
    """Drop whom a shard may not hold, interleave the others by mailbox provider and domain.

    Args:
        people: a shard's columns.
        rows: of ``people``, those that ranges selected for this shard, in the order of ``by_person``.
        barred: reasons by address hash of people whom another range excluded under the same address: consent wins.
        already: message keys that this edition has sent, or may have.
        at_cap: address hashes of people who got as many messages as they may.
    """
    hashes = halves(people.column("address_hash").take(rows))
    reasons = np.zeros(len(rows), np.int32)
    reasons[1:][(hashes[1:] == hashes[:-1]).all(axis=1)] = int(ExclusionReason.DUPLICATE)
    if barred or at_cap:
        for place, person in enumerate(_taken(people, "address_hash", rows)):
            capped = ExclusionReason.FREQUENCY_CAP if person in at_cap else 0
            reasons[place] |= int(barred.get(person, 0) | capped)
    if already:
        sent = [key in already for key in _taken(people, "message_key", rows)]
        reasons[np.array(sent, bool)] |= int(ExclusionReason.ALREADY_SENT)
    kept = rows[reasons == 0]
    provider, domain = people.column("provider").take(kept), people.column("domain").take(kept)
    spread = interleave(provider, domain, hashes[reasons == 0, 1])
    return FrozenShard(people.take(kept[spread]), _dropped(people, rows, reasons))


def by_person(people: pa.Table, shards: NDArray[np.uint32]) -> NDArray[np.int64]:
    """All rows, shard by shard, and in each by address hash, then by contact."""
    hashes = halves(people.column("address_hash"))
    order = np.lexsort((hashes[:, 0], shards))
    first = hashes[order, 0]
    if not (first[1:] == first[:-1]).any():
        return order
    return np.lexsort((people.column("contact_id").to_numpy(), hashes[:, 1], hashes[:, 0], shards))


def halves(hashes: "pa.ChunkedArray[Any] | pa.Array[Any]") -> NDArray[np.uint64]:
    """Address hashes as two numbers each, which sort as the bytes do."""
    whole = hashes.combine_chunks() if isinstance(hashes, pa.ChunkedArray) else hashes
    return np.frombuffer(bytes_of(whole), ">u8").reshape(-1, 2).astype(np.uint64)


def bytes_of(values: "pa.Array[Any]") -> memoryview:
    """Of a binary(16) column without NULL: 16 bytes for each row, end to end."""
    data = values.buffers()[1]
    return memoryview(data or b"")[16 * values.offset : 16 * (values.offset + len(values))]


def column_of(table: pa.Table, name: str) -> list[Any]:
    """A column as Python values."""
    return table.column(name).to_pylist()


def variants_of(keys: bytes, bounds: Sequence[int]) -> NDArray[np.int8]:
    """Index of the variant that each message key (16 bytes) falls to; ``bounds`` are the accumulated weights.

    A key's first 8 bytes are a point between 0 and 1, which is scaled to the sum of all weights. The same for ever.
    """
    points = np.frombuffer(keys, ">u8").reshape(-1, 2)[:, 0].astype(np.uint64)
    if len(bounds) == 1:
        return np.zeros(len(points), np.int8)
    total, half = np.uint64(bounds[-1]), np.uint64(32)
    low = points & np.uint64(0xFFFF_FFFF)
    scaled = ((points >> half) * total + (low * total >> half)) >> half  # of 96 bits; MAX_WEIGHTS keeps it below 64
    return np.searchsorted(np.array(bounds, np.uint64), scaled, side="right").astype(np.int8)


def interleave(
    providers: "pa.ChunkedArray[Any]", domains: "pa.ChunkedArray[Any]", salt: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """An order of the rows in which no provider, and no domain of a provider, comes in a long run.

    Row r of a provider with n rows stands at (r + ½) / n of the way; ties go by provider. Its rows are numbered so that
    those of each domain are spread likewise, but for the ½: there the domain's first row has its ``salt``, a number of
    its own and as good as random. Else all domains with one row would meet in the middle.
    """
    provider, domain = _codes(providers), domains.combine_chunks().dictionary_encode().indices.to_numpy()
    rank, size, first = _places(domain, np.arange(len(domain)))
    within = (rank + salt[first] / 2.0**64) / size
    by_domain = np.lexsort((within, provider))
    rank, size, _ = _places(provider, by_domain)
    return np.lexsort((provider, (rank + 0.5) / size))


def _codes(values: "pa.ChunkedArray[Any]") -> NDArray[np.int64]:
    """The place of each value among the distinct ones, sorted."""
    encoded = values.combine_chunks().dictionary_encode()
    names: list[Any] = encoded.dictionary.to_pylist()
    place = np.empty(len(names), np.int64)
    place[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    codes: NDArray[np.int64] = place[encoded.indices.to_numpy()]
    return codes


def _places(
    group: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each row: its rank in its group as ``order`` goes, the group's size, and the group's first row."""
    sorted_rows = order[np.argsort(group[order], kind="stable")]
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(group), np.int64)
    rank[sorted_rows] = np.arange(len(group)) - np.repeat(starts, sizes)
    return rank, sizes[group], sorted_rows[starts[group]] if len(group) else sorted_rows


def _taken(table: pa.Table, name: str, rows: NDArray[np.int64]) -> list[bytes]:
    values: list[Any] = table.column(name).take(rows).to_pylist()
    return values


def _dropped(people: pa.Table, order: NDArray[np.int64], reasons: NDArray[np.int32]) -> pa.Table:
    out = reasons != 0
    rows = people.select(["contact_id", "address_hash"]).take(order[out])
    return rows.append_column(EXCLUDED_SCHEMA.field("reasons"), pa.array(reasons[out])).cast(EXCLUDED_SCHEMA)
