"""A private MariaDB: its own folder, port and user, gone with the test process even when that is killed."""

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import MySQLdb

from tests.support import free_port

USER, PASSWORD = "mailfleet", "only-for-tests"
PROGRAMS = ("mariadbd", "mariadb-install-db")
_PREFIX = "mf-mariadb-"
_START_TRIES = 3
_START_S = 60


def which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class MariadbServer:
    """Started by the constructor; ``stop()`` leaves neither process nor file. Databases are made by ``create``."""

    def __init__(self) -> None:
        parent = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
        _sweep(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        self.socket = self.folder / "s"
        self._temporary = self.folder / "tmp"
        self._temporary.mkdir()
        self._as_user: dict[str, object] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            account = next(a for name in ("mysql", "nobody") for a in [_account(name)] if a)
            for folder in (self.folder, self._temporary):
                os.chown(folder, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            self._install()
            self._start()
        except BaseException:
            self.stop()
            raise

    def _install(self) -> None:
        subprocess.run(
            [
                which("mariadb-install-db") or "mariadb-install-db",
                "--no-defaults",
                f"--datadir={self.folder}/data",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as_user,  # type: ignore[call-overload]
        )

    def _start(self) -> None:
        for attempt in range(1, _START_TRIES + 1):
            self.port = free_port()
            self._process = subprocess.Popen(
                [
                    which("mariadbd") or "mariadbd",
                    "--no-defaults",
                    f"--datadir={self.folder}/data",
                    f"--tmpdir={self._temporary}",  # a server that starts removes the temporary tables that it finds
                    f"--socket={self.socket}",
                    f"--pid-file={self.folder}/pid",
                    f"--log-error={self.folder}/log",
                    "--bind-address=127.0.0.1",
                    f"--port={self.port}",
                    "--skip-name-resolve",
                    "--character-set-server=utf8mb4",
                    "--local-infile=1",
                    # Nothing here has to survive a power cut.
                    "--innodb-flush-log-at-trx-commit=0",
                    "--innodb-doublewrite=0",
                    "--innodb-log-file-size=16M",
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-use-native-aio=0",
                    "--performance-schema=0",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
                **self._as_user,  # type: ignore[call-overload]
            )
            if self._wait():
                return
            if attempt == _START_TRIES:
                log = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"mariadbd didn't start:\n{log}")
            self._end()

    def _wait(self) -> bool:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(MySQLdb.Error):
                connection = MySQLdb.connect(user="root", unix_socket=str(self.socket))
                cursor = connection.cursor()
                cursor.execute(f"CREATE USER IF NOT EXISTS {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")
                cursor.execute(f"GRANT ALL ON *.* TO {USER}@'127.0.0.1'")
                connection.close()
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return True
            time.sleep(0.05)
        return False

    def url(self, database: str) -> str:
        return f"mysql+mysqldb://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "") -> None:
        connection = MySQLdb.connect(user="root", unix_socket=str(self.socket), database=database, charset="utf8mb4")
        with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)
            connection.commit()

    def statements_of(self, database: str) -> list[str]:
        """What makes the tables, rows and triggers of ``database`` again: quicker than migrating for every test."""
        connection = MySQLdb.connect(user="root", unix_socket=str(self.socket), database=database, charset="utf8mb4")
        with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
            made = ["SET foreign_key_checks=0"]
            cursor.execute("SHOW TABLES")
            for (table,) in cursor.fetchall():
                cursor.execute(f"SHOW CREATE TABLE `{table}`")
                made.append(cursor.fetchone()[1])
            cursor.execute("SELECT version_num FROM alembic_version")
            made.append(f"INSERT INTO alembic_version VALUES ('{cursor.fetchone()[0]}')")
            cursor.execute("SHOW TRIGGERS")
            for trigger, *_ in cursor.fetchall():
                cursor.execute(f"SHOW CREATE TRIGGER `{trigger}`")
                made.append(cursor.fetchone()[2])
            return made

    def stop(self) -> None:
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.kill()  # its data goes too, so there is nothing to close in good order
            process.wait()


def _sweep(parent: Path) -> None:
    """Remove what test processes left behind that were killed; their servers died with them."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _account(name: str) -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(name)
    return None


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
