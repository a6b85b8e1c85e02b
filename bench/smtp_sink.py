"""Postfix's smtp-sink as the MTA of a benchmark: found on this machine, or unpacked from Debian's package beside it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mta.postfix import NoPostfixError, unpacked
from tests.support import free_port


@dataclass(frozen=True)
class SmtpSink:
    program: Path
    libraries: Path | None
    version: str

    def program_beside(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Another program of the same package, and the environment that it needs."""
        return [str(self.program.with_name(name))], self._environment()

    def _environment(self) -> dict[str, str]:
        libraries = {} if self.libraries is None else {"LD_LIBRARY_PATH": str(self.libraries)}
        return {**os.environ, **libraries}

    @contextmanager
    def serve(self, dump_folder: Path | None = None) -> Iterator[int]:
        """Listen on a free port of the loopback; with ``dump_folder`` each message is kept in a file."""
        port = free_port()
        command = [str(self.program)] + (["-u", "root"] if os.geteuid() == 0 else [])
        if dump_folder is not None:
            command += ["-d", f"{dump_folder}/%M."]
        command += [f"127.0.0.1:{port}", "256"]
        process = subprocess.Popen(command, env=self._environment(), stdin=subprocess.DEVNULL)
        try:
            wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def find() -> SmtpSink:
    """
    Raises:
        NoPostfixError: the sentence says how to get it.
    """
    for place in (shutil.which("smtp-sink"), "/usr/sbin/smtp-sink"):
        if place and Path(place).exists():
            return SmtpSink(Path(place), None, _package_version() or "installed")
    root, version = unpacked()
    return SmtpSink(root / "usr/sbin/smtp-sink", root / "usr/lib/postfix", version)


def _package_version() -> str:
    found = subprocess.run(
        ["dpkg-query", "-W", "-f", "postfix ${Version}", "postfix"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise NoPostfixError("smtp-sink doesn't listen") from None
            time.sleep(0.05)
        else:
            return
