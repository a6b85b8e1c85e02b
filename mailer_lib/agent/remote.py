"""``python -m mailer_lib.agent.remote JOBS_DIR``: the job folders of a dispatch server, served to the centre over one
session of SSH: frames (``frames.py``) on stdin and stdout.

It says first who it is: ``{"hello": PROTOCOL, "release": …}``. Then each request ``{"id", "job", "op", …}`` has one
answer ``{"id", …}`` or ``{"id", "error"}``, in any order. The operations are those of ``JobHost``, and to list
and remove folders. It ends with stdin; the agents that it started live on.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mailer_lib.agent.frames import MAX_PAYLOAD, Decoder, Frame, FrameError, encode
from mailer_lib.agent.job import ControlFile, Job, Secrets
from mailer_lib.agent.job_folders import list_folders, remove_folder
from mailer_lib.agent.job_host import ChannelError, JobHost
from mailer_lib.release import release

PROTOCOL = 1  # of the frames and operations; job.PROTOCOL is that of the folder
_AT_ONCE = 4  # requests; each may wait for a disk
_WAITING = 64  # requests that are read ahead
_JOB_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@#-]{0,127}")


class Op(StrEnum):
    PREPARE = "prepare"
    MESSAGE = "message"
    HAS_SHARD = "has_shard"
    PUT_SHARD_PART = "put_shard_part"
    WRITE_CONTROL = "write_control"
    READ_CONTROL = "read_control"
    READ_SUPPRESSIONS = "read_suppressions"
    APPEND_SUPPRESSIONS = "append_suppressions"
    FETCH_LEDGER = "fetch_ledger"
    PULSE = "pulse"
    START = "start"
    STOP = "stop"
    KILL = "kill"
    LOG_TAIL = "log_tail"
    CLEAR = "clear"
    REMOVE = "remove"  # the whole folder
    FOLDERS = "folders"  # which there are; of no job


Answer = tuple[dict[str, Any], bytes]
Arguments = Mapping[str, Any]


def _prepare(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    job, secrets = Job.model_validate(arguments["job_file"]), Secrets.model_validate(arguments["secrets"])
    host.prepare(job, payload, secrets)
    return {}, b""


def _message(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    message = host.message()
    return {"there": message is not None}, message or b""


def _put_shard_part(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    there = host.put_shard_part(
        str(arguments["name"]), int(arguments["size"]), str(arguments["sha256"]), int(arguments["offset"]), payload
    )
    return {"there": there}, b""


def _write_control(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    host.write_control(ControlFile.model_validate(arguments["control"]))
    return {}, b""


def _read_control(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    control = host.read_control()
    return {"control": control.model_dump(mode="json") if control is not None else None}, b""


def _append_suppressions(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    host.append_suppressions(payload.decode("ascii").split())
    return {}, b""


def _pulse(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
    pulse = host.pulse()
    status = pulse.status.model_dump(mode="json") if pulse.status is not None else None
    return {"alive": pulse.alive, "status": status, "age_s": pulse.age_s}, b""


def _plain(act: Callable[[JobHost], None]) -> Callable[[JobHost, Arguments, bytes], Answer]:
    def operation(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
        act(host)
        return {}, b""

    return operation


def _part(read: Callable[[JobHost, Arguments, int, int], bytes]) -> Callable[[JobHost, Arguments, bytes], Answer]:
    def operation(host: JobHost, arguments: Arguments, payload: bytes) -> Answer:
        offset, limit = int(arguments["offset"]), int(arguments["limit"])
        if offset < 0 or not 0 <= limit <= MAX_PAYLOAD:
            raise ChannelError(f"bytes {offset} to {offset + limit} can't be read at once")
        return {}, read(host, arguments, offset, limit)

    return operation


OPERATIONS: dict[Op, Callable[[JobHost, Arguments, bytes], Answer]] = {
    Op.PREPARE: _prepare,
    Op.MESSAGE: _message,
    Op.HAS_SHARD: lambda host, arguments, payload: ({"there": host.has_shard(str(arguments["name"]))}, b""),
    Op.PUT_SHARD_PART: _put_shard_part,
    Op.WRITE_CONTROL: _write_control,
    Op.READ_CONTROL: _read_control,
    Op.READ_SUPPRESSIONS: _part(lambda host, arguments, offset, limit: host.read_suppressions(offset, limit)),
    Op.APPEND_SUPPRESSIONS: _append_suppressions,
    Op.FETCH_LEDGER: _part(
        lambda host, arguments, offset, limit: host.fetch_ledger(str(arguments["name"]), offset, limit)
    ),
    Op.PULSE: _pulse,
    Op.START: _plain(JobHost.start),
    Op.STOP: _plain(JobHost.stop),
    Op.KILL: _plain(JobHost.kill),
    Op.LOG_TAIL: lambda host, arguments, payload: ({"lines": host.log_tail(int(arguments["lines"]))}, b""),
    Op.CLEAR: _plain(JobHost.clear),
}


@dataclass
class Jobs:
    """The job folders below ``root``. One request at a time for each."""

    root: Path
    _hosts: dict[str, tuple[JobHost, threading.Lock]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Frame) -> bytes:
        """The frame that answers a request, whatever the request is."""
        number = request.header.get("id")
        try:
            op = Op(str(request.header.get("op")))
            if op is Op.FOLDERS:
                return encode({"id": number, "folders": list_folders(self.root)})
            job = str(request.header.get("job"))
            host, lock = self._host(job)
            with lock:
                if op is Op.REMOVE:
                    remove_folder(self.root, job)
                    return encode({"id": number})
                result, payload = OPERATIONS[op](host, request.header, request.payload)
            return encode({"id": number, **result}, payload)
        except ChannelError as error:
            sentence = str(error)
        except OSError as error:
            sentence = f"{error.filename or 'the job folder'}: {error.strerror or error}"
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            sentence = f"{error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (KeyError, ValueError, TypeError, RecursionError) as error:  # no value: it may be a secret
            sentence = f"the request isn't one of this protocol ({type(error).__name__})"
        return encode({"id": number if isinstance(number, int) else None, "error": sentence})

    def _host(self, job: str) -> tuple[JobHost, threading.Lock]:
        parts = job.split("/")
        if len(parts) != 3 or not all(_JOB_PART.fullmatch(part) and ".." not in part for part in parts):
            raise ChannelError(f"{job[:200]!r} can't name a job folder: it is campaign/edition/slot")
        with self._lock:
            if job not in self._hosts:
                self._hosts[job] = JobHost(self.root.joinpath(*parts)), threading.Lock()
            return self._hosts[job]


def serve(root: Path, source: int, target: int) -> None:
    """Answer until ``source`` ends.

    Raises:
        FrameError: what comes isn't this protocol.
    """
    jobs, decoder = Jobs(root), Decoder()
    writing = threading.Lock()
    ahead = threading.BoundedSemaphore(_WAITING)

    def send(data: bytes) -> None:
        view = memoryview(data)
        with writing:
            while view:
                view = view[os.write(target, view) :]

    def work(request: Frame) -> None:
        try:
            send(jobs.answer(request))
        except BrokenPipeError:
            pass  # the centre is gone; stdin says so too
        finally:
            ahead.release()

    send(encode({"hello": PROTOCOL, "release": release()}))
    with ThreadPoolExecutor(_AT_ONCE, "job") as pool:
        while data := os.read(source, 1 << 20):
            for request in decoder.feed(data):
                ahead.acquire()
                pool.submit(work, request)


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m mailer_lib.agent.remote JOBS_DIR\n")
        return 2
    frames_out = os.dup(1)
    os.dup2(2, 1)  # whatever prints can't come between two frames
    try:
        serve(Path(sys.argv[1]).absolute(), 0, frames_out)
    except FrameError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
