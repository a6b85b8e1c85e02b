"""A network namespace with a bridge and no way out, and how to act inside it."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Switch:
    """``name`` is the namespace's; ports are plugged in by ``plug``. Removed whole by ``close``."""

    def __init__(self, name: str, network: str) -> None:
        """``network``: the first three numbers, like ``10.77.0``."""
        self.name, self.network = name, network
        self.gateway = f"{network}.1"
        self._namespaces: list[str] = []
        self._add(name)
        _ip("-n", name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", name, "addr", "add", f"{self.gateway}/24", "dev", "bridge")
        _ip("-n", name, "link", "set", "bridge", "up")

    def plug(self, number: int) -> str:
        """A namespace of its own behind a port of the switch. Returns its name; the address ends in ``number``."""
        name = f"{self.name}-{number}"
        self._add(name)
        _ip("-n", name, "link", "add", "host0", "type", "veth", "peer", "name", f"port{number}", "netns", self.name)
        _ip("-n", self.name, "link", "set", f"port{number}", "master", "bridge", "up")
        _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "host0")
        _ip("-n", name, "link", "set", "host0", "up")
        return name

    def pull(self, number: int) -> None:
        """The cable of a port is cut."""
        _ip("-n", self.name, "link", "set", f"port{number}", "down")

    def push(self, number: int) -> None:
        """It is there again."""
        _ip("-n", self.name, "link", "set", f"port{number}", "up")

    def address(self, number: int) -> str:
        return f"{self.network}.{number}"

    def also(self, number: int) -> str:
        """One more address of the switch itself, for services that run inside it."""
        _ip("-n", self.name, "addr", "add", f"{self.address(number)}/24", "dev", "bridge")
        return self.address(number)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the switch's namespace: sockets that it opens and processes that it starts stay there."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, Path(f"/run/netns/{self.name}").open("rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def command(self, *command: str) -> list[str]:
        """The command, to be run inside."""
        return ["ip", "netns", "exec", self.name, *command]

    def close(self) -> None:
        for name in reversed(self._namespaces):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)

    def _add(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
