"""The job folder as the agent sees it: what to do, who else holds it, and what has changed (protocol: job.py)."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mailer_lib.agent.job import PROTOCOL, ControlFile, Job, Secrets
from mailer_lib.message.bundle import Bundle
from mailer_lib.release import release

T = TypeVar("T", bound=BaseModel)

_LOCK_PATIENCE_S = 1.0  # whoever only looks whether an agent lives holds the lock for a moment


class JobError(ValueError):
    """The job folder can't be used; the sentence says why."""


class AlreadyRunningError(JobError):
    """Another agent holds the folder."""


@dataclass(frozen=True)
class JobFolder:
    path: Path

    @property
    def ledgers(self) -> Path:
        return self.path / "ledgers"

    @property
    def control_path(self) -> Path:
        return self.path / "control.json"

    @property
    def suppressions_path(self) -> Path:
        return self.path / "suppressions.log"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def log_path(self) -> Path:
        return self.path / "agent.log"

    def lock(self) -> int:
        """Take the folder for the life of this process; returns the handle that holds the lock.

        Raises:
            AlreadyRunningError: another agent has it.
            JobError: there is no such folder.
        """
        try:
            handle = os.open(self.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JobError(f"{self.path} can't be used as a job folder: {error.strerror}") from None
        give_up_at = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < give_up_at:
                    time.sleep(0.02)
                    continue
                holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(handle)
                raise AlreadyRunningError(
                    f"an agent (pid {holder}) already works in {self.path}; attach to that one"
                ) from None
            break
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        return handle

    def job(self) -> Job:
        """
        Raises:
            JobError: job.json is missing or wrong, or of a protocol that isn't spoken here.
        """
        job = self.load("job.json", Job)
        if job.protocol != PROTOCOL:
            raise JobError(f"{self.path}/job.json is of protocol {job.protocol}; this agent speaks {PROTOCOL}")
        if job.release != release():
            raise JobError(
                f"{self.path}/job.json was made by Mailfleet {job.release}, and this agent is {release()}: bring both "
                f"to one release (`mailfleet server provision {job.server}`); nothing is lost meanwhile"
            )
        return job

    def secrets(self) -> Secrets:
        """
        Raises:
            JobError: secrets.json is missing or wrong; values don't appear in the sentence.
        """
        return self.load("secrets.json", Secrets)

    def bundle(self) -> Bundle:
        """
        Raises:
            JobError: message.json is missing or wrong.
        """
        return self.load("message.json", Bundle)

    def load(self, name: str, model: type[T]) -> T:
        """One file of the protocol.

        Raises:
            JobError: it is missing or wrong.
        """
        path = self.path / name
        try:
            return model.model_validate_json(path.read_bytes())
        except OSError as error:
            raise JobError(f"{path} can't be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise JobError(f"{path}: {place}: {first['msg']}") from None


class ControlWatch:
    """Tells when control.json was replaced."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._seen: tuple[int, int, int] | None = None
        self._mtime = time.time()

    def age_s(self) -> float:
        """Seconds since the slot last replaced (or touched) control.json."""
        return time.time() - self._mtime

    def poll(self) -> ControlFile | None:
        """The new file when there is one.

        Raises:
            JobError: it is wrong.
        """
        try:
            stat = self._folder.control_path.stat()
        except FileNotFoundError:
            return None
        self._mtime = stat.st_mtime
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen == self._seen:
            return None
        control = self._folder.load("control.json", ControlFile)
        self._seen = seen
        return control
