"""``mailfleet sink``: from the command line, on what a real sink took."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from mailer_lib.settings import Settings
from mailer_lib.sink.process import start
from tests.sink.smtp_client import Client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def filled(settings: Settings) -> Settings:
    with start(settings.home / "sink", name="one") as sink, Client(sink.port) as client:
        for number in range(3):
            head = f"From: a@x.example\r\nSubject: Number {number}\r\nMessage-ID: <{number % 2}@x>\r\n"
            message = f"{head}\r\nText {number}\r\n"
            client.deliver(f"p{number}@isp.example", message.encode())
    return settings


def test_list_count_show(filled: Settings, mailfleet) -> None:  # type: ignore[no-untyped-def]
    assert mailfleet("sink", "count").stdout.splitlines() == ["one 3", "total 3"]
    listed = mailfleet("sink", "list", "p1@")
    assert "Number 1" in listed.stdout and "Number 2" not in listed.stdout
    queue_id = re.search(r"^(\w{6}-\w{6}-\w\w)", listed.stdout, re.MULTILINE)
    assert queue_id is not None
    shown = mailfleet("sink", "show", queue_id[1])
    assert "Subject: Number 1" in shown.stdout and "Text 1" in shown.stdout
    assert mailfleet("sink", "show", "nothing").code == 1


def test_verify_fails_on_what_is_wrong(filled: Settings, mailfleet) -> None:  # type: ignore[no-untyped-def]
    ran = mailfleet("sink", "verify")
    assert ran.code == 1
    assert "messages=3 duplicates=1 checked=3 dkim-valid=0" in ran.stdout
    assert "no DKIM signature" in ran.stdout


@pytest.mark.parametrize("arguments", [["serve", "--listen", "127.0.0.1"], ["serve", "--listen", "127.0.0.1:99999"]])
def test_wrong_addresses_are_sentences(settings: Settings, mailfleet, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    ran = mailfleet("sink", *arguments)
    assert ran.code == 1 and "write HOST:PORT" in ran.stderr


def test_serve_and_inbox_as_processes(settings: Settings) -> None:
    command = [sys.executable, "-m", "mailer_lib.cli", "sink"]
    sink = subprocess.Popen([*command, "serve", "--listen", "127.0.0.1:0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    inbox = subprocess.Popen([*command, "inbox", "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None and inbox.stdout is not None
        port = re.search(r'"127.0.0.1", (\d+)', sink.stdout.readline())
        url = re.search(r"inbox (http://\S+)", inbox.stdout.readline())
        assert port is not None and url is not None
        with Client(int(port[1])) as client:
            client.deliver("ann@isp.example", b"Subject: Grand opening\r\n\r\nhi\r\n")
        with urllib.request.urlopen(url[1], timeout=20) as page:
            assert "Grand opening" in page.read().decode()
        for process in (sink, inbox):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        for process in (sink, inbox):
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
