"""A campaign with two variants and a test slice, by the shipped commands: slice, figures, decision, rest."""

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log, sends
from mailer_lib.dispatch.sends import find_send
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.recipient import REST
from tests.e2e.test_send import Shop, opened

pytestmark = pytest.mark.e2e

VARIANTS = """
variants:
  - {name: plain}
  - {name: loud, subject: "LOUD {{ contact.given_name }}"}
test_slice: {people: 20}
"""
SLICE = 20
PEOPLE = 60


@pytest.fixture
def shop(
    sqlite_engine: Engine, mailfleet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    with opened(sqlite_engine, mailfleet, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def shop_anywhere(
    engine: Engine, mailfleet: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    """On SQLite and on MariaDB."""
    with opened(engine, mailfleet, tmp_path, monkeypatch) as made:
        yield made


def subjects(shop: Shop) -> Counter[str]:
    """How many got which variant."""
    mails = [message_from_bytes(path.read_bytes()) for path in (shop.sink.maildir / "new").iterdir()]
    return Counter("loud" if str(mail["Subject"]).startswith("LOUD") else "plain" for mail in mails)


def state(shop: Shop) -> str:
    with read(shop.engine) as connection:
        return str(connection.scalar(select(sends.c.state).order_by(sends.c.id.desc()).limit(1)))


def until(met: Callable[[], object], process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert process.poll() is None, "the command ended"
        assert time.monotonic() < end, "it doesn't come to that"
        time.sleep(0.1)


def started(shop: Shop, log: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mailer_lib.cli", "send", "start", "hello", "--yes"]
    with (shop.folder / log).open("wb") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def test_the_slice_is_sent_first_and_the_rest_gets_what_a_person_decides(shop_anywhere: Shop) -> None:
    shop = shop_anywhere
    shop.campaign(VARIANTS)
    sending = started(shop, "start.log")
    try:
        until(lambda: state(shop) == "judging", sending)
        assert subjects(shop) == {"plain": SLICE // 2, "loud": SLICE // 2}
        asked = shop.must("send", "decide", "hello#1")
        assert f"{SLICE} people are the test slice; {PEOPLE - SLICE} are the rest" in asked
        assert "| loud | 10 | 10 | 0 | 0 | 0 |" in asked
        wrong = shop.mailfleet("send", "decide", "hello#1", "--variant", "quiet")
        assert (wrong.code, "tested the variants plain, loud" in wrong.stderr) == (1, True)
        shop.must("send", "decide", "hello#1", "--variant", "loud")
        shop.must("send", "decide", "hello#1", "--variant", "loud")  # the same again is fine
        other = shop.mailfleet("send", "decide", "hello#1", "--variant", "plain")
        assert other.code == 1
        assert "decided on variant loud" in other.stderr
        assert sending.wait(60) == 0, (shop.folder / "start.log").read_text()
    finally:
        sending.kill()
        sending.wait()
    said = (shop.folder / "start.log").read_text()
    assert "which variant does the rest get?" in said
    assert "The rest got variant loud, as cli:" in said
    assert subjects(shop) == {"plain": SLICE // 2, "loud": SLICE // 2 + PEOPLE - SLICE}
    assert len(set(shop.received())) == PEOPLE
    books = shop.books()
    assert (books["injected"], books["duplicates"], books["balanced"]) == (PEOPLE, 0, True)
    with read(shop.engine) as connection:
        decisions = connection.execute(select(audit_log).where(audit_log.c.action == "send.decided")).all()
    assert [one.detail["variant"] for one in decisions] == ["loud"]

    shop.import_people(PEOPLE, 5)  # who is topped up gets what was decided, without another question
    shop.must("send", "start", "hello", "--yes")
    assert subjects(shop)["loud"] == SLICE // 2 + PEOPLE - SLICE + 5
    table = re.findall(r"\| (plain|loud) \| (\d+) \| (\d+) \|", shop.must("send", "decide", "hello#1"))
    assert table == [("plain", "10", "10"), ("loud", "10", "10")]  # of the slice alone, for ever


def test_killed_while_it_waits_decided_and_started_again_it_sends_the_rest(shop: Shop) -> None:
    shop.campaign(VARIANTS)
    first = started(shop, "first.log")
    try:
        until(lambda: state(shop) == "judging", first)
    finally:
        first.kill()
        first.wait()
    second = started(shop, "second.log")  # nobody decided: it asks again, and sends nothing
    try:
        until(lambda: "which variant" in (shop.folder / "second.log").read_text(), second)
        assert sum(subjects(shop).values()) == SLICE
    finally:
        second.kill()
        second.wait()
    shop.must("send", "decide", "hello#1", "--variant", "plain")
    shop.must("send", "start", "hello", "--yes")
    assert subjects(shop) == {"plain": SLICE // 2 + PEOPLE - SLICE, "loud": SLICE // 2}
    assert len(set(shop.received())) == PEOPLE
    assert (shop.books()["duplicates"], shop.books()["phases"]) == (0, 1)


def test_stopped_instead_of_decided_the_rest_is_cancelled_and_asked_about_again_at_the_next_trigger(
    shop: Shop,
) -> None:
    shop.campaign(VARIANTS)
    sending = started(shop, "start.log")
    try:
        until(lambda: state(shop) == "judging", sending)
        shop.must("send", "decide", "hello#1", "--stop")
        assert sending.wait(60) == 0
    finally:
        sending.kill()
        sending.wait()
    assert (state(shop), shop.books()["cancelled"]) == ("stopped", PEOPLE - SLICE)
    again = started(shop, "again.log")
    try:
        until(lambda: state(shop) == "judging", again)
        assert sum(subjects(shop).values()) == SLICE  # the slice of the first phase is the slice of the second
        shop.must("send", "decide", "hello#1", "--variant", "loud")
        assert again.wait(60) == 0, (shop.folder / "again.log").read_text()
    finally:
        again.kill()
        again.wait()
    assert subjects(shop) == {"plain": SLICE // 2, "loud": SLICE // 2 + PEOPLE - SLICE}


def test_who_does_not_decide_in_time_gets_what_the_file_says(shop: Shop) -> None:
    more = VARIANTS.replace("people: 20", "people: 20, decide_within: 0.03m, otherwise: plain")
    shop.campaign(more)
    shop.must("send", "start", "hello", "--yes")
    assert subjects(shop)["plain"] == SLICE // 2 + PEOPLE - SLICE
    with read(shop.engine) as connection:
        assert find_send(connection, "hello#1").decided_by == "mailfleet (nobody decided in time)"


def test_a_dry_run_freezes_the_slice_and_the_rest_without_a_variant(shop: Shop) -> None:
    shop.campaign(VARIANTS)
    ran = shop.mailfleet("send", "start", "hello", "--mode", "dry-run")
    assert f"Test slice: {SLICE} people get it first, by variant 10, 10. {PEOPLE - SLICE} wait" in re.sub(
        r"\s+", " ", ran.stderr
    )
    rows = [
        recipient.variant
        for path in shop.settings.storage.glob("snapshots/hello/dry-1/1/shard=*/*.parquet")
        for _, recipient in read_shard(path)
    ]
    assert Counter(rows) == {0: 10, 1: 10, REST: PEOPLE - SLICE}
    assert shop.books("hello#dry-1")["cancelled"] == PEOPLE
