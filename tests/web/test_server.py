"""``mailfleet serve`` as a real process, over real HTTP."""

import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from mailer_lib.settings import Settings
from mailer_lib.tokens import TokenKind
from tests.web.world import World

ROOT = Path(__file__).parents[2]
ANN = "ann@isp.example"


@contextmanager
def serving(settings: Settings, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """URL and process; the environment has the settings (``settings`` fixture)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mailer_lib.cli", "serve", "--port", "0", *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=(settings.home / "serve.log").open("w"), text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"serving (http://\S+)", line)
        assert found, line + (settings.home / "serve.log").read_text()
        yield found[1], process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.wait()
        process.stdout.close()


def post(url: str, body: bytes = b"List-Unsubscribe=One-Click") -> int:
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=20) as answer:
        return int(answer.status)


def test_one_click_survives_a_kill_right_after_the_answer(world: World) -> None:
    with serving(world.settings) as (url, process):
        token = world.token(TokenKind.UNSUBSCRIBE, ANN)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert post(f"{url}/u/{token}") == 200
        for worker in workers:
            worker.kill()
        process.kill()
        process.wait()
    assert world.state(ANN) == "unsubscribed"
    assert world.suppressed(ANN) == [("unsubscribed", world.list_id)]


def test_get_over_http_and_a_graceful_end(sqlite_world: World) -> None:
    with serving(sqlite_world.settings, "--workers", "2") as (url, process):
        token = sqlite_world.token(TokenKind.UNSUBSCRIBE, ANN)
        with urllib.request.urlopen(f"{url}/u/{token}", timeout=20) as answer:
            assert answer.status == 200 and answer.headers["Referrer-Policy"] == "no-referrer"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/u/nonsense", timeout=20)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert token not in (sqlite_world.settings.home / "serve.log").read_text()


def test_workers_end_with_a_killed_parent(sqlite_world: World) -> None:
    with serving(sqlite_world.settings) as (_, process):
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []


ANNOUNCED_FORKS = """
import os, threading
from mailer_lib.asgi_server import run
os.register_at_fork(before=lambda: print([thread.name for thread in threading.enumerate()], flush=True))
run("mailer_lib.web.app:app_from_environment", "127.0.0.1", 0, announce=lambda url: print(url, flush=True))
"""


def test_no_other_thread_runs_while_a_worker_is_forked(sqlite_world: World) -> None:
    """A worker that inherits a lock which such a thread held waits for it for ever."""
    process = subprocess.Popen([sys.executable, "-c", ANNOUNCED_FORKS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "['MainThread']\n"
        assert process.stdout.readline().startswith("http://127.0.0.1:")
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_taken_port_is_a_sentence(sqlite_world: World) -> None:
    with serving(sqlite_world.settings) as (url, _):
        ran = subprocess.run(
            [sys.executable, "-m", "mailer_lib.cli", "serve", "--port", url.rsplit(":", 1)[1]],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert ran.returncode == 1 and "can't listen on" in ran.stderr and "Traceback" not in ran.stderr
