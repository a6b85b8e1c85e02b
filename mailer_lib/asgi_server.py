"""An ASGI app in worker processes of Granian: `mailfleet serve`, the inbox. No access log: paths are tokens."""

import ctypes
import http.client
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from granian.constants import Interfaces, Loops
from granian.server.mp import MPServer

WORKER_KILL_TIMEOUT_S = 15
START_TIMEOUT_S = 60.0
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class ServeError(RuntimeError):
    """The server can't start; the sentence says why."""


def run(target: str, host: str, port: int, *, workers: int = 1, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``announce`` is called with the URL once it answers; port 0 takes any free one.

    ``target``: ``module:factory``; the factory is called in each worker, and the app has a ``/healthz``.

    Settings come from the environment, for every worker anew.

    Raises:
        ServeError: the address can't be listened on.
    """
    port = _claim(host, port)
    logging.getLogger("_granian").setLevel(logging.WARNING)
    server = _Server(
        target,
        factory=True,
        interface=Interfaces.ASGI,
        address=host,
        port=port,
        workers=workers,
        loop=Loops.uvloop,
        websockets=False,
        log_access=False,
        log_enabled=False,
        respawn_failed_workers=True,
        workers_kill_timeout=WORKER_KILL_TIMEOUT_S,
    )
    server.ready = threading.Thread(target=_announce_when_ready, args=(host, port, announce), daemon=True)
    server.serve()


class _Server(MPServer):
    """Starts ``ready`` once the workers are forked. Granian's own hook runs before: a worker would then be forked while
    that thread holds, say, an import lock, which nobody in the worker ever gives back."""

    ready: threading.Thread

    def startup(self, *args: Any, **options: Any) -> None:
        super().startup(*args, **options)  # type: ignore[no-untyped-call]
        self.ready.start()


def _claim(host: str, port: int) -> int:
    """The port, tried out before workers are started: Granian would only log why it can't bind."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServeError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
        bound: int = probe.getsockname()[1]
        return bound


def _announce_when_ready(host: str, port: int, announce: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
            continue
        finally:
            connection.close()
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        return
    log.error("nothing answers on %s:%d after %.0f s", host, port, START_TIMEOUT_S)


def end_with_parent() -> None:
    """Called in a worker: a killed parent leaves no worker behind that would go on serving an old release."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):  # not Linux
        return
