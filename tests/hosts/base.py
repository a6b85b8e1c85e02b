"""The root file system that every host is a thin layer over: made once on a machine, by debootstrap."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
# What a hosting company's image has, and no more: sshd, and the Python that Ansible needs.
PACKAGES = (
    "openssh-server", "python3", "python3-apt", "iproute2", "procps", "systemd", "systemd-sysv", "dbus", "sudo",
)  # fmt: skip
CACHE = Path(os.environ.get("MAILFLEET_FLEET_CACHE", "/var/cache/mailfleet-tests"))


def base_root() -> Path:
    """The folder; made when it isn't there, which takes half a minute or more. Whoever comes second waits."""
    wanted = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    folder = CACHE / f"base-{wanted}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = CACHE / ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            _make(partial)
            partial.rename(folder)
    return folder


def _make(folder: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(folder), MIRROR]
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if keyring.exists():
        command.insert(1, f"--keyring={keyring}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise RuntimeError(f"debootstrap failed:\n{tail}")
    for path in (folder / "etc/ssh").glob("ssh_host_*"):  # each host has its own
        path.unlink()
    (folder / "etc/machine-id").write_text("")
    (folder / "etc/resolv.conf").unlink(missing_ok=True)
