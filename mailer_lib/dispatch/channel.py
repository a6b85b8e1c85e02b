"""A channel moves the files of one job folder and starts its agent; nothing else passes between centre and agent.

``LocalChannel`` is a folder of this machine and a child process. The channel ``ssh`` will move the same files.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from mailer_lib.agent.job import ControlFile, Job, Secrets, Status, replace_file
from mailer_lib.shard.store import StorePath

_WITHHELD = ("MAILFLEET_", "AIRFLOW_", "AIRFLOW__", "AWS_")  # settings and secrets of the central side


class ChannelError(RuntimeError):
    """The job folder can't be reached or written, or holds something foreign."""


class Channel(Protocol):
    """Each call does one thing and may be repeated. Names of shards and ledgers are file names, without folders."""

    def prepare(self, job: Job, message: bytes, secrets: Secrets) -> None:
        """Make the folder; write job, message and secrets. Only while no agent is alive."""

    def message(self) -> bytes | None:
        """The message.json that is there."""

    def put_shard(self, name: str, source: StorePath) -> None:
        """Copy a shard file, unless it is there."""

    def write_control(self, control: ControlFile) -> None: ...

    def read_control(self) -> ControlFile | None: ...

    def suppressions(self) -> set[str]:
        """Lines of suppressions.log."""

    def append_suppressions(self, lines: Sequence[str]) -> None: ...

    def fetch_ledger(self, name: str, offset: int, limit: int) -> bytes:
        """Bytes of a ledger from ``offset`` on, at most ``limit``; b"" when there is none yet.

        They are on the server's disk before they are told: the centre never counts what a power loss takes away there.
        """

    def status(self) -> Status | None: ...

    def is_alive(self) -> bool: ...

    def start(self) -> None:
        """Start the agent, unless one is alive."""

    def stop(self) -> None:
        """Ask the agent to end in an orderly way (SIGTERM)."""

    def kill(self) -> None:
        """End the agent at once (SIGKILL)."""

    def log_tail(self, lines: int = 12) -> list[str]:
        """The end of agent.log."""

    def clear(self) -> None:
        """Remove secrets and recipients; ledgers and log stay. Only when the job is over and no agent is alive."""


@dataclass
class LocalChannel:
    """A job folder on this machine, and the agent as a detached process: it outlives whoever started it."""

    folder: Path
    python: str = sys.executable
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def prepare(self, job: Job, message: bytes, secrets: Secrets) -> None:
        for name in ("shards", "ledgers"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        job.store(self.folder / "job.json")
        replace_file(self.folder / "message.json", message)
        secrets.store(self.folder / "secrets.json", 0o600)
        (self.folder / "suppressions.log").touch()

    def message(self) -> bytes | None:
        path = self.folder / "message.json"
        return path.read_bytes() if path.exists() else None

    def put_shard(self, name: str, source: StorePath) -> None:
        target = self.folder / "shards" / name
        if target.exists():
            return
        temporary = target.with_name(f".{name}.{os.getpid()}")
        temporary.write_bytes(source.read_bytes())
        temporary.replace(target)

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

    def suppressions(self) -> set[str]:
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
            with (self.folder / "ledgers" / name).open("rb") as file:
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
        for shard in (self.folder / "shards").glob("*.parquet"):
            shard.unlink(missing_ok=True)
