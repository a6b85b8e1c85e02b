"""Islands that are functions of the same few fields: rendered and encoded once for each combination of values.

Most recipients share most values (a tier, a city, a favourite category), so a look-up does what Jinja2, escaping and
encoding would do again. Values are told apart by type too: ``True`` and ``1`` are the same key, but not the same text.
"""

from collections.abc import Callable, Mapping
from typing import Any

from mailer_lib.message.islands import Render

MAX_VALUES = 2048
MAX_BYTES = 2048  # of one value; larger ones aren't kept


class Memo:
    """Those of one tuple of ``fields``: ``renders`` and ``encode`` are asked when the fields' values are new.

    ``bare``: each island is nothing but the one field, so a text needs no rendering, only this escaping of each.
    """

    __slots__ = ("_bare", "_cache", "_encode", "_fields", "_renders", "_single")

    def __init__(
        self,
        fields: tuple[str, ...],
        renders: tuple[Render, ...],
        encode: Callable[[str], bytes],
        bare: tuple[Callable[[str], str], ...] = (),
    ) -> None:
        self._bare = bare
        self._fields = fields
        self._single = fields[0] if len(fields) == 1 else None
        self._renders = renders
        self._encode = encode
        self._cache: dict[Any, list[bytes]] = {}

    def values(self, contact: Mapping[str, Any], variables: dict[str, Any]) -> list[bytes]:
        """The encoded islands, in the order of ``renders``. Raises what the template raises."""
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
            return self._made(variables)
        if found is None:
            if self._bare and key.__class__ is str:
                found = [self._encode(escape(key)) for escape in self._bare]
            else:
                found = self._made(variables)
            if max(map(len, found)) <= MAX_BYTES:
                if len(self._cache) >= MAX_VALUES:
                    self._cache.clear()
                self._cache[key] = found
        return found

    def _made(self, variables: dict[str, Any]) -> list[bytes]:
        return [self._encode(text) for render in self._renders for text in render(variables)]
