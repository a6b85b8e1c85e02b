"""Build the Dockerfile without a registry: its base is made here by debootstrap, under the name that FROM uses.

Everything lives in one folder that is removed afterwards. How this machine reaches its package indexes (apt sources,
pip settings, certificates) is handed to the build by mounts, so none of it gets into the image or the repository.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = "docker.io/library/debian:bookworm-slim"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_CERTIFICATES_INSIDE = "/run/machine-certificates.crt"


class ImageBuilder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base_folder = folder / "base"
        self._storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]

    def make_base(self) -> None:
        """A minimal Debian, with this machine's apt sources."""
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        command = ["debootstrap", "--variant=minbase", SUITE, str(self.base_folder), MIRROR]
        if keyring.exists():
            command.insert(1, f"--keyring={keyring}")
        _run(*command)
        for entry in ("sources.list", "sources.list.d", "apt.conf.d"):
            source, target = Path("/etc/apt") / entry, self.base_folder / "etc/apt" / entry
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, target)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, str(self.base_folder), "/")
        self.buildah("commit", "--quiet", container, BASE)
        self.buildah("rm", container)
        shutil.rmtree(self.base_folder)

    def build(self, tag: str) -> None:
        self.buildah(
            "bud", "--isolation", "chroot", "--pull=never", "--layers=false", *self._mounts(),
            "--tag", tag, "--file", str(ROOT / "Dockerfile"), str(ROOT),
        )  # fmt: skip

    def start(self, tag: str) -> str:
        """A container of the image, for ``run``."""
        return self.buildah("from", "--pull=never", tag).strip()

    def run(self, container: str, *command: str) -> str:
        return self.buildah("run", "--isolation", "chroot", container, "--", *command)

    def buildah(self, *arguments: str) -> str:
        return _run("buildah", *self._storage, *arguments)

    def remove(self) -> None:
        """Containers, images and folder; mounts first, because rmtree would go into them."""
        subprocess.run(["buildah", *self._storage, "rm", "--all"], capture_output=True, check=False)
        subprocess.run(["buildah", *self._storage, "rmi", "--all", "--force"], capture_output=True, check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            mounted = Path(line.split()[4])
            if mounted.is_relative_to(self.folder):
                subprocess.run(["umount", "-l", str(mounted)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mounts(self) -> list[str]:
        """pip's settings of this machine as the build's /etc/pip.conf, the certificates, and folders they name."""
        settings = _pip_settings()
        folders = {
            Path(*Path(path).parts[:3])
            for value in settings.values()
            for path in re.findall(r"(?:file://|(?<![\w:/]))(/[^\s]+)", value)
            if Path(path).exists()
        }
        mounts = [f"{folder}:{folder}:ro" for folder in sorted(folders)]
        if _CERTIFICATES.exists():
            settings["cert"] = _CERTIFICATES_INSIDE
            mounts.append(f"{_CERTIFICATES}:{_CERTIFICATES_INSIDE}:ro")
        configuration = self.folder / "pip.conf"
        configuration.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
        mounts.append(f"{configuration}:/etc/pip.conf:ro")
        return [part for mount in mounts for part in ("--volume", mount)]


def _pip_settings() -> dict[str, str]:
    """Where pip finds packages here: of all its files and variables, only what concerns that."""
    wanted = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "default-timeout")
    found: dict[str, list[str]] = {}
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip is None:
        return {}
    for line in _run(pip, "config", "list").splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        if name in wanted:
            found.setdefault("timeout" if name == "default-timeout" else name, []).append(value.strip("'\""))
    return {name: values[-1] for name, values in found.items()}


def _run(*command: str) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise RuntimeError(f"{' '.join(command[:1])} … ended with {done.returncode}:\n{tail}")
    sys.stderr.write(done.stderr)
    return done.stdout
