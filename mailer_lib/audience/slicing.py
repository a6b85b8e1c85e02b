"""The test slice: who of a phase gets a variant at once, while the rest waits for a person's decision.

A message key is a keyed hash of campaign, edition and address, so it is a die that was thrown once for everybody and
needs no seed beside it. Its first 8 bytes split people over variants (``freezing.variants_of``); its last 8 bytes are
the point that decides on the slice: everybody up to one threshold for the whole send is in it, whatever range, shard or
phase. In a shard's file the slice's rows come first, because grants go by rows (docs/decisions/0604).
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mailer_lib.audience.freezing import bytes_of
from mailer_lib.audience.plan import Slice
from mailer_lib.shard.recipient import REST

_POINTS = 1 << 64


def threshold(wanted: Slice, keys: Iterable[memoryview]) -> int:
    """The last point that is in the slice.

    Args:
        wanted: a percentage of all points, so many people, or what an earlier phase of the send had (``through``).
        keys: message keys of everybody who was selected, 16 bytes each, in pieces; read for a number of people only.
    """
    if wanted.through is not None:
        return int(wanted.through, 16)
    if wanted.percent is not None:
        return max(0, int(_POINTS * Fraction(str(wanted.percent)) / 100) - 1)
    assert wanted.people is not None
    lowest = np.empty(0, np.uint64)
    for piece in keys:
        lowest = np.sort(np.concatenate([lowest, _halves(piece)[:, 1]]))[: wanted.people]
    return int(lowest[-1]) if len(lowest) == wanted.people else _POINTS - 1


class Dealer:
    """Cuts one shard after the other; the variants are dealt evenly over all of them together."""

    def __init__(self, through: int, weights: Sequence[int]) -> None:
        self.through = through
        self.weights = tuple(weights)
        self.dealt = [0] * len(weights)

    def cut(self, rows: pa.Table) -> tuple[pa.Table, int]:
        """The shard with the slice's rows first, each with its variant, then the rest; and how many are in the slice.

        Both parts keep the order in which they were interleaved.
        """
        halves = _halves(bytes_of(rows.column("message_key").combine_chunks()))
        chosen = halves[:, 1] <= np.uint64(self.through)
        order = np.concatenate([np.flatnonzero(chosen), np.flatnonzero(~chosen)])
        size = int(chosen.sum())
        variants = np.full(rows.num_rows, REST, np.int8)
        counts = seats(self.weights, self.dealt, size)
        by_point = np.argsort(halves[chosen, 0], kind="stable")
        variants[by_point] = np.repeat(np.arange(len(self.weights)), counts).astype(np.int8)
        self.dealt = [had + more for had, more in zip(self.dealt, counts, strict=True)]
        column = rows.schema.get_field_index("variant")
        return rows.take(order).set_column(column, rows.schema.field(column), pa.array(variants)), size


def seats(weights: Sequence[int], dealt: Sequence[int], more: int) -> list[int]:
    """How many of the next ``more`` people each variant gets, when it had ``dealt`` of those before.

    The divisor method of Sainte-Laguë: the next one goes to the variant with the largest weight / (2 x dealt + 1). What
    is dealt piece by piece is the same as what is dealt at once; with equal weights no two variants differ by more than
    one.
    """
    quotients = np.concatenate(
        [weight / (2.0 * (had + np.arange(more)) + 1) for weight, had in zip(weights, dealt, strict=True)]
    )
    variants = np.repeat(np.arange(len(weights)), more)
    best = np.lexsort((variants, -quotients))[:more]
    counts: list[int] = np.bincount(variants[best], minlength=len(weights)).tolist()
    return counts


def _halves(keys: Any) -> NDArray[np.uint64]:
    return np.frombuffer(keys, ">u8").reshape(-1, 2).astype(np.uint64)
