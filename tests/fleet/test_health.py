"""How a server is: read by a script on it, judged here, kept in the database."""

import json
import os
import smtplib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import server_health
from mailer_lib.fleet import health_book, pools, servers
from mailer_lib.fleet.health import Facts, HealthError, HealthRules, Place, command, gather, judge
from mailer_lib.fleet.health_book import has_turned
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, HealthVerdict, ServerState
from tests.conftest import Ran
from tests.fleet.verified import pretend_verified
from tests.mta.exim import Exim

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
WELL = Facts(AT.timestamp(), 0.5, 0.6, 0.9, messages=10, oldest_s=60, mta_runs=True)
CALM = HealthRules(load=1e6, disk_free_share=0.0)  # a busy machine is no failure of the test
W, S, N = HealthVerdict.WELL, HealthVerdict.SICK, HealthVerdict.SILENT


def run_here(line: str) -> str:
    return subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"mta_runs": False}, "Exim doesn't run"),
        ({"mta_runs": None, "messages": None}, None),
        ({"panics": 12}, "paniclog"),
        ({"disk_free_share": 0.09}, "9% of its disk"),
        ({"inodes_free_share": 0.01}, "inodes"),
        ({"load": 9.5}, "9.5 for each core"),
        ({"at": AT.timestamp() - 45}, "clock is 45 s off"),
        ({"at": AT.timestamp() + 29}, None),
        ({"oldest_s": 13 * 3600}, "13.0 h old"),
        ({"messages": 50_001}, "50,001 messages"),
        ({"certificate_left_s": 86_400}, "expires in 1.0 days"),
        ({"certificate_left_s": -5}, "has expired"),
        ({"key_age_s": 401 * 86_400}, "401 days old"),
    ],
)
def test_a_server_is_sick_for_a_reason(change: dict[str, object], word: str | None) -> None:
    verdict = judge(Facts(**{**WELL.as_dict(), "queue": {}, **change}), AT)  # type: ignore[arg-type]
    assert verdict.verdict is (W if word is None else S)
    assert [word in reason for reason in verdict.reasons] == ([] if word is None else [True])


def test_the_time_that_asking_took_is_not_the_clocks_fault() -> None:
    assert judge(Facts(AT.timestamp() - 40, 0, 1, 1), AT, took_s=15).verdict is W


def test_the_script_reads_exims_spool_and_keeps_the_addresses(tmp_path: Path) -> None:
    with Exim(tmp_path / "mta") as mta:
        with smtplib.SMTP("127.0.0.1", mta.port) as client:
            for to in ("ann@gmail.com", "bob@gmail.com", "cy@web.de"):
                client.sendmail("news@fjordfern.example", [to], "Subject: hello\r\n\r\n7\r\n")
        place = Place(sys.executable, spool=str(mta.spool), paniclog=str(mta.log.with_name("paniclog")))
        before, said = gather(run_here, place), run_here(command(place))
        config = ["-C", str(mta.folder / "exim.conf")]
        subprocess.run(["/usr/sbin/exim4", *config, "-qff"], check=True, timeout=60)  # nobody takes it: deferred
        after = gather(run_here, place)
    assert {name: (one.queued, one.deferred) for name, one in before.queue.items()} == {
        "gmail.com": (2, 0),
        "web.de": (1, 0),
    }
    assert (before.messages, before.deferred, before.unread, before.panics) == (3, 0, 0, 0)
    assert {name: (one.queued, one.deferred) for name, one in after.queue.items()} == {
        "gmail.com": (2, 2),
        "web.de": (1, 1),
    }
    assert after.deferred == 3
    assert before.mta_runs
    assert "@" not in said


