"""A sink as a process of its own, for tests and the demo::

    with start(tmp_path, rules="domains: {slow.example: {slow: {after_dot_ms: 50}}}") as sink:
        …sink.ports[0], sink.mainlog, sink.maildir…

It ends with the ``with`` block, with ``stop()``, and when the process that started it ends in any way.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


class SinkProcessError(RuntimeError):
    """The sink's process didn't start; the sentence holds what it said."""


@dataclass
class SinkProcess:
    """A running sink. ``ports`` and ``tls_ports`` are in the order of the listen addresses."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    ports: tuple[int, ...]
    tls_ports: tuple[int, ...]

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def maildir(self) -> Path:
        return self.folder / "Maildir"

    @property
    def mainlog(self) -> Path:
        return self.folder / "mainlog"

    @property
    def certificate(self) -> Path:
        """What a client has to trust when the sink speaks TLS."""
        return self.folder / "cert.pem"

    def set_rules(self, text: str) -> None:
        """Replace rules.yaml; in force for the next RCPT."""
        write_rules(self.folder, text)

    def rotate_log(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """SIGTERM: messages in hand are finished."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reap()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def start(
    root: Path,
    *,
    name: str = "sink",
    listen: Sequence[str] = ("127.0.0.1:0",),
    listen_tls: Sequence[str] = (),
    rules: str | None = None,
    starttls: bool = False,
    require_starttls: bool = False,
    auth: Mapping[str, str] | None = None,
    fsync: bool = True,
    log_max_bytes: int | None = None,
) -> SinkProcess:
    """Start a sink below ``root`` and wait until it listens.

    Raises:
        SinkProcessError: it ended, or didn't listen within half a minute.
    """
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    if rules is not None:
        write_rules(folder, rules)
    command = [sys.executable, "-m", "mailer_lib.sink.server", "--root", str(root), "--name", name]
    command += ["--stop-on-stdin-eof"]
    command += [part for address in listen for part in ("--listen", address)]
    command += [part for address in listen_tls for part in ("--listen-tls", address)]
    command += ["--starttls"] * starttls + ["--require-starttls"] * require_starttls + ["--no-fsync"] * (not fsync)
    if log_max_bytes is not None:
        command += ["--log-max-bytes", str(log_max_bytes)]
    if auth is not None:
        auth_file = folder / "auth"
        auth_file.touch(mode=0o600)
        auth_file.write_text("".join(f"{user}:{password}\n" for user, password in auth.items()))
        command += ["--auth-file", str(auth_file)]
    errors = folder / "stderr.log"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    line = _first_line(process)
    if not line:
        process.kill()
        process.wait()
        raise SinkProcessError(f"the sink {name} didn't start: {errors.read_text(errors='replace').strip()[-800:]}")
    bound = json.loads(line)
    return SinkProcess(
        process,
        folder,
        ports=tuple(port for _, port in bound["listen"]),
        tls_ports=tuple(port for _, port in bound["listen_tls"]),
    )


def write_rules(folder: Path, text: str) -> None:
    """Replace ``folder``/rules.yaml in one step."""
    temporary = folder / ".rules.yaml.new"
    temporary.write_text(text, "utf-8")
    temporary.replace(folder / "rules.yaml")


def _first_line(process: "subprocess.Popen[bytes]") -> bytes:
    """What the sink prints once it listens; empty when it ended or took too long."""
    assert process.stdout is not None
    data = b""
    deadline = monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not data.endswith(b"\n") and (left := deadline - monotonic()) > 0:
            if selector.select(left):
                chunk = os.read(process.stdout.fileno(), 4096)
                if not chunk:
                    return b""
                data += chunk
    return data if data.endswith(b"\n") else b""
