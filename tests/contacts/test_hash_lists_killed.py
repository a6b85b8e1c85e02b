"""A hash list whose import is killed bars nobody wrongly and forgets nobody: run again, it is as if undisturbed."""

import hashlib
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import select

from mailer_lib.contacts.address_file import read_hashes
from mailer_lib.contacts.refusals import HashReport, suppress_hashes
from mailer_lib.database.engine import read
from mailer_lib.database.schema import contacts, listed_hashes, suppressions
from mailer_lib.terms import HashAlgorithm
from tests.contacts.world import World
from tests.support import times

PEOPLE = 12_000
NAMED = range(0, PEOPLE, 3)  # of whom the list has the hash
STRANGERS = 6000  # hashes of nobody who is here
KILLS = times(4, 20)
CHILD = """
import sys
from pathlib import Path
from mailer_lib.database.engine import open_engine
from mailer_lib.settings import load_settings
from tests.contacts.test_hash_lists_killed import take
from tests.contacts.world import World
s = load_settings()
world = World(open_engine(s.url), s, 0)
print("ready", flush=True)
take(world, Path(sys.argv[1]))
print("ended", flush=True)
"""


def take(world: World, file: Path) -> HashReport:
    return suppress_hashes(
        world.engine, world.settings.identity(), read_hashes(file, HashAlgorithm.SHA256), name="partner",
        algorithm=HashAlgorithm.SHA256, progress=lambda done, total: None,
    )  # fmt: skip


def write_hashes(file: Path) -> None:
    texts = [f"p{n}@example.org" for n in NAMED] + [f"stranger{n}@example.net" for n in range(STRANGERS)]
    file.write_text("".join(f"{hashlib.sha256(text.encode()).hexdigest()}\n" for text in texts))


def barred(world: World) -> list[str]:
    """A row for each active suppression of a contact."""
    query = (
        select(contacts.c.address)
        .join_from(contacts, suppressions, contacts.c.address_hash == suppressions.c.address_hash)
        .where(suppressions.c.lifted_at.is_(None))
    )
    with read(world.engine) as connection:
        return sorted(connection.scalars(query))


def kept(world: World) -> int:
    with read(world.engine) as connection:
        return len(connection.execute(select(listed_hashes.c.digest)).all())


@pytest.mark.fault
def test_killed_at_random_moments_and_run_again_it_bars_whom_it_names_and_nobody_else(
    world: World, tmp_path: Path
) -> None:
    people = "".join(f"p{n}@example.org,2026-03-01\n" for n in range(PEOPLE))
    world.load(tmp_path / "people.csv", f"E-Mail,Signed up at\n{people}")
    file = tmp_path / "hashes.txt"
    write_hashes(file)
    named = {f"p{n}@example.org" for n in NAMED}
    moments, seen = random.Random(20), set()
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(file)], cwd=Path(__file__).parents[2], env=os.environ,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with suppress(subprocess.TimeoutExpired):
            child.wait(moments.random() * 0.6)
        child.kill()
        child.wait()
        seen.add((kept(world), len(barred(world)), child.stdout.read()))
        child.stdout.close()
        assert set(barred(world)) <= named
    assert any(not said and hashes for hashes, _, said in seen), "no import was killed at its work"

    done = take(world, file)
    assert done.hashes.lines == kept(world) == len(named) + STRANGERS
    assert barred(world) == sorted(named), "each of them by one suppression"
    again = take(world, file)
    assert (again.hashes.new, again.barred) == (0, 0)
    assert barred(world) == sorted(named)