def test_a_certificate_and_keys_have_an_age(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3",
         "-subj", "/CN=mta1.fjordfern.example", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    month_ago = time.time() - 30 * 86_400
    os.utime(key, (month_ago, month_ago))
    facts = gather(run_here, Place(sys.executable, certificate=str(certificate), keys=(str(key), "/no/such/key")))
    assert facts.certificate_left_s == pytest.approx(3 * 86_400, abs=300)
    assert facts.key_age_s == pytest.approx(30 * 86_400, abs=300)
    assert facts.messages is None  # no Exim, so nobody's queue to read


def test_an_answer_that_is_no_health_is_said_to_be_so() -> None:
    with pytest.raises(HealthError, match="printed nothing"):
        gather(lambda line: "Last login: yesterday", Place("python3"))
    with pytest.raises(HealthError, match="can't be read"):
        gather(lambda line: 'mailfleet-health {"at": "noon"}', Place("python3"))


# --- looks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(engine: Engine) -> Engine:
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        for name, state in (("mta-1", ServerState.ACTIVE), ("mta-2", ServerState.RETIRED)):
            spec = servers.make_spec(name=name, pool="main", helo_name=f"{name}.fjordfern.example", state=state)
            servers.add(connection, spec, actor="test")
    return engine


def test_a_look_is_stored_for_each_server_that_matters(fleet: Engine, settings: Settings) -> None:
    (found,) = health_book.look(fleet, settings, rules=CALM)
    assert (found.server, found.health.verdict) == ("mta-1", W)
    with read(fleet) as connection:
        (kept,) = health_book.latest(connection).values()
    assert kept.health == found.health
    assert kept.health.facts is not None
    assert kept.health.facts.messages is None


def test_a_server_that_does_not_answer_is_silent_and_the_look_goes_on(fleet: Engine, settings: Settings) -> None:
    def away(server: object, settings: object) -> object:
        raise OSError("no route to host")

    for expected in (False, True, False):
        (found,) = health_book.look(fleet, settings, runner=away)  # type: ignore[arg-type]
        assert (found.health.verdict, found.health.reasons) == (N, ("no route to host",))
        assert found.turned is expected


def test_a_bare_standby_machine_is_not_asked_and_so_is_not_taken_for_a_sick_server(
    fleet: Engine, settings: Settings
) -> None:
    spec = servers.make_spec(
        name="mta-3", pool="main", helo_name="mta-3.fjordfern.example", channel=ChannelKind.SSH, host="192.0.2.3",
        state=ServerState.STANDBY,
    )  # fmt: skip
    with write(fleet) as connection:
        servers.add(connection, spec, actor="test")
    answer = "mailfleet-health " + json.dumps(replace(WELL, at=time.time()).as_dict())

    def asked() -> list[str]:
        return [one.server for one in health_book.look(fleet, settings, runner=lambda *_: lambda _: answer)]

    assert asked() == ["mta-1"]
    with write(fleet) as connection:
        pretend_verified(connection, "mta-3")
    assert asked() == ["mta-1", "mta-3"]


def test_old_looks_are_dropped(fleet: Engine, settings: Settings) -> None:
    health_book.look(fleet, settings)
    with write(fleet) as connection:
        connection.execute(update(server_health).values(at=now() - timedelta(days=15)))
    health_book.look(fleet, settings)
    with read(fleet) as connection:
        assert connection.scalar(select(func.count()).select_from(server_health)) == 1


@pytest.mark.parametrize(
    ("verdict", "before", "turned"),
    [
        (W, [], False),
        (S, [], True),
        (S, [W], True),
        (S, [S], False),
        (S, [N, S], False),  # it was told of before the network was away
        (S, [N, W], True),
        (N, [W], False),
        (N, [N, W], True),
        (N, [N, N], False),
        (N, [N], True),
    ],
)
def test_somebody_is_told_once(verdict: HealthVerdict, before: list[HealthVerdict], turned: bool) -> None:
    assert has_turned(verdict, before) is turned


def test_the_command_shows_each_server_and_its_reasons(
    fleet: Engine, settings: Settings, mailfleet: Callable[..., Ran]
) -> None:
    assert "never looked at" in mailfleet("server", "health").stdout
    assert mailfleet("server", "health", "--look").code == 0
    said = mailfleet("server", "health").stdout
    assert "mta-1" in said
    assert "never looked at" in said  # the retired one
    assert f"{now():%Y-%m-%d}" in said
