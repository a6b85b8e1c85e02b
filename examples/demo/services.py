"""The demo's servers beside Airflow: the mail sink with its inbox, and ``mailfleet serve``."""

import socket
import time
from collections.abc import Callable

import httpx

from examples.demo.commands import DemoError, python_module
from examples.demo.stack import PROJECT
from examples.demo.world import SINK, SINK_RULES, World

UP_WAIT_S = 30.0


def start_services(world: World) -> None:
    """Start both and wait until they answer."""
    services = world.services
    services.stop()
    world.sink.mkdir(parents=True, exist_ok=True)
    (world.sink / "rules.yaml").write_text(SINK_RULES)
    env = {**world.env, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1"}
    listen = [part for n in (1, 2, 3) for part in ("--listen", f"127.0.0.1:{world.ports[f'smtp-{n}']}")]
    services.start("sink", python_module("sink", "serve", "--name", SINK, *listen), env, cwd=PROJECT)
    services.start("inbox", python_module("sink", "inbox", "--port", str(world.ports["inbox"])), env, cwd=PROJECT)
    services.start("serve", python_module("serve"), env, cwd=PROJECT)
    services.adopt_children()  # agents of `mailfleet send start`
    _wait(world, "sink", lambda: _listens(world.ports["smtp-1"]))
    _wait(world, "serve", lambda: _answers(world.serve_url))
    _wait(world, "inbox", lambda: _answers(world.inbox_url))


def _wait(world: World, name: str, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + UP_WAIT_S
    while not ready():
        dead = world.services.first_dead()
        if dead or time.monotonic() > deadline:
            log = world.services.folder / f"{dead or name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise DemoError(f"{dead or name} didn't start; the end of {log}:\n{tail}")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
    except OSError:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=2.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return True
