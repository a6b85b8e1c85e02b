"""Frames of the session between the centre and ``agent/remote.py``: a JSON header and bytes, both bounded.

    4 bytes  b"MFJ1"
    4 bytes  length of the header, big-endian
    4 bytes  length of the payload
    header   a JSON object, UTF-8
    payload  as it is

Without I/O: bytes in, frames out. Whatever isn't a frame ends the session; nothing is skipped to find the next one.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAGIC = b"MFJ1"
MAX_HEADER = 1 << 20
MAX_PAYLOAD = 8 << 20
_HEAD = struct.Struct(">4sII")


class FrameError(ValueError):
    """What came isn't a frame, or is too large for one."""


@dataclass(frozen=True)
class Frame:
    header: dict[str, Any]
    payload: bytes = b""


def encode(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """
    Raises:
        FrameError: it is too large.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER or len(payload) > MAX_PAYLOAD:
        raise FrameError(
            f"a frame of {len(text):,} + {len(payload):,} bytes; at most {MAX_HEADER:,} + {MAX_PAYLOAD:,} fit"
        )
    return _HEAD.pack(MAGIC, len(text), len(payload)) + text + payload


class Decoder:
    """``feed`` it what arrives; it keeps what is not whole yet, which is never more than one frame of the limits."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now.

        Raises:
            FrameError: that isn't one. The decoder can't be used any more.
        """
        self._buffer += data
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        known = bytes(self._buffer[: len(MAGIC)])
        if known != MAGIC[: len(known)]:
            raise FrameError(f"that isn't a frame: it begins with {bytes(self._buffer[:40])!r}")
        if len(self._buffer) < _HEAD.size:
            return None
        _, header_size, payload_size = _HEAD.unpack_from(self._buffer)
        if header_size > MAX_HEADER or payload_size > MAX_PAYLOAD:
            raise FrameError(f"a frame of {header_size:,} + {payload_size:,} bytes is announced: too large")
        body, end = _HEAD.size + header_size, _HEAD.size + header_size + payload_size
        if len(self._buffer) < end:
            return None
        text, payload = bytes(self._buffer[_HEAD.size : body]), bytes(self._buffer[body:end])
        del self._buffer[:end]
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            raise FrameError("a frame's header isn't JSON") from None
        if not isinstance(header, dict):
            raise FrameError("a frame's header isn't a JSON object")
        return Frame(header, payload)
