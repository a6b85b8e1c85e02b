"""Resolve pyproject.toml into requirements.txt, requirements-demo.txt and requirements-dev.txt, with hashes.

The full lock comes first and constrains the other two, so that one version serves everywhere. The S3 server of the
tests is a program with a virtual environment of its own (its AWS SDK wants an older python-dateutil than Airflow's lock
has), so it is resolved by itself: requirements-s3-server.txt.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv") or "uv"
LOCKS = {
    "requirements.txt": ("central", "sink", "airflow", "fleet", "mysql", "postgres"),
    "requirements-demo.txt": ("central", "sink", "airflow"),
    "requirements-agent.txt": (),
    "requirements-dev.txt": ("central", "sink", "airflow", "fleet", "mysql", "postgres", "dev"),
}


def main() -> None:
    for name, extras in LOCKS.items():
        options = [option for extra in extras for option in ("--extra", extra)]
        if name != "requirements.txt":
            options += ["-c", "requirements.txt"]
        lock(name, "pyproject.toml", *options)
    lock("requirements-s3-server.txt", ".ci/s3-server.in")


def lock(name: str, source: str, *options: str) -> None:
    command = [UV, "pip", "compile", "-q", source, "--generate-hashes", "--universal"]
    command += ["--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--custom-compile-command", "make lock", "-o", name]
    subprocess.run([*command, *options], cwd=ROOT, check=True)
    print(f"{name}: locked")


if __name__ == "__main__":
    main()
