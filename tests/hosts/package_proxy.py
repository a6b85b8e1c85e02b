"""Debian packages for hosts that have no way out: an HTTP proxy that listens on the switch and dials from outside.

It knows GET alone, one request a connection, and only hosts that this machine's own apt sources name.
"""

import re
import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.hosts.switch import Switch

PORT = 3142
_CHUNK = 1 << 16


class PackageProxy:
    def __init__(self, switch: Switch) -> None:
        with switch.inside():
            self._listener = socket.create_server((switch.gateway, PORT))
        self.url = f"http://{switch.gateway}:{PORT}"
        self._allowed = {urlsplit(url).hostname for url in re.findall(r"https?://\S+", _sources())}
        threading.Thread(target=self._serve, daemon=True, name="package proxy").start()

    def configure(self, root: Path) -> None:
        """Give a host this machine's apt sources, by way of the proxy."""
        for entry in ("sources.list", "sources.list.d"):
            source, target = Path("/etc/apt") / entry, root / "etc/apt" / entry
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, target)
        (root / "etc/apt/apt.conf.d/90proxy").write_text(f'Acquire::http::Proxy "{self.url}";\n')

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = _head(connection)
            found = re.match(rb"GET (http://\S+) HTTP/1\.[01]\r\n", head)
            url = urlsplit(found[1].decode()) if found else None
            if url is None or url.hostname not in self._allowed:
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            path = f"{url.path}?{url.query}" if url.query else url.path
            kept = [
                line
                for line in head.split(b"\r\n")[1:]
                if line and not re.match(rb"(?i)(proxy-|connection|host:|keep-alive)", line)
            ]
            lines = [f"GET {path} HTTP/1.1".encode(), f"Host: {url.netloc}".encode(), *kept, b"Connection: close"]
            with socket.create_connection((url.hostname or "", url.port or 80), 30) as upstream:
                upstream.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
                while chunk := upstream.recv(_CHUNK):
                    connection.sendall(chunk)


def _head(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(_CHUNK)
        if not chunk:
            break
        data += chunk
    return data


def _sources() -> str:
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    return "\n".join(path.read_text() for path in files if path.is_file())
