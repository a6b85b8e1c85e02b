"""A private MariaDB for a benchmark, in memory where there is /dev/shm, with the tables of this release.

with private_mariadb() as server:
    url = server.database("snapshot")
    command, environment = client(url)
    subprocess.run([*command, "--quick", "-e", "SELECT …"], env=environment)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from mailer_lib.database.engine import open_engine, read
from mailer_lib.database.migrate import upgrade
from tests.mariadb_server import PROGRAMS, MariadbServer, which

BUFFER_POOL_MB = 2048  # holds 1 M contacts with all their indexes
_CLIENT = "mariadb"


class NoMariadbError(RuntimeError):
    """MariaDB isn't installed; the sentence says how to get it."""


@dataclass(frozen=True)
class PrivateMariadb:
    server: MariadbServer

    def database(self, name: str) -> str:
        """Make a database with the tables of this release and no rows; its URL."""
        self.server.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        url = self.server.url(name)
        engine = open_engine(url)
        upgrade(engine)
        engine.dispose()
        return url


def client(url: str) -> tuple[list[str], dict[str, str]]:
    """MariaDB's own command-line client for a database, without what it shall do; and its environment."""
    at = make_url(url)
    where = [f"--host={at.host}", f"--port={at.port}", f"--user={at.username}"]
    command = [which(_CLIENT) or _CLIENT, "--no-defaults", "--default-character-set=utf8mb4", *where, str(at.database)]
    return command, {**os.environ, "MYSQL_PWD": str(at.password)}


def server_cpu_s(url: str) -> float:
    """CPU seconds that the server of ``url`` has used since it was started, all its threads together."""
    engine = open_engine(url)
    with read(engine) as connection:
        pid_file = connection.execute(text("SELECT @@pid_file")).scalar_one()
    engine.dispose()
    after_name = Path(f"/proc/{Path(pid_file).read_text().strip()}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


@contextmanager
def private_mariadb(buffer_pool_mb: int = BUFFER_POOL_MB) -> Iterator[PrivateMariadb]:
    """
    Raises:
        NoMariadbError: it isn't installed.
    """
    for program in (*PROGRAMS, _CLIENT):
        if which(program) is None:
            raise NoMariadbError(f"{program} isn't installed (apt-get install mariadb-server mariadb-client)")
    server = MariadbServer(f"--innodb-buffer-pool-size={buffer_pool_mb}M", "--innodb-log-file-size=512M")
    try:
        yield PrivateMariadb(server)
    finally:
        server.stop()
