"""Resolve pyproject.toml into requirements.txt, requirements-demo.txt and requirements-dev.txt, with hashes.

The full lock comes first and constrains the other two, so that one version serves everywhere.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv") or "uv"
LOCKS = {
    "requirements.txt": ("central", "sink", "airflow", "mysql", "postgres"),
    "requirements-demo.txt": ("central", "sink", "airflow"),
    "requirements-dev.txt": ("central", "sink", "airflow", "mysql", "postgres", "dev"),
}


def main() -> None:
    for name, extras in LOCKS.items():
        command = [UV, "pip", "compile", "-q", "pyproject.toml", "--generate-hashes", "--universal"]
        command += ["--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--custom-compile-command", "make lock", "-o", name]
        for extra in extras:
            command += ["--extra", extra]
        if name != "requirements.txt":
            command += ["-c", "requirements.txt"]
        subprocess.run(command, cwd=ROOT, check=True)
        print(f"{name}: locked")


if __name__ == "__main__":
    main()
