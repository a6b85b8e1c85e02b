"""``make demo``, ``make up`` and ``make down``, with fewer people, as the Makefile calls them."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from examples.demo.airflow_api import AirflowApi
from examples.demo.stack import OPERATOR, PROJECT
from examples.demo.world import World
from tests.support import require_package

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.airflow,
    pytest.mark.timeout(900),
]
PEOPLE = 3000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    require_package("airflow")
    folder = tmp_path_factory.mktemp("demo")
    yield folder
    _module(folder, "down")
    assert _left(folder) == []


def _module(folder, name: str) -> subprocess.CompletedProcess[str]:
    """``python -m examples.demo.<name>`` as an ordinary shell would run it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAILFLEET_", "AIRFLOW"))}
    environment |= {"MAILFLEET_DEMO": str(folder), "MAILFLEET_DEMO_PEOPLE": str(PEOPLE)}
    command = [sys.executable, "-m", f"examples.demo.{name}"]
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=800, check=False
    )


def _left(folder) -> list[str]:
    """Living processes that have anything to do with the demo's folder: by command line, folder or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            traces = [*process.cmdline(), process.cwd(), *process.environ().values()]
            if any(str(folder) in trace for trace in traces):
                found.append(str(process))
        except psutil.Error:
            continue
    return found


def test_the_demo_ends_well_with_balanced_books_and_nothing_left_running(root):
    done = _module(root, "run")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    block = re.findall(r"frozen=\d+(?: \w+=\d+)+", done.stdout)[-1]
    books = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", block)}
    outcomes = ("injected", "rejected", "suppressed", "failed", "expired", "cancelled", "unknown")
    assert list(books) == ["frozen", *outcomes, "duplicates"]
    assert books["frozen"] == sum(books[outcome] for outcome in outcomes) > PEOPLE / 2
    assert books["duplicates"] == 0
    assert books["suppressed"] >= 1
    for words in ("presses Unsubscribe (POST, HTTP 200)", "trigger to first message", "the DAG's own overhead"):
        assert words in done.stdout
    assert _left(root) == []


def test_up_leaves_it_running_and_down_leaves_nothing_even_in_mid_send(root):
    started = _module(root, "up")
    assert started.returncode == 0, started.stdout[-4000:] + started.stderr[-2000:]
    world = World(root, PEOPLE)
    for url in (world.stack.url, world.inbox_url, world.serve_url):
        assert url in started.stdout
    api = AirflowApi(world.stack.url, OPERATOR, world.stack.password())
    run_id = api.trigger("campaign_send", {"campaign": "summer-preview", "mode": "send"})
    api.wait_for_question("campaign_send", run_id)
    api.answer("campaign_send", run_id, "Approve")
    while not any("mailer_lib.agent" in text for text in _commands(world)):
        time.sleep(0.1)
    stopped = _module(root, "down")
    assert stopped.returncode == 0, stopped.stdout
    assert _left(root) == []


def _commands(world: World) -> list[str]:
    texts = []
    for process in world.stack.processes.alive():
        with suppress(psutil.NoSuchProcess):  # gone, or a zombie, since the list was made
            texts.append(" ".join(process.cmdline()))
    return texts
