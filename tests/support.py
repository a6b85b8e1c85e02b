"""What tests share that isn't a fixture."""

import os
import random
import socket
from importlib.util import find_spec
from typing import NoReturn

import pytest


def require(condition: object, why: str) -> None:
    """Go on when ``condition`` holds. Otherwise skip; with ``MAILFLEET_REQUIRE_ALL=1`` (CI) fail.

    ``why`` says what is missing and how to get it.
    """
    if not condition:
        missing(why)


def require_package(name: str) -> None:
    """``require`` for a package of requirements-dev.txt. ``pytest.importorskip`` would skip in CI too."""
    require(find_spec(name), f"the package {name} isn't installed (make setup)")


def missing(why: str) -> NoReturn:
    """A part of this machine that the test needs isn't there."""
    if os.environ.get("MAILFLEET_REQUIRE_ALL") == "1":
        pytest.fail(f"MAILFLEET_REQUIRE_ALL=1, and {why}", pytrace=False)
    pytest.skip(why)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago. Servers of ours bind port 0 themselves instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lasting_port() -> int:
    """A free port for a server that is killed and comes back: below the ephemeral range (from 32768 on Linux), so that
    nobody's outgoing connection takes it meanwhile, and a client that tries it can't connect to itself."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def times(in_ci: int, thorough: int) -> int:
    """How often something is killed: a few times in each run, and as often as it takes to be sure of it with
    ``MAILFLEET_THOROUGH=1`` (half an hour more)."""
    return thorough if os.environ.get("MAILFLEET_THOROUGH") == "1" else in_ci
