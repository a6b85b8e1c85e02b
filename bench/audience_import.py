"""Import speed on a private MariaDB: rows a CPU-second, client and server together; new people, then the same again.

    python -m bench.audience_import            N=5000000 in the environment for more people (default 1,000,000)

Then a suppression list of others' hashes: half of the people, and as many strangers (``suppress import --hashes``).

Each row is validated, subscribed, with evidence of consent (time, source, IP) and three attributes. The import runs in
a process of its own, whose CPU time and peak memory are its own.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from bench.bytecode import keep_bytecode
from bench.figures import Figures
from bench.private_mariadb import BUFFER_POOL_MB, NoMariadbError, private_mariadb, server_cpu_s
from mailer_lib.contacts import attributes
from mailer_lib.contacts.address_file import read_hashes
from mailer_lib.contacts.import_options import ImportOptions
from mailer_lib.contacts.importer import import_contacts
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.contacts.refusals import suppress_hashes
from mailer_lib.database.engine import open_engine, read, write
from mailer_lib.database.schema import contacts
from mailer_lib.settings import Settings, load_settings, make_key
from mailer_lib.terms import AttributeType, HashAlgorithm, SubscriptionState

TYPES = {"city": AttributeType.TEXT, "points": AttributeType.NUMBER, "since": AttributeType.DATE}
HEADER = "E-Mail,First name,Language,City,Points,Since,Signed up at,Signed up from,Sign-up IP\n"
NEW_BAR, SAME_BAR, MEMORY_BAR_MB = 20_000, 12_000, 250  # issue 3
_DOMAINS = (("gmail.com", 67), ("outlook.com", 5), ("hotmail.com", 4), ("yahoo.com", 6), ("gmx.de", 6), ("web.de", 6),
            ("studio-linden.example", 3), ("harbour.example", 3))  # fmt: skip
_NAMES = ("Anna", "Björn", "Chloé", "Dmitri", "Elif", "Finn", "Grace", "Håkon", "Ines", "Jürgen")
_CITIES = [f"City {n}" for n in range(300)]
_LANGUAGES = ("de", "en-GB", "fr", "nb", "pl")


def write_people(path: Path, people: int, seed: int = 7) -> None:
    """A CSV file of that many different people."""
    r = random.Random(seed)
    domains = r.choices([d for d, _ in _DOMAINS], [share for _, share in _DOMAINS], k=10_007)
    first = datetime(2021, 1, 1, tzinfo=UTC)
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER)
        for n in range(people):
            signed_up = first + timedelta(seconds=r.randrange(150_000_000))
            name = _NAMES[n % 10]
            file.write(
                f"{name.encode('ascii', 'ignore').decode()}.{n * 7919 % 99_999_989:x}@{domains[n % 10_007]},{name},"
                f"{_LANGUAGES[n % 5]},{_CITIES[n * 31 % 300]},{r.randrange(5000)},{signed_up:%Y-%m-%d},"
                f"{signed_up:%Y-%m-%dT%H:%M:%SZ},/sign-up,192.0.2.{n % 250}\n"
            )


def run(figures: Figures, url: str, people: int) -> None:
    """Import ``people`` new people into the database, and again."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("identity", "token"):
            make_key(Settings(home=home).keys_dir / f"{name}.key")
        file = home / "people.csv"
        write_people(file, people)
        with closing_engine(url) as engine, write(engine) as connection:
            ensure_list(connection, "newsletter", "News")
            for key, type_ in TYPES.items():
                attributes.declare(connection, key, type_)
        warm = home / "warm.csv"
        warm.write_text(f"{HEADER}warm@example.org,,,,,,2026-03-01T12:00:00Z,/sign-up,\n", encoding="utf-8")
        _in_child(url, home, "--child", warm)  # so that its bytecode is there
        new = _measured(figures, "import_new", url, home, file, people)
        same = _measured(figures, "import_same", url, home, file, people)
        measure_hashes(figures, url, home, people)
        figures.at_least("import_new", new["rows_a_cpu_s"], "rows a CPU-second", NEW_BAR)
        figures.at_least("import_same", same["rows_a_cpu_s"], "rows a CPU-second", SAME_BAR)
        figures.at_most("import_memory", max(new["memory_mb"], same["memory_mb"]), "MB", MEMORY_BAR_MB)


