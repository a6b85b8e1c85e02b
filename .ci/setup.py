"""Set a checkout up: OS packages where we may (``dev``), then ``.venv`` from a lock. Standard library only.

    python3 .ci/setup.py demo    .venv with requirements-demo.txt: no apt, no root, no compiler
    python3 .ci/setup.py dev     apt packages marked [test] in packages.txt, then requirements-dev.txt, and the tests'
                                 S3 server beside it, from requirements-s3-server.txt

Does nothing when the lock it installed last is still the same. Package indexes come from the machine's configuration.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = {"demo": "requirements-demo.txt", "dev": "requirements-dev.txt"}
S3_SERVER = VENV / "s3-server"  # a virtual environment of its own: see .ci/lock.py


def run(*command: str, env: dict[str, str] | None = None) -> bool:
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, check=False).returncode == 0


def stop(sentence: str) -> None:
    sys.exit(f"setup: {sentence}")


def apt_packages(mark: str) -> list[str]:
    lines = (ROOT / "packages.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if f"[{mark}]" in line and not line.startswith("#")]


def missing(packages: list[str]) -> list[str]:
    def installed(name: str) -> bool:
        query = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True, check=False
        )
        return "install ok installed" in query.stdout

    return [name for name in packages if not installed(name)]


def install_os_packages() -> None:
    if shutil.which("apt-get") is None:
        print("setup: no apt-get here; tests that need MariaDB, Exim or buildah will say so")
        return
    wanted = missing(apt_packages("test"))
    if not wanted:
        return
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and not (shutil.which("sudo") and run("sudo", "-n", "true")):
        print(f"setup: not root, so not installed: {' '.join(wanted)}; tests that need them will say so")
        return
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    print(f"setup: apt-get install {' '.join(wanted)}", flush=True)
    run(*prefix, "apt-get", "-qq", "update", env=quiet)
    if not run(*prefix, "apt-get", "-qq", "-y", "--no-install-recommends", "install", *wanted, env=quiet):
        print(f"setup: could not install all of: {' '.join(missing(wanted))}")
    for service in ("mariadb", "exim4"):  # tests start private ones; Debian starts these by itself
        if shutil.which("systemctl") and Path("/run/systemd/system").exists():
            subprocess.run([*prefix, "systemctl", "disable", "-q", "--now", service], capture_output=True, check=False)


def uv() -> list[str]:
    """The command for uv: the venv's own, else one on PATH, else installed now."""
    own = VENV / "bin" / "uv"
    if own.exists():
        return [str(own)]
    has_pip = (VENV / "bin" / "pip").exists() or run(sys.executable, "-m", "venv", str(VENV))
    if has_pip and run(str(VENV / "bin" / "python"), "-m", "pip", "-q", "install", "uv"):
        return [str(own)]
    found = shutil.which("uv")
    if found:
        shutil.rmtree(VENV, ignore_errors=True)
        if run(found, "venv", "-q", "--python", sys.executable, str(VENV)):
            return [found]
    stop(
        f"{sys.executable} can't make a virtual environment (on Debian the package python3-venv is missing) "
        "and there is no uv on PATH; install either and run this again"
    )
    raise AssertionError


def can_build_mysqlclient() -> bool:
    return bool(shutil.which("gcc")) and bool(shutil.which("mariadb_config") or shutil.which("mysql_config"))


def without(lock: str, package: str) -> str:
    """A hashed lock without one package's block."""
    return re.sub(rf"^{package}==.*?(?=^\S)", "", lock, flags=re.MULTILINE | re.DOTALL)


def install_s3_server() -> None:
    lock = ROOT / "requirements-s3-server.txt"
    stamp, digest = S3_SERVER / ".installed", hashlib.sha256(lock.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    tool = uv()
    print(f"setup: installing {lock.name}", flush=True)
    made = run(*tool, "venv", "-q", "--clear", "--python", str(VENV / "bin" / "python"), str(S3_SERVER))
    if not (
        made and run(*tool, "pip", "install", "-q", "--python", str(S3_SERVER), "--require-hashes", "-r", str(lock))
    ):
        stop(f"could not install {lock.name}; the lines above say why")
    stamp.write_text(digest)


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in LOCKS:
        stop("say demo or dev")
    if sys.version_info < (3, 11):  # noqa: UP036 - says so before a lock fails to resolve
        stop(f"Mailfleet needs Python 3.11 or newer; this is {sys.version.split()[0]}. Say `make PYTHON=python3.12 …`")
    if kind == "dev":
        install_os_packages()
    lock = (ROOT / LOCKS[kind]).read_text()
    if kind == "dev" and not can_build_mysqlclient():
        print("setup: no compiler or libmariadb-dev, so mysqlclient is left out; tests on MariaDB will say so")
        lock = without(lock, "mysqlclient")
    digest = hashlib.sha256((lock + (ROOT / "pyproject.toml").read_text() + str(ROOT)).encode()).hexdigest()
    stamp = VENV / f".installed-{kind}"
    if not (stamp.exists() and stamp.read_text() == digest):
        install(kind, lock)
        stamp.write_text(digest)
    if kind == "dev":
        install_s3_server()


def install(kind: str, lock: str) -> None:
    tool = uv()
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(lock)
        file.flush()
        print(f"setup: installing {LOCKS[kind]}", flush=True)
        arguments = ["pip", "install", "-q", "--python", str(VENV), "--require-hashes", "-r", file.name]
        if not run(*tool, *arguments):
            stop(f"could not install {LOCKS[kind]}; the lines above say why")
    if not run(*tool, "pip", "install", "-q", "--python", str(VENV), "--no-deps", "-e", "."):
        stop("could not install Mailfleet itself; the lines above say why")


if __name__ == "__main__":
    main()
