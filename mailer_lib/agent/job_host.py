"""The operations of one job folder, on the machine where it lies. Nothing else touches it from the centre's side.

The channel ``local`` is this class; the channel ``ssh`` is this class behind the frames of ``remote.py``.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from mailer_lib.agent.job import ControlFile, Job, Secrets, Status, replace_file

PART_BYTES = 4 << 20  # of a shard that is uploaded
_WITHHELD = ("MAILFLEET_", "AIRFLOW_", "AIRFLOW__", "AWS_")  # settings and secrets of the central side
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ChannelError(RuntimeError):
    """The job folder can't be reached or written, or holds something foreign."""


class ShardTarget(Protocol):
    """Where shard files go, part by part."""

    def put_shard_part(self, name: str, size: int, sha256: str, offset: int, data: bytes) -> int | None: ...


def upload_shard(target: ShardTarget, name: str, data: bytes) -> None:
    """Bring a shard file over, from where an earlier attempt ended."""
    size, sha256 = len(data), hashlib.sha256(data).hexdigest()
    there = target.put_shard_part(name, size, sha256, 0, b"")
    while there is not None:
        there = target.put_shard_part(name, size, sha256, there, data[there : there + PART_BYTES])


@dataclass(frozen=True)
class Pulse:
    """Whether the agent lives, and its last word with its age by this machine's clock."""

    alive: bool
    status: Status | None = None
    age_s: float = 0.0


@dataclass
class JobHost:
    """A job folder of this machine, and the agent as a detached process: it outlives whoever started it."""

    folder: Path
    python: str = sys.executable
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def prepare(self, job: Job, message: bytes, secrets: Secrets) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("shards", "ledgers"):
            (self.folder / name).mkdir(exist_ok=True, mode=0o700)
        job.store(self.folder / "job.json")
        replace_file(self.folder / "message.json", message)
        secrets.store(self.folder / "secrets.json", 0o600)
        (self.folder / "suppressions.log").touch()

    def message(self) -> bytes | None:
        path = self.folder / "message.json"
        return path.read_bytes() if path.exists() else None

    def has_shard(self, name: str) -> bool:
        return self._file("shards", name).exists()

    def put_shard_part(self, name: str, size: int, sha256: str, offset: int, data: bytes) -> int | None:
        """Store bytes of a shard file of this size and checksum from ``offset`` on. Returns how many bytes from the
        start are there now, None when the file is whole: only then it has its name.

        What is there already counts, so an upload that broke off goes on; another file under that name begins anew.
        """
        target = self._file("shards", name)
        if target.exists():
            return None
        if _SHA256.fullmatch(sha256) is None or not 0 <= offset <= size - len(data):
            raise ChannelError(f"{name}: {len(data)} bytes at {offset} aren't a part of a file of {size}")
        partial = target.with_name(f".{name}.{sha256[:16]}.part")
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "r+b") as file:
            there = os.fstat(file.fileno()).st_size
            if offset > there:
                return there
            file.seek(offset)
            file.write(data)
            file.flush()
            there = max(there, offset + len(data))
            if there < size:
                return there
            file.seek(0)
            if there > size or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                partial.unlink(missing_ok=True)
                raise ChannelError(f"{name} arrived damaged: its checksum isn't {sha256[:16]}…; it is sent again")
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # another session has finished it
            partial.replace(target)
        return None

    def write_control(self, control: ControlFile) -> None:
        control.store(self.folder / "control.json")

    def read_control(self) -> ControlFile | None:
        path = self.folder / "control.json"
        try:
            return ControlFile.load(path)
        except FileNotFoundError:
            return None
        except ValidationError:
            raise ChannelError(
                f"{path} isn't a control file of this version; remove it and run the send again"
            ) from None

    def read_suppressions(self, offset: int, limit: int) -> bytes:
        """Bytes of suppressions.log."""
        return _read(self.folder / "suppressions.log", offset, limit)

    def suppressions(self) -> set[str]:
        """Lines of suppressions.log."""
        path = self.folder / "suppressions.log"
        return set(path.read_text().split()) if path.exists() else set()

    def append_suppressions(self, lines: Iterable[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        path = self.folder / "suppressions.log"
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a torn line of a killed predecessor
                data = b"\n" + data
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def fetch_ledger(self, name: str, offset: int, limit: int) -> bytes:
        try:
            with self._file("ledgers", name).open("rb") as file:
                os.fdatasync(file.fileno())
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def status(self) -> Status | None:
        try:
            return Status.load(self.folder / "status.json")
        except (FileNotFoundError, ValidationError):
            return None

    def pulse(self) -> Pulse:
        status = self.status()
        age_s = max(0.0, time.time() - status.at) if status is not None else 0.0
        return Pulse(self.is_alive(), status, age_s)

    def is_alive(self) -> bool:
        """Our child runs, or somebody holds the lock that an agent holds for life."""
        if self._process is not None and self._process.poll() is None:
            return True
        try:
            handle = os.open(self.folder / "agent.lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(handle)

    def start(self) -> None:
        if self.is_alive():
            return
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_WITHHELD)}
        with (self.folder / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.python, "-P", "-m", "mailer_lib.agent", str(self.folder)],  # -P: no module from the job folder
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        pid = self._agent_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL and self._process is not None and self._process.pid == pid:
            self._process.wait()

    def _agent_pid(self) -> int | None:
        """The agent's pid, if it is alive and certainly this folder's: a pid from a file may be another's by now."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        status = self.status()
        if status is None or not self.is_alive():
            return None
        try:
            command = Path(f"/proc/{status.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return None
        return status.pid if str(self.folder).encode() in command else None

    def log_tail(self, lines: int = 12) -> list[str]:
        try:
            with (self.folder / "agent.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                return log.read().decode("utf-8", "replace").splitlines()[-lines:]
        except FileNotFoundError:
            return []

    def clear(self) -> None:
        if self.is_alive():
            return
        (self.folder / "secrets.json").unlink(missing_ok=True)
        for shard in (*(self.folder / "shards").glob("*.parquet"), *(self.folder / "shards").glob(".*.part")):
            shard.unlink(missing_ok=True)

    def _file(self, kind: str, name: str) -> Path:
        if _FILE.fullmatch(name) is None:
            raise ChannelError(f"{name!r} can't be the name of a file in a job folder")
        return self.folder / kind / name


def _read(path: Path, offset: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""
