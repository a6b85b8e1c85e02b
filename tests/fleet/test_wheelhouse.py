"""The wheel that agents are installed from, made out of the modules that run here."""

import subprocess
import sys
import zipfile
from pathlib import Path

from mailer_lib.fleet.wheelhouse import _lock, _sources, write_wheel


def test_the_same_source_makes_the_same_wheel_and_it_runs(tmp_path: Path) -> None:
    one, two = tmp_path / "one.whl", tmp_path / "two.whl"
    write_wheel(one, _sources())
    write_wheel(two, _sources())
    assert one.read_bytes() == two.read_bytes()
    script = "import mailer_lib.agent.agent as a; print(a.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(one)}, cwd=tmp_path, capture_output=True, text=True
    )
    assert said.stdout.strip() == f"{one}/mailer_lib/agent/agent.py", said.stderr


def test_pip_installs_it(tmp_path: Path) -> None:
    wheel = tmp_path / "mailfleet-0.1.0-py3-none-any.whl"
    write_wheel(wheel, {"mailer_lib/__init__.py": b""})
    options = ["--quiet", "--no-index", "--no-deps", f"--target={tmp_path / 't'}"]
    command = [sys.executable, "-m", "pip", "install", *options, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t" / "mailer_lib" / "__init__.py").exists()


def test_neither_playbooks_nor_the_central_sql_go_along(tmp_path: Path) -> None:
    write_wheel(tmp_path / "a.whl", _sources())
    names = zipfile.ZipFile(tmp_path / "a.whl").namelist()
    assert not [name for name in names if name.endswith((".pyc", ".sql", ".yml"))]


def test_the_agents_lock_holds_neither_airflow_nor_a_database() -> None:
    names = {line.split("==")[0] for line in _lock().decode().splitlines() if "==" in line}
    assert {"jinja2", "cryptography", "uvloop", "pyarrow"} <= names
    assert not names & {"apache-airflow", "pandas", "sqlalchemy", "ansible-core", "asyncssh"}
