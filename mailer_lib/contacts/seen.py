"""Which addresses a file has had already, in eight bytes each: a set of ten million takes 80 MB, not a gigabyte.

Used to *count* duplicates only; a collision of two 64-bit prefixes (3 in a million for ten million addresses) would be
counted as one, nothing else.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PREFIX_BYTES = 8


class SeenHashes:
    """A growing set of hash prefixes: sorted arrays, merged when they reach each other's size."""

    def __init__(self) -> None:
        self._levels: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(level) for level in self._levels)

    def add_prefixes(self, packed: bytes) -> None:
        """Distinct prefixes, none of which is here, as ``fresh_prefixes`` gave them."""
        if packed:
            self._levels.append(np.sort(np.frombuffer(packed, dtype=">u8").astype(np.uint64)))

    def add(self, hashes: Sequence[bytes]) -> list[bool]:
        """For each hash (distinct among themselves): was it here before? Then add them all."""
        if not hashes:
            return []
        packed = b"".join(h[:PREFIX_BYTES] for h in hashes)
        fresh = np.frombuffer(packed, dtype=">u8").astype(np.uint64)
        known = np.zeros(len(fresh), dtype=bool)
        for level in self._levels:
            places = np.searchsorted(level, fresh)
            places[places == len(level)] = 0
            known |= level[places] == fresh
        merged = np.sort(fresh[~known])
        while self._levels and len(merged) and len(self._levels[-1]) <= 2 * len(merged):
            merged = np.concatenate([self._levels.pop(), merged])
            merged.sort()  # in place: a sorted copy would be as large again
        if len(merged):
            self._levels.append(merged)
        return [bool(value) for value in known]
