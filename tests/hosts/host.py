"""One bare Debian host: an overlay over the base, booted by systemd-nspawn behind a port of the switch."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.hosts.switch import Switch

BOOT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


class HostError(RuntimeError):
    """A host didn't come up; the sentence has the end of its console."""


class Host:
    """``number`` is its port of the switch and the end of its address."""

    def __init__(self, folder: Path, base: Path, switch: Switch, number: int, name: str, public_key: str) -> None:
        self.name, self.number = name, number
        self.address = switch.address(number)
        self.folder = folder
        self.root = folder / "root"
        self._switch = switch
        self._process: subprocess.Popen[bytes] | None = None
        self._cgroups = [mount / f"{switch.name}-{number}" for mount in _cgroup_mounts()]
        self._namespace = switch.plug(number)
        for part in ("upper", "work", "root"):
            (folder / part).mkdir(parents=True)
        options = f"lowerdir={base},upperdir={folder / 'upper'},workdir={folder / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True)
        self.write("/etc/hostname", f"{name}\n")
        self.write("/etc/resolv.conf", f"nameserver {switch.gateway}\n")
        self.write("/root/.ssh/authorized_keys", public_key, mode=0o600)
        (self.root / "root/.ssh").chmod(0o700)
        subprocess.run(["chroot", str(self.root), "ssh-keygen", "-A"], check=True, capture_output=True)

    @property
    def host_key(self) -> str:
        """Type and key, as ``known_hosts`` wants them: known beforehand, so nothing is trusted at first sight."""
        return " ".join((self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    @property
    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file of the host, written from outside."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def boot(self) -> None:
        """Begin to boot; ``wait`` until it is up."""
        for cgroup in self._cgroups:
            cgroup.mkdir(exist_ok=True)
        enter = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in self._cgroups)
        nspawn = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.name}", "--register=no",
            "--keep-unit", f"--network-namespace-path=/run/netns/{self._namespace}", "--capability=CAP_NET_ADMIN",
            "--resolv-conf=off", "--console=pipe", "--boot",
        ]  # fmt: skip
        with (self.folder / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", f'{enter}exec "$@"', "sh", *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until sshd answers.

        Raises:
            HostError: it doesn't, within a minute.
        """
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while not self._answers():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise HostError(f"{self.name} didn't come up:\n{self.console[-2000:]}")
            time.sleep(0.1)

    def shut_down(self) -> None:
        """In order, as ``poweroff`` does."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.power_off()

    def power_off(self) -> None:
        """Pull the plug: every process is gone at once, and nobody was told."""
        if self._process is None:
            return
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while pids := {pid for cgroup in self._cgroups for pid in _processes(cgroup)}:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise HostError(f"{self.name}: processes {sorted(pids)} can't be killed")
            time.sleep(0.02)
        self._process.wait()
        self._process = None

    def remove(self) -> None:
        """Whatever state it is in."""
        self.power_off()
        subprocess.run(["umount", "--lazy", str(self.root)], capture_output=True, check=False)
        for cgroup in self._cgroups:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                with suppress(OSError):
                    Path(folder).rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with self._switch.inside(), socket.create_connection((self.address, 22), 0.5) as connection:
                connection.settimeout(2)
                return connection.recv(8).startswith(b"SSH-2.0")
        except OSError:
            return False


def _cgroup_mounts() -> list[Path]:
    """Of the hierarchies that a booting systemd wants to write to: the unified one, and the old one named systemd."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
            found.append(Path(before.split()[4]))
    return found


def _processes(cgroup: Path) -> set[int]:
    found: set[int] = set()
    for folder, _, _ in os.walk(cgroup):  # units end and their folders go while we look; walk passes over that
        with suppress(OSError):
            found |= {int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split()}
    return found
