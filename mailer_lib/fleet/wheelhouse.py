"""What an agent is installed from on a dispatch server: one tar file of wheels, made once for each release.

Hosts need no way to a package index. The agent's own wheel is made here, from the very modules that run here: so the
centre and its agents are one release, in a checkout and in an image alike. Its dependencies are those of
``requirements-agent.txt``, downloaded by hash for Debian 12's Python.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mailer_lib
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings

PYTHON = "3.11"  # of Debian 12
_GLIBC = range(36, 16, -1)  # 2.36 is Debian 12's; wheels for older ones run there too
_PACKAGE = Path(mailer_lib.__file__).parent
_LOCKS = (_PACKAGE / "requirements-agent.txt", _PACKAGE.parent / "requirements-agent.txt")  # of a wheel, of a checkout
_NOT_OURS = frozenset({"__pycache__", "sql", "playbooks", "requirements-agent.txt"})
_TIME = (2020, 1, 1, 0, 0, 0)  # the same source makes the same wheel
DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True)
class Wheelhouse:
    """``release`` names what is in it: version, and the hash of source, lock and machine."""

    path: Path
    release: str


def wheelhouse(settings: Settings, *, machine: str | None = None) -> Wheelhouse:
    """The tar file for hosts of this kind of ``machine`` (as ``uname -m`` says; this one's by default).

    Raises:
        FleetError: the dependencies can't be had; the sentence has pip's last words.
    """
    machine = machine or platform.machine()
    lock = _lock()
    sources = _sources()
    digest = hashlib.sha256(f"{PYTHON} {machine}\n".encode() + lock)
    for name, data in sources.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    release = f"{mailer_lib.__version__}-{digest.hexdigest()[:12]}"
    folder = settings.home / "wheelhouse"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{release}.tar"
    with _one_at_a_time(folder):
        if not path.exists():
            wheels = _dependencies(folder, lock, machine)
            partial = folder / f".{release}.tar"
            with tarfile.open(partial, "w") as tar:
                for wheel in sorted(wheels.glob("*.whl")):
                    tar.add(wheel, wheel.name)
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    own = Path(work) / f"mailfleet-{mailer_lib.__version__}-py3-none-any.whl"
                    write_wheel(own, sources)
                    tar.add(own, own.name)
                    (Path(work) / "requirements.txt").write_bytes(lock)
                    tar.add(Path(work) / "requirements.txt", "requirements.txt")
            partial.rename(path)
    return Wheelhouse(path, release)


def write_wheel(path: Path, sources: dict[str, bytes]) -> None:
    """A wheel (PEP 427) of these files. Its dependencies are installed from the lock, so it names none."""
    info = f"mailfleet-{mailer_lib.__version__}.dist-info"
    files = dict(sources)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: mailfleet\nVersion: {mailer_lib.__version__}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: mailfleet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)


def _lock() -> bytes:
    for path in _LOCKS:
        if path.is_file():
            return path.read_bytes()
    raise FleetError(f"requirements-agent.txt is in none of {', '.join(str(path.parent) for path in _LOCKS)}")


def _sources() -> dict[str, bytes]:
    """The files of ``mailer_lib`` that run, by their names in a wheel."""
    found = {}
    for path in sorted(_PACKAGE.rglob("*")):
        relative = path.relative_to(_PACKAGE)
        if path.is_file() and not _NOT_OURS.intersection(relative.parts) and path.suffix != ".pyc":
            found[f"mailer_lib/{relative.as_posix()}"] = path.read_bytes()
    return found


def _dependencies(folder: Path, lock: bytes, machine: str) -> Path:
    """A folder with the locked wheels, downloaded when it isn't there."""
    wheels = folder / f"wheels-{hashlib.sha256(lock).hexdigest()[:12]}-{machine}"
    if wheels.exists():
        return wheels
    partial = folder / f".{wheels.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / "requirements.txt").write_bytes(lock)
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [
        f"--platform=manylinux2014_{machine}"
    ]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes",
        "--only-binary=:all:", "--no-deps", "--implementation=cp", f"--python-version={PYTHON}", *platforms,
        f"--dest={partial}", f"--requirement={partial / 'requirements.txt'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    if done.returncode:
        words = "; ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise FleetError(f"the agent's dependencies can't be downloaded for {machine}: {words}")
    (partial / "requirements.txt").unlink()
    partial.rename(wheels)
    return wheels


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
