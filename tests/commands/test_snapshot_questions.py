"""``mailfleet snapshot why``, ``diff`` and ``profile`` as an operator reads them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from mailer_lib.contacts import consent
from mailer_lib.contacts.address import normalise
from mailer_lib.database.engine import now, write
from mailer_lib.settings import Settings
from mailer_lib.terms import SuppressionReason
from tests.commands.test_snapshot import campaign  # noqa: F401  a fixture

Mailfleet = Callable[..., Any]
HELD, MISSED, STRANGER = "p30@example.org", "p3@example.org", "who@example.org"


@pytest.fixture
def frozen(campaign: Engine, mailfleet: Mailfleet) -> Engine:  # noqa: F811
    """Thirty people who have ten points or more."""
    assert mailfleet("snapshot", "build", "spring-sale#1").code == 0
    return campaign


def suppress(engine: Engine, settings: Settings, address: str) -> None:
    key = settings.identity().address_hash(normalise(address).normalised)
    with write(engine) as connection:
        consent.suppress(
            connection, address_hash=key, reason=SuppressionReason.MANUAL, source="ann", at=now()
        )  # fmt: skip


def test_why_somebody_got_it(frozen: Engine, mailfleet: Mailfleet) -> None:
    ran = mailfleet("snapshot", "why", "P30@Example.org", "--send", "spring-sale#1")
    lines = ran.stdout.splitlines()
    assert lines[0] == "selected for spring-sale#1"
    assert "selected, shard 0, row " in lines[1] and "nobody sends it yet" in lines[3]
    assert "the contact hasn't changed since" in lines[4]
    assert lines[5:] == ["✓ all of", "└── ✓ attribute.points >= 10  (30)"]
    told = json.loads(mailfleet("snapshot", "why", HELD, "--send", "spring-sale#1", "--json").stdout)
    assert told["phases"][0]["frozen"]["row"] >= 0 and told["rules"]["answer"]["holds"] is True


def test_why_somebody_did_not(campaign: Engine, settings: Settings, mailfleet: Mailfleet) -> None:  # noqa: F811
    suppress(campaign, settings, HELD)
    mailfleet("snapshot", "build", "spring-sale#1")
    barred = mailfleet("snapshot", "why", HELD, "--send", "spring-sale#1").stdout
    assert "matched, but was left out of spring-sale#1" in barred
    assert "suppressed-address: suppressed on every list since" in barred and "manual (ann)" in barred
    missed = mailfleet("snapshot", "why", MISSED, "--send", "spring-sale#1").stdout
    assert "didn't match when it was frozen, and doesn't match now either" in missed
    assert "✗ attribute.points >= 10  (3)" in missed
    assert "nobody of this address is known" in mailfleet("snapshot", "why", STRANGER, "--send", "spring-sale#1").stdout


def test_errors_are_sentences(frozen: Engine, mailfleet: Mailfleet) -> None:
    assert "there is no @ in it" in mailfleet("snapshot", "why", "nonsense", "--send", "spring-sale#1").stderr
    assert "no published snapshot" in mailfleet("snapshot", "why", HELD, "--send", "spring-sale#9").stderr
    assert "published are: 1" in mailfleet("snapshot", "why", HELD, "--send", "spring-sale#1", "--phase", "2").stderr


def test_what_has_changed_since_the_last_edition(
    frozen: Engine, settings: Settings, mailfleet: Mailfleet, tmp_path: Any
) -> None:
    suppress(frozen, settings, HELD)
    assert mailfleet("snapshot", "build", "spring-sale#2").code == 0
    ran = mailfleet("snapshot", "diff", "spring-sale#1", "spring-sale#2@1", "--people", tmp_path / "moved.csv")
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert lines[:4] == [
        "spring-sale#1 → spring-sale#2@1",
        "in the first 30",
        "in the second 29",
        "in both 29",
    ]
    assert lines[4:9] == [
        "added 0",
        "removed 1",
        "1 match the second, and are barred:",
        "1 suppressed-address",
        "other 1",
    ]
    assert (tmp_path / "moved.csv").read_text().splitlines()[0].startswith("change,contact_id,address_hash")
    told = json.loads(mailfleet("snapshot", "diff", "spring-sale#1", "spring-sale#2", "--json").stdout)
    assert told["removed"]["by_reason"] == {"suppressed-address": 1}


def test_a_diff_that_can_not_be_is_a_sentence(frozen: Engine, mailfleet: Mailfleet) -> None:
    assert "no published snapshot" in mailfleet("snapshot", "diff", "spring-sale#1", "spring-sale#9").stderr
    assert "published are: 1" in mailfleet("snapshot", "diff", "spring-sale#1@4", "spring-sale#1").stderr
    assert "like spring-sale#1@1" in mailfleet("snapshot", "diff", "spring-sale#1@x", "spring-sale#1").stderr
    lonely = mailfleet("snapshot", "diff", "spring-sale#1", "spring-sale#1", "--addresses")
    assert (lonely.code, "--people FILE.csv" in lonely.stderr) == (2, True)


def test_what_an_audience_looks_like(frozen: Engine, mailfleet: Mailfleet) -> None:
    ran = mailfleet("snapshot", "profile", "spring-sale#1")
    assert "spring-sale#1 phase 1: 30 people" in ran.stdout
    row = next(line for line in ran.stdout.splitlines() if "attribute.tier" in line)
    assert "0.0 %" in row and "gold 100.0 %" in row
    told = json.loads(mailfleet("snapshot", "profile", "spring-sale#1", "--json").stdout)
    assert [c["values"] for c in told["columns"] if c["name"] == "provider"] == [[["other", 30]]]
