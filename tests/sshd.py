"""A private OpenSSH server on 127.0.0.1 for the user who runs the tests, with keys and a port of its own.

The program comes from the base that the test fleet boots (tests/hosts/base.py): installing it would start a daemon. It
runs in a mount namespace where the system's users have the one more that sshd wants, so it changes nothing outside.
"""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.hosts.base import base_root
from tests.support import lasting_port, missing

_START_S = 10.0


class Sshd:
    """Started; ``stop`` ends it and every session."""

    def __init__(self, folder: Path, public_line: str) -> None:
        if os.geteuid():
            missing("a private sshd needs root: it gets a mount namespace")
        self.folder = folder
        self.port = lasting_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()
        self.authorize(public_line)
        self.new_host_key()
        self._passwd = folder / "passwd"
        self._passwd.write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nMaxSessions 100\nMaxStartups 100\nLogLevel ERROR\n"
        )
        self.start()

    @property
    def host_key(self) -> str:
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def reached_as(self, jobs: Path) -> dict[str, object]:
        """Fields of a dispatch server whose agents run on this machine, below ``jobs``."""
        return {
            "channel": "ssh",
            "host": "127.0.0.1",
            "ssh_port": self.port,
            "ssh_user": self.user,
            "host_key": self.host_key,
            "agent_python": sys.executable,
            "remote_jobs_dir": str(jobs),
        }

    def authorize(self, public_line: str) -> None:
        """The one key that may log in."""
        (self.folder / "authorized_keys").write_text(public_line + "\n")

    def new_host_key(self) -> None:
        """As if the machine was installed anew. Takes effect with the next ``start``."""
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "host_key")], check=True)

    def start(self) -> None:
        """Unless it answers already."""
        if self._process is not None:
            return
        program = base_root() / "usr/sbin/sshd"
        script = (
            f"mount --bind {self._passwd} /etc/passwd && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && "
            f"exec {program} -D -e -f {self.folder}/sshd_config"
        )
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                    if probe.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"sshd didn't start:\n{(self.folder / 'sshd.log').read_text()}")
            time.sleep(0.02)

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve a connection, each with a child of the user's own privileges."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()

    def cut(self) -> None:
        """Every connection breaks; what the sessions had started lives on."""
        for session in self.sessions():
            for process in (session, *session.children(recursive=True)):
                if process.name() == "sshd":
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()

    def stop(self) -> None:
        """The listener and every connection end; nobody answers on the port until ``start``."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(self._process.pid, signal.SIGSTOP)  # no new session while the old ones are cut
            self.cut()
        self._process.kill()
        self._process.wait()
        self._process = None
