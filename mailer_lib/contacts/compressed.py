"""A file of text that may be compressed with gzip: told by its first bytes, whatever its name is."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from mailer_lib.contacts.records import SourceError

_GZIP = b"\x1f\x8b"  # RFC 1952 §2.3.1


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The content, and the file itself, whose position says how far the reading is.

    Raises:
        OSError: the file can't be opened.
        SourceError: it is compressed and damaged, or cut off.
    """
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
        file.seek(0)
        if not compressed:
            yield file, file
            return
        try:
            with gzip.GzipFile(fileobj=file) as content:
                yield cast(BinaryIO, content), file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(f"{path} is damaged, or was not copied to its end (gzip: {error})") from None
