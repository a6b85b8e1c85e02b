"""A channel moves the files of one job folder and starts its agent; nothing else passes between centre and agent.

``LocalChannel`` is a folder of this machine and a child process. ``ssh_channel.py`` does the same on another machine.
"""

from collections.abc import Sequence
from typing import Protocol

from mailer_lib.agent.job import ControlFile, Job, Secrets, Status
from mailer_lib.agent.job_host import ChannelError, JobHost, upload_shard
from mailer_lib.shard.store import StorePath

__all__ = ["Channel", "ChannelError", "ChannelUnreachableError", "LocalChannel"]


class ChannelUnreachableError(ChannelError):
    """The server can't be reached now. It may come back by itself; its agent goes on as far as its grant."""


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


class LocalChannel(JobHost):
    """A job folder on this machine, and the agent as a detached process: it outlives whoever started it."""

    def put_shard(self, name: str, source: StorePath) -> None:
        if not self.has_shard(name):
            upload_shard(self, name, source.read_bytes())
