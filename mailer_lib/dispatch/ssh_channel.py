"""The channel ``ssh``: a job folder on a dispatch server, through ``agent/remote.py`` and the server's shared link."""

import time
from collections.abc import Sequence

from mailer_lib.agent.frames import MAX_PAYLOAD
from mailer_lib.agent.job import ControlFile, Job, Secrets, Status
from mailer_lib.agent.job_host import upload_shard
from mailer_lib.agent.remote import Op
from mailer_lib.dispatch.ssh_link import ServerLink
from mailer_lib.shard.store import StorePath

PULSE_S = 0.25  # a slot asks for status and life up to ten times a second; four answers are enough
_LINES = 20_000  # of suppressions in one request


class SshChannel:
    """A ``Channel``. Each call may raise ``ChannelUnreachableError``; repeating it is always safe."""

    def __init__(self, link: ServerLink, job: str) -> None:
        """``job``: campaign/edition/slot."""
        self._link = link
        self._job = job
        self._shards: set[str] = set()  # that are whole there
        self._pulse: tuple[float, bool, Status | None] | None = None

    def prepare(self, job: Job, message: bytes, secrets: Secrets) -> None:
        self._shards.clear()
        arguments = {"job_file": job.model_dump(mode="json"), "secrets": secrets.model_dump(mode="json")}
        self._link.request(self._job, Op.PREPARE, arguments, message)

    def message(self) -> bytes | None:
        answer, message = self._link.request(self._job, Op.MESSAGE)
        return message if answer["there"] else None

    def put_shard(self, name: str, source: StorePath) -> None:
        if name in self._shards:
            return
        answer, _ = self._link.request(self._job, Op.HAS_SHARD, {"name": name})
        if not answer["there"]:
            upload_shard(self, name, source.read_bytes())
        self._shards.add(name)

    def put_shard_part(self, name: str, size: int, sha256: str, offset: int, data: bytes) -> int | None:
        arguments = {"name": name, "size": size, "sha256": sha256, "offset": offset}
        answer, _ = self._link.request(self._job, Op.PUT_SHARD_PART, arguments, data)
        there = answer["there"]
        return None if there is None else int(there)

    def write_control(self, control: ControlFile) -> None:
        self._link.request(self._job, Op.WRITE_CONTROL, {"control": control.model_dump(mode="json")})

    def read_control(self) -> ControlFile | None:
        answer, _ = self._link.request(self._job, Op.READ_CONTROL)
        return None if answer["control"] is None else ControlFile.model_validate(answer["control"])

    def suppressions(self) -> set[str]:
        found = b""
        while True:
            _, more = self._link.request(self._job, Op.READ_SUPPRESSIONS, {"offset": len(found), "limit": MAX_PAYLOAD})
            if not more:
                return set(found.decode().split())
            found += more

    def append_suppressions(self, lines: Sequence[str]) -> None:
        for first in range(0, len(lines), _LINES):
            payload = "\n".join(lines[first : first + _LINES]).encode()
            self._link.request(self._job, Op.APPEND_SUPPRESSIONS, payload=payload)

    def fetch_ledger(self, name: str, offset: int, limit: int) -> bytes:
        arguments = {"name": name, "offset": offset, "limit": min(limit, MAX_PAYLOAD)}
        return self._link.request(self._job, Op.FETCH_LEDGER, arguments)[1]

    def status(self) -> Status | None:
        """``at`` is by this machine's clock: only the age of the agent's word comes over."""
        return self._look()[1]

    def is_alive(self) -> bool:
        return self._look()[0]

    def start(self) -> None:
        self._act(Op.START)

    def stop(self) -> None:
        self._act(Op.STOP)

    def kill(self) -> None:
        self._act(Op.KILL)

    def log_tail(self, lines: int = 12) -> list[str]:
        answer, _ = self._link.request(self._job, Op.LOG_TAIL, {"lines": lines})
        return [str(line) for line in answer["lines"]]

    def clear(self) -> None:
        self._shards.clear()
        self._act(Op.CLEAR)

    def _act(self, op: Op) -> None:
        self._link.request(self._job, op)
        self._pulse = None

    def _look(self) -> tuple[bool, Status | None]:
        at = time.monotonic()
        if self._pulse is None or at - self._pulse[0] >= PULSE_S:
            answer, _ = self._link.request(self._job, Op.PULSE)
            status = None
            if answer["status"] is not None:
                status = Status.model_validate(answer["status"] | {"at": time.time() - float(answer["age_s"])})
            self._pulse = at, bool(answer["alive"]), status
        return self._pulse[1], self._pulse[2]
