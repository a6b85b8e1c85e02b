"""Islands that are a function of a few fields: rendered and encoded once for each combination of values.

Most recipients share most values (a tier, a city, a favourite category), so a look-up does what Jinja2, escaping and
encoding would do again. Values are told apart by type too: ``True`` and ``1`` are the same key, but not the same text.
"""

from collections.abc import Callable, Mapping
from typing import Any

MAX_VALUES = 2048
MAX_BYTES = 2048  # of one value; larger ones aren't kept


class Memo:
    """One such island: ``fields`` are read, ``render`` and ``encode`` are asked when they are new."""

    __slots__ = ("_cache", "_encode", "_fields", "_render", "_single")

    def __init__(
        self, fields: tuple[str, ...], render: Callable[[dict[str, Any]], str], encode: Callable[[str], bytes]
    ) -> None:
        self._fields = fields
        self._single = fields[0] if len(fields) == 1 else None
        self._render = render
        self._encode = encode
        self._cache: dict[Any, bytes] = {}

    def value(self, contact: Mapping[str, Any], variables: dict[str, Any]) -> bytes:
        """The encoded island. Raises what the template raises."""
        key: Any
        if self._single is not None:
            key = contact.get(self._single)
            if key.__class__ is not str:
                key = (key.__class__, key)
        else:
            values = tuple(map(contact.get, self._fields))
            key = (values, tuple(map(type, values)))
        try:
            found = self._cache.get(key)
        except TypeError:  # a list, say: nothing to look up
            return self._encode(self._render(variables))
        if found is None:
            found = self._encode(self._render(variables))
            if len(found) <= MAX_BYTES:
                if len(self._cache) >= MAX_VALUES:
                    self._cache.clear()
                self._cache[key] = found
        return found
