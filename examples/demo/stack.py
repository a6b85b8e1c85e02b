"""Airflow's own components on one machine, headless: start, wait until healthy, stop.

SQLite and LocalExecutor, API and UI on localhost only, all state below ``<mailfleet home>/airflow``. The components
are started one by one, because ``airflow standalone`` starts about 40 processes and leaves orphans. The simple auth
manager asks for a password (``login.json``, mode 0600): nothing is open to whoever reaches the port.
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx

from examples.demo.processes import Processes, python

PROJECT = Path(__file__).resolve().parents[2]
HEALTHY_WAIT_S = 180.0
OPERATOR = "olivia"  # launches and approves in the demo
APPROVER = "anna"
VIEWER = "victor"  # reads only
USERS = {OPERATOR: "admin", APPROVER: "op", VIEWER: "viewer"}
COMPONENTS = {
    "api-server": ("api-server", "--host", "127.0.0.1", "--workers", "1"),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}


class StackError(RuntimeError):
    """Airflow could not be started; the sentence says which part and where its log is."""


def free_port() -> int:
    """A TCP port on localhost that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Stack:
    """One Airflow below ``airflow_home``, reached at ``url``. ``env`` goes to every component (MAILFLEET_…)."""

    airflow_home: Path
    port: int
    env: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def processes(self) -> Processes:
        return Processes(self.airflow_home / "run")

    @property
    def login_file(self) -> Path:
        """JSON: user → password."""
        return self.airflow_home / "login.json"

    def password(self, user: str = OPERATOR) -> str:
        return str(json.loads(self.login_file.read_text())[user])

    def environment(self) -> dict[str, str]:
        """What each component, and each ``airflow …`` command for this installation, needs in its environment."""
        keys = json.loads(self._keys_file.read_text())
        airflow = {
            "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user}:{role}" for user, role in USERS.items()),
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.login_file),
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "CORE__DAGS_FOLDER": str(PROJECT / "dags"),
            "CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "8",
            "CORE__MAX_ACTIVE_TASKS_PER_DAG": "8",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__FERNET_KEY": keys["fernet"],
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.airflow_home / 'airflow.db'}",
            "API__BASE_URL": self.url,
            "API__PORT": str(self.port),
            "API__SECRET_KEY": keys["secret"],
            "API__INSTANCE_NAME": "Mailfleet",
            "API_AUTH__JWT_SECRET": keys["jwt"],
            "API_AUTH__JWT_ISSUER": "mailfleet",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
            "SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            # A worker that is gone without a word is noticed after this long.
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            # A task that is marked failed ends within this, and its end is known to the scheduler within this
            # (docs/decisions/0801).
            "WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "30",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "LOGGING__BASE_LOG_FOLDER": str(self.airflow_home / "logs"),
            "LOGGING__LOGGING_LEVEL": "INFO",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        return {
            **self.env,
            "AIRFLOW_HOME": str(self.airflow_home),
            **{f"AIRFLOW__{name}": value for name, value in airflow.items()},
            "DO_NOT_TRACK": "1",
            "SCARF_ANALYTICS": "false",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
        }

    def prepare(self) -> None:
        """Folder, passwords and keys (made once), and Airflow's own database. Idempotent."""
        self.airflow_home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _secret_json(self.login_file, {user: secrets.token_urlsafe(12) for user in USERS})
        from cryptography.fernet import Fernet

        _secret_json(
            self._keys_file,
            {"fernet": Fernet.generate_key().decode(), "secret": secrets.token_hex(32), "jwt": secrets.token_hex(32)},
        )
        log = self.airflow_home / "run" / "db-migrate.log"
        log.parent.mkdir(exist_ok=True, mode=0o700)
        with log.open("wb") as output:
            done = subprocess.run(
                self._airflow("db", "migrate"),
                check=False,
                env={**os.environ, **self.environment()},
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if done.returncode != 0:
            raise StackError(f"`airflow db migrate` failed with exit code {done.returncode}; see {log}")

    def start(self) -> None:
        """Start the components; ``wait_healthy`` says when they serve."""
        self.processes.stop()
        for name in COMPONENTS:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        """A component that isn't running."""
        self.processes.start(name, self._airflow(*COMPONENTS[name]), self.environment(), cwd=PROJECT)

    def health(self) -> dict[str, str]:
        """Each component's state, as Airflow's API reports it; empty while the API doesn't answer."""
        try:
            answer = httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5.0, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError:
            return {}
        return {name: str(part.get("status")) for name, part in answer.json().items()}

    def wait_healthy(self, timeout_s: float = HEALTHY_WAIT_S, on_wait: Callable[[str], None] | None = None) -> None:
        """Block until every component is healthy.

        Raises:
            StackError: a component ended, or it took longer than ``timeout_s``.
        """
        wanted = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        deadline = time.monotonic() + timeout_s
        while True:
            health = self.health()
            missing = [name for name in wanted if health.get(name) != "healthy"]
            if not missing:
                return
            if dead := self._dead():
                raise StackError(f"{dead} has ended; see {self.airflow_home / 'run' / dead}.log")
            if time.monotonic() > deadline:
                raise StackError(
                    f"Airflow isn't healthy after {timeout_s:.0f} s: no sign of {', '.join(missing)}; "
                    f"see the logs in {self.airflow_home / 'run'}"
                )
            if on_wait is not None:
                on_wait("waiting for " + ", ".join(missing))
            time.sleep(0.5)

    def stop(self) -> None:
        """End every process of this Airflow, running tasks and their children included."""
        self.processes.stop()

    def _dead(self) -> str | None:
        return self.processes.first_dead()

    def _airflow(self, *arguments: str) -> list[str]:
        return [python(), "-m", "airflow", *arguments]

    @property
    def _keys_file(self) -> Path:
        return self.airflow_home / "keys.json"


def _secret_json(path: Path, value: Mapping[str, str]) -> None:
    """Write once, mode 0600."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    with os.fdopen(handle, "w") as file:
        json.dump(value, file)