def measure_hashes(figures: Figures, url: str, home: Path, people: int) -> None:
    """A list with as many hashes as there are people: every second person's, and those of strangers. No bar."""
    path = home / "hashes.txt"
    with closing_engine(url) as engine, read(engine) as connection, path.open("w", encoding="ascii") as file:
        for (address,) in connection.execute(select(contacts.c.address).where(contacts.c.id % 2 == 0)):
            file.write(f"{sha256(address.encode()).hexdigest()}\n")
        file.writelines(f"{sha256(b'%d' % n).hexdigest()}\n" for n in range(people - people // 2))
    before, said = server_cpu_s(url), _in_child(url, home, "--hashes", path)
    server = server_cpu_s(url) - before
    assert said["barred"] == people // 2, said
    figures.note("hash_list_client", said["cpu_s"] / people * 1e6, "us a hash and contact, start-up included")
    figures.note("hash_list_server", server / people * 1e6, "us a hash and contact")
    figures.note(
        "hash_list", people / (server + said["cpu_s"]), "hashes and contacts a CPU-second, half of them barred"
    )


def _measured(figures: Figures, name: str, url: str, home: Path, file: Path, people: int) -> dict[str, float]:
    before, started = server_cpu_s(url), time.perf_counter()
    said = _in_child(url, home, "--child", file)
    wall, server = time.perf_counter() - started, server_cpu_s(url) - before
    assert said["rows"] == people and said["rejected"] == 0, said
    figures.note(f"{name}_wall", people / wall, "rows/s, start-up included")
    figures.note(f"{name}_client", said["cpu_s"] / people * 1e6, "us a row, start-up included")
    figures.note(f"{name}_server", server / people * 1e6, "us a row")
    return {"rows_a_cpu_s": people / (server + said["cpu_s"]), "memory_mb": said["memory_mb"]}


def _in_child(url: str, home: Path, what: str, file: Path) -> dict[str, Any]:
    """What a process of its own says of its work."""
    environment = os.environ | {"MAILFLEET_HOME": str(home), "MAILFLEET_DATABASE_URL": url}
    child = subprocess.run(
        [sys.executable, "-m", "bench.audience_import", what, str(file)],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return said


def _child(what: str, file: Path) -> None:
    settings = load_settings()
    with closing_engine(settings.url) as engine:
        if what == "--child":
            done = import_contacts(engine, settings, file, ImportOptions("newsletter", SubscriptionState.CONFIRMED))
            said: dict[str, object] = {"rows": done.rows, "rejected": done.rejected}
        else:
            read_all = read_hashes(file, HashAlgorithm.SHA256)
            report = suppress_hashes(
                engine, settings.identity(), read_all, name="partner", algorithm=HashAlgorithm.SHA256,
                progress=lambda done, total: None,
            )  # fmt: skip
            said = {"hashes": report.hashes.lines, "barred": report.barred}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    said |= {"cpu_s": usage.ru_utime + usage.ru_stime, "memory_mb": usage.ru_maxrss / 1024}
    print(json.dumps(said))


@contextmanager
def closing_engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def main() -> int:
    people = int(os.environ.get("N", "1000000"))
    keep_bytecode()
    figures = Figures()
    try:
        with private_mariadb(BUFFER_POOL_MB * max(1, people // 1_000_000)) as server:
            run(figures, server.database("import"), people)
    except NoMariadbError as error:
        print(error, file=sys.stderr)
        return 1
    return figures.exit_status()


if __name__ == "__main__":
    if sys.argv[1:2] in (["--child"], ["--hashes"]):
        _child(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main())
