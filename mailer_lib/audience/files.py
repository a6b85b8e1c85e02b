"""Files that survive a power cut: written beside, fsynced, renamed over; and their checksums."""

import hashlib
import os
import tempfile
from pathlib import Path

import pyarrow as pa

from mailer_lib.shard.store import S3Path, StorePath

_CHUNK = 1 << 20


def replace_file(path: StorePath, data: bytes | pa.Buffer) -> None:
    """A reader sees the old file or the new one, whole."""
    if isinstance(path, S3Path):
        path.write_bytes(bytes(data))
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: StorePath) -> None:
    """Make what was created or renamed in ``folder`` durable."""
    if isinstance(folder, S3Path):
        return  # every object is, once it is written
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: StorePath) -> str:
    """SHA-256 of a file's content, hex."""
    if isinstance(path, S3Path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
