"""The job folders of one machine: which there are, and removing one for good."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mailer_lib.agent.job_host import ChannelError


def list_folders(root: Path) -> list[str]:
    """``campaign/edition/slot`` of each."""
    return sorted(str(path.relative_to(root)) for path in root.glob("*/*/*") if path.is_dir())


def remove_folder(root: Path, job: str) -> None:
    """Ledgers, shards, log and all; nothing happens when it is gone.

    Raises:
        ChannelError: an agent works in it.
    """
    folder = root / job
    if not folder.is_dir():
        return
    with _lock(folder):
        shutil.rmtree(folder)
    for parent in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):  # others are in it
            parent.rmdir()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """An agent holds this lock for life, so none begins while the folder goes."""
    handle = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ChannelError(f"an agent works in {folder}") from None
    finally:
        os.close(handle)
