"""An S3 server of our own (moto's), in memory: its own port, gone with the test process even when that is killed."""

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support import free_port

_START_TRIES = 3
_START_S = 60


def program() -> str | None:
    """The Python that has the server, where ``.ci/setup.py`` puts it: the locked version, whatever else is on PATH."""
    own = Path(sys.prefix) / "s3-server" / "bin" / "python"
    return str(own) if own.exists() else None


class S3Server:
    """Started by the constructor. Any key is good; it checks no signatures."""

    def __init__(self) -> None:
        for attempt in range(1, _START_TRIES + 1):
            port = free_port()
            self.url = f"http://127.0.0.1:{port}"
            self._process = subprocess.Popen(
                [program() or "python3", "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                env={"PATH": os.environ.get("PATH", "")},  # it has packages of its own, and no business with ours
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
            )
            if self._wait():
                return
            self.stop()
            if attempt == _START_TRIES:
                raise RuntimeError("moto_server didn't start")

    def _wait(self) -> bool:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return True
        return False

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{name}", method="PUT"), timeout=10).close()

    def stop(self) -> None:
        self._process.kill()  # nothing of it is on disk
        self._process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
