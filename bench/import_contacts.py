"""Import speed: rows a second and a CPU-second, first import and again, beside a bare executemany of the same rows.

    python -m bench.import_contacts [--people 60000]

The bare loop inserts the file's rows as text into one table without an index: what the machine and the driver give.
"""

import argparse
import csv
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.generate_contacts import generate
from mailer_lib.contacts import attributes
from mailer_lib.contacts.importer import ImportOptions, import_contacts
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.database.engine import open_engine, write
from mailer_lib.database.migrate import upgrade
from mailer_lib.settings import Settings, make_key
from mailer_lib.terms import AttributeType, SubscriptionState

TYPES = {
    "city": "text",
    "customer_since": "date",
    "tier": "text",
    "points": "number",
    "favourite_category": "text",
    "vip": "boolean",
}


def measured(name: str, work: Callable[[], int]) -> float:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<28} {rows / wall:>10,.0f} rows/s {rows / cpu:>10,.0f} rows/CPU-s")
    return rows / cpu


def bare(home: Path, file: Path) -> int:
    connection = sqlite3.connect(home / "bare.db")
    connection.execute(f"CREATE TABLE rows ({', '.join(f'c{n}' for n in range(14))})")
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        split = (next(csv.reader([line]), []) for line in lines)  # an open quote would swallow the file
        rows = [row for row in split if len(row) == 14]
    connection.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * 14)})", rows)
    connection.commit()
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Import speed.")
    parser.add_argument("--people", type=int, default=60_000)
    people = parser.parse_args().people
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = Settings(home=home)
        for name in ("identity", "token"):
            make_key(settings.keys_dir / f"{name}.key")
        engine = open_engine(settings.url)
        upgrade(engine)
        with write(engine) as connection:
            ensure_list(connection, "newsletter", "News")
            for key, type_ in TYPES.items():
                attributes.declare(connection, key, AttributeType(type_))
        generate(home / "files", people)
        file = home / "files" / "contacts.csv"
        options = ImportOptions("newsletter", SubscriptionState.CONFIRMED)
        floor = measured("bare executemany", lambda: bare(home, file))
        first = measured("import, all new", lambda: import_contacts(engine, settings, file, options).rows)
        measured("import, nothing changed", lambda: import_contacts(engine, settings, file, options).rows)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"ratio to bare {first / floor:.3f}, peak memory {memory} MB (the generator's included)")
        engine.dispose()


if __name__ == "__main__":
    main()
