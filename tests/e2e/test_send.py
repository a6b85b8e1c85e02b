"""A whole send by the shipped commands: import, criteria, campaign, send, books; on one machine, without Airflow."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from mailer_lib.contacts.consent import unsubscribe
from mailer_lib.contacts.lists import list_id
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import sends
from mailer_lib.dispatch import control, steps
from mailer_lib.dispatch.campaign_run import Answer, Hooks, Trigger, run_send, run_slots
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.sends import ClaimedError, find_send, process_claim
from mailer_lib.dispatch.slot import SlotProgress, SlotState
from mailer_lib.settings import Settings, load_settings
from mailer_lib.sink.process import SinkProcess, start
from mailer_lib.terms import Control, SendMode
from mailer_lib.web.app import create_app
from tests.support import free_port

pytestmark = pytest.mark.e2e

CAMPAIGN = """
name: hello
list: newsletter
criteria: everybody
seed_list: team
from: {{name: Fjord & Fern, address: news@news.fjordfern.example}}
sending_domain: news.fjordfern.example
subject: "Hello {{{{ contact.given_name }}}}"
template: {{html: hello.html, text: hello.txt}}
defaults: {{given_name: friend}}
tracking: {{links: true, opens: true}}
postal_address: Fjord & Fern AS, Strandgaten 21, 5013 Bergen, Norway
expires_after: 24h
{more}
"""
HTML = (
    '<html><body><p>Hello {{ contact.given_name }}</p><p><a href="https://fjordfern.example/sale">Sale</a></p>'
    '<p><a href="{{ unsubscribe_url }}">Unsubscribe</a> {{ postal_address }}</p></body></html>'
)
PEOPLE = 60


@dataclass
class Shop:
    engine: Engine
    settings: Settings
    sink: SinkProcess
    mailfleet: Callable[..., Any]
    folder: Path

    def must(self, *arguments: object) -> str:
        ran = self.mailfleet(*arguments)
        assert ran.code == 0, f"{arguments}: {ran.stderr}\n{ran.stdout}"
        return str(ran.stdout)

    def import_people(self, first: int, count: int) -> None:
        lines = ["E-Mail,First name"]
        lines += [
            f"p{n}@{('gmail.com', 'outlook.com', 'example.org')[n % 3]},P{n}" for n in range(first, first + count)
        ]
        path = self.folder / f"people-{first}.csv"
        path.write_text("\n".join(lines) + "\n")
        self.must("contacts", "import", path, "--list", "newsletter", "--consent", "confirmed")

    def campaign(self, more: str = "") -> None:
        (self.folder / "hello.html").write_text(HTML)
        (self.folder / "hello.txt").write_text("Hello {{ contact.given_name }}\n{{ unsubscribe_url }}\n")
        path = self.folder / "campaign.yaml"
        path.write_text(CAMPAIGN.format(more=more))
        self.must("campaign", "create", path)

    def books(self, ref: str = "hello#1") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.must("send", "books", ref, "--json"))
        return found

    def received(self) -> list[str]:
        """Envelope recipients of what the sink took."""
        mails = [message_from_bytes(path.read_bytes()) for path in (self.sink.maildir / "new").iterdir()]
        return sorted(str(mail["Envelope-To"]) for mail in mails)


@contextmanager
def opened(
    engine: Engine, mailfleet: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    port = free_port()
    monkeypatch.setenv("MAILFLEET_PUBLIC_URL", f"http://127.0.0.1:{port}")
    load_settings.cache_clear()
    with start(folder / "sinks", fsync=False) as sink, Serving(load_settings(), port):
        made = Shop(engine, load_settings(), sink, mailfleet, folder)
        must = made.must
        must("lists", "add", "newsletter", "--title", "Fjord & Fern News")
        must("domain", "add", "news.fjordfern.example")
        must("pool", "add", "main")
        for number in (1, 2):
            must(
                *("server", "add", f"local-{number}", "--pool", "main", "--helo-name", "mail.fjordfern.example"),
                *("--smtp-port", sink.port, "--mta", "sink", "--mta-log", sink.mainlog),
            )
        must("seeds", "add", "team", "ann@example.org")
        criteria = folder / "criteria.json"
        criteria.write_text('{"combinator": "and", "rules": []}')
        must("criteria", "save", "everybody", criteria)
        made.import_people(0, PEOPLE)
        made.campaign()
        yield made


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


class Serving:
    """`mailfleet serve` in a thread: pre-flight asks the unsubscribe page whether it answers."""

    def __init__(self, settings: Settings, port: int) -> None:
        import uvicorn

        config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> "Serving":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.mark.usefixtures("any_store")
def test_a_send_reaches_everybody_once_and_again_nobody(shop_anywhere: Shop) -> None:
    shop = shop_anywhere
    ran = shop.mailfleet("send", "start", "hello", "--yes")
    assert ran.code == 0, ran.stderr
    assert "The books balance." in ran.stdout
    books = shop.books()
    assert (books["frozen"], books["injected"], books["duplicates"]) == (PEOPLE, PEOPLE, 0)
    assert len(shop.received()) == len(set(shop.received())) == PEOPLE

    again = shop.mailfleet("send", "start", "hello", "--yes")
    assert again.code == 0, again.stderr
    assert "nobody is left to send to" in again.stderr
    assert len(shop.received()) == PEOPLE
    assert shop.books()["injected"] == PEOPLE

    shop.import_people(PEOPLE, 5)  # who joined since is reached by a top-up
    shop.must("send", "start", "hello", "--yes")
    books = shop.books()
    assert (books["frozen"], books["injected"], books["phases"]) == (PEOPLE + 5, PEOPLE + 5, 3)
    assert len(set(shop.received())) == PEOPLE + 5
    assert "finished" in shop.must("send", "status", "hello#1")


def test_a_dry_run_counts_and_sends_nothing(shop: Shop) -> None:
    ran = shop.mailfleet("send", "start", "hello", "--mode", "dry-run")
    assert ran.code == 0, ran.stderr
    assert "| gmail |" in ran.stderr or "gmail" in ran.stderr
    books = shop.books("hello#dry-1")
    assert (books["frozen"], books["cancelled"], books["injected"]) == (PEOPLE, PEOPLE, 0)
    assert shop.received() == []
    assert shop.mailfleet("send", "start", "hello", "--yes").code == 0  # it used up no edition


def test_a_test_goes_to_the_seed_list_each_time(shop: Shop) -> None:
    shop.must("send", "start", "hello", "--mode", "test", "--yes")
    shop.must("send", "start", "hello", "--mode", "test", "--yes")
    assert shop.received() == ["ann@example.org"] * 2
    assert shop.books("hello#test-1.2")["injected"] == 1


def test_a_rejected_send_ends_with_the_name_and_reaches_nobody(shop: Shop) -> None:
    report = run_send(
        shop.engine,
        shop.settings,
        Trigger("hello", "1", SendMode.SEND, "ann", process_claim()),
        Hooks(approve=lambda summary: Answer(approved=False, by="bob")),
    )
    assert (report["state"], report["ok"], report["reason"]) == ("rejected", False, "rejected by bob")
    assert (report["books"]["cancelled"], report["books"]["injected"]) == (PEOPLE, 0)
    shop.must("send", "start", "hello", "--yes")  # it can be triggered again
    assert len(shop.received()) == PEOPLE


@dataclass
class Live:
    """A send that runs in a thread while the test does something to it."""

    shop: Shop
    approve: Callable[[Any], Answer] = lambda summary: Answer(approved=True, by="bob")

    def __post_init__(self) -> None:
        self.heard: list[SlotProgress] = []
        self.word = threading.Condition()
        self.report: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _hear(self, progress: SlotProgress) -> None:
        with self.word:
            self.heard.append(progress)
            self.word.notify_all()

    def _run(self) -> None:
        trigger = Trigger("hello", "1", SendMode.SEND, "ann", process_claim())
        try:
            self.report = run_send(
                self.shop.engine, self.shop.settings, trigger, Hooks(progress=self._hear, approve=self.approve)
            )
        except BaseException as error:  # shown by end()
            self.error = error
        with self.word:
            self.word.notify_all()

    def until(self, met: Callable[[SlotProgress], bool]) -> None:
        with self.word:
            while not any(map(met, self.heard)):
                assert self.thread.is_alive(), f"the send ended: {self.report or self.error!r}"
                self.word.wait(0.5)

    def end(self) -> dict[str, Any]:
        self.thread.join(120)
        if self.error is not None:
            raise self.error
        return self.report


def test_pause_resume_unsubscribe_and_a_second_trigger_while_it_runs(shop_anywhere: Shop) -> None:
    shop = shop_anywhere
    shop.campaign("pace_per_s: 12")
    live = Live(shop)
    live.until(lambda said: said.settled > 0)
    second = shop.mailfleet("send", "start", "hello", "--yes")
    assert second.code == 1
    assert "is being executed by process:" in second.stderr
    with pytest.raises(ClaimedError):
        run_send(shop.engine, shop.settings, Trigger("hello", "1", SendMode.SEND, "ann", "another", take_over=True))
    shop.must("send", "pause", "hello#1")
    live.until(lambda said: said.state is SlotState.PAUSED)
    last = {f"p{n}@{('gmail.com', 'outlook.com', 'example.org')[n % 3]}" for n in range(PEOPLE)}
    left_out = sorted(last - set(shop.received()))[0]
    with write(shop.engine) as connection:
        unsubscribe(
            connection,
            address_hash=shop.settings.identity().address_hash(left_out),
            list_id=list_id(connection, "newsletter"),
            method="one-click",
            source="test",
            at=now(),
        )
    shop.must("send", "pace", "hello#1", "0")
    shop.must("send", "resume", "hello#1")
    report = live.end()
    assert report["ok"], report["reason"]
    books = shop.books()
    assert (books["injected"], books["suppressed"]) == (PEOPLE - 1, 1)
    assert left_out not in shop.received()
    assert len(set(shop.received())) == PEOPLE - 1


@pytest.mark.usefixtures("any_store")
def test_a_stopped_send_books_the_rest_as_cancelled_and_a_new_trigger_sends_it(shop: Shop) -> None:
    shop.campaign("pace_per_s: 12")
    live = Live(shop)
    live.until(lambda said: said.settled > 0)
    shop.must("send", "stop", "hello#1")
    report = live.end()
    assert (report["state"], report["ok"]) == ("stopped", True)
    books = shop.books()
    assert books["cancelled"] > 0
    assert books["injected"] == len(shop.received()) == PEOPLE - books["cancelled"]
    with read(shop.engine) as connection:
        assert find_send(connection, "hello#1").claim is None
    with write(shop.engine) as connection:
        connection.execute(sends.update().values(pace_per_s=None))
    shop.must("send", "start", "hello", "--yes")
    assert len(set(shop.received())) == len(shop.received()) == PEOPLE
    assert shop.books()["injected"] == PEOPLE


@pytest.mark.usefixtures("any_store")
def test_a_killed_command_is_started_again_and_goes_on_with_the_agents_that_outlived_it(shop: Shop) -> None:
    shop.campaign("pace_per_s: 12")
    command = [sys.executable, "-m", "mailer_lib.cli", "send", "start", "hello", "--yes"]
    with (shop.folder / "first.log").open("wb") as log:
        first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        while len(shop.received()) < 5:
            assert first.poll() is None, (shop.folder / "first.log").read_text()
            time.sleep(0.05)
    finally:
        first.kill()
        first.wait()
    with write(shop.engine) as connection:
        connection.execute(sends.update().values(pace_per_s=None))
    again = shop.mailfleet("send", "start", "hello", "--no-approval")
    assert again.code == 0, again.stderr
    assert "phase 1, going on" in again.stderr
    books = shop.books()
    assert (books["injected"], books["unknown"], books["duplicates"], books["phases"]) == (PEOPLE, 0, 0, 1)
    assert len(shop.received()) == len(set(shop.received())) == PEOPLE


@pytest.mark.s3
@pytest.mark.parametrize("_store", ["s3"], indirect=True)
def test_one_machine_freezes_and_another_sends(shop: Shop, tmp_path: Path) -> None:
    """They share the database, the keys and a store on S3, and no folder."""
    shutil.copytree(shop.settings.keys_dir, tmp_path / "other" / "keys")
    shop.settings.storage.rename(tmp_path / "not here")
    other = shop.settings.model_copy(update={"home": tmp_path / "other"})
    engine, claim = shop.engine, process_claim()
    opened = steps.open_step(
        engine, shop.settings, campaign="hello", edition="1", mode=SendMode.SEND, launched_by="ann", claim=claim
    )
    send = opened["send_id"], claim
    steps.freeze_message(engine, shop.settings, *send)
    plan = steps.plan_recipients(engine, shop.settings, *send)
    for index in range(plan["ranges"]):
        steps.build_recipients(engine, other, *send, plan["plan"], index)
    assert steps.publish_recipients(engine, shop.settings, *send)["frozen"] == PEOPLE
    steps.check_message(engine, other, *send)
    steps.approval_summary(engine, other, *send)
    steps.skip_approval(engine, other, *send)
    slots = [Slot(**slot) for slot in steps.start_sending(engine, other, *send)]
    run_slots(engine, other, opened["send_id"], slots, claim=claim, hooks=Hooks())
    books = steps.close_step(engine, shop.settings, *send)
    assert (books["injected"], books["duplicates"], books["balanced"]) == (PEOPLE, 0, True)
    assert len(set(shop.received())) == len(shop.received()) == PEOPLE
    for storage in (shop.settings.storage, other.storage):
        left = [path for path in storage.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json")]
        assert [path for path in left if "snapshots" in path.parts] == []


def test_an_approval_is_void_when_the_message_changes_meanwhile(shop: Shop) -> None:
    def change_and_approve(summary: Any) -> Answer:
        with write(shop.engine) as connection:
            connection.execute(sends.update().values(content_hash="0" * 64))
        return Answer(approved=True, by="bob")

    with pytest.raises(ValueError, match="changed after this approval was asked for"):
        run_send(
            shop.engine,
            shop.settings,
            Trigger("hello", "1", SendMode.SEND, "ann", process_claim()),
            Hooks(approve=change_and_approve),
        )
    assert shop.received() == []
    with read(shop.engine) as connection:
        failed = connection.execute(select(sends.c.state, sends.c.claim, sends.c.control)).one()
    assert (failed.state, failed.claim, failed.control) == ("failed", None, Control.RUN)


def test_wrong_input_is_a_sentence(shop: Shop) -> None:
    unknown = shop.mailfleet("send", "start", "helo", "--yes")
    assert unknown.code == 1
    assert "did you mean hello" in unknown.stderr
    assert "has no send with the edition '7'" in shop.mailfleet("send", "pause", "hello#7").stderr
    ran = shop.mailfleet("send", "start", "hello")
    assert ran.code == 1
    assert "no terminal to ask at" in ran.stderr
    with pytest.raises(ValueError, match="can't be"):
        control.set_pace(shop.engine, "hello#1", -1.0, "ann")
