"""A small server on this machine that speaks the part of Hetzner Cloud's API that we use, trouble included."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "token-of-the-test"
Answer = tuple[int, dict[str, Any]]


def error(status: int, code: str, message: str = "as the test wants it") -> Answer:
    return status, {"error": {"code": code, "message": message}}


@dataclass
class Cloud:
    """What the other side has. ``trouble``: answers given before the real one, in order; ``lost``: how many creations
    are done and then answered with a 502."""

    url: str = ""
    servers: dict[int, dict[str, Any]] = field(default_factory=dict)
    trouble: list[Answer] = field(default_factory=list)
    lost: int = 0
    action_polls: int = 1
    page_size: int = 50
    calls: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    actions: dict[int, int] = field(default_factory=dict)  # polls left

    def put(self, name: str, **labels: str) -> int:
        """A server that was there before."""
        number = len(self.servers) + 100
        self.servers[number] = _server(number, name, labels)
        return number

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: dict[str, Any]) -> Answer:
        self.calls.append(f"{method} {path}")
        if self.trouble:
            return self.trouble.pop(0)
        match [method, *path.strip("/").split("/")]:
            case ["GET", "server_types"]:
                price = {"location": "fsn1", "price_hourly": {"net": "0.005", "gross": "0.0060"}}
                return 200, {"server_types": [{"name": query["name"][0], "prices": [price]}]}
            case ["GET", "servers"]:
                return self._list(query)
            case ["POST", "servers"]:
                return self._create(body)
            case ["GET", "servers", number]:
                found = self.servers.get(int(number))
                return (200, {"server": found}) if found else error(404, "not_found")
            case ["DELETE", "servers", number]:
                return (200, self._action("delete_server")) if self.servers.pop(int(number), None) else error(404, "x")
            case ["POST", "servers", number, "actions", "change_dns_ptr"]:
                self.servers[int(number)]["public_net"]["ipv4"]["dns_ptr"] = body["dns_ptr"]
                return 201, self._action("change_dns_ptr")
            case ["GET", "actions", number]:
                return 200, {"action": self._polled(int(number))}
        return error(404, "not_found")

    def _create(self, body: dict[str, Any]) -> Answer:
        if any(one["name"] == body["name"] for one in self.servers.values()):
            return error(409, "uniqueness_error")
        self.created.append(body)
        number = len(self.servers) + 1
        self.servers[number] = _server(number, body["name"], body["labels"])
        if self.lost:
            self.lost -= 1
            return 502, {}
        return 201, {"server": self.servers[number], **self._action("create_server")}

    def _list(self, query: dict[str, list[str]]) -> Answer:
        found = list(self.servers.values())
        if "name" in query:
            found = [one for one in found if one["name"] == query["name"][0]]
        if "label_selector" in query:
            name, value = query["label_selector"][0].split("=")
            found = [one for one in found if one["labels"].get(name) == value]
        page = int(query["page"][0])
        shown = found[(page - 1) * self.page_size : page * self.page_size]
        more = page + 1 if page * self.page_size < len(found) else None
        return 200, {"servers": shown, "meta": {"pagination": {"next_page": more}}}

    def _action(self, command: str) -> dict[str, Any]:
        number = len(self.actions) + 1
        self.actions[number] = self.action_polls
        return {"action": {"id": number, "command": command, "status": "running"}}

    def _polled(self, number: int) -> dict[str, Any]:
        self.actions[number] -= 1
        return {"id": number, "command": "any", "status": "success" if self.actions[number] <= 0 else "running"}


def _server(number: int, name: str, labels: dict[str, str]) -> dict[str, Any]:
    address = {"ip": f"192.0.2.{number}", "dns_ptr": f"static.{number}.example"}
    return {"id": number, "name": name, "labels": labels, "public_net": {"ipv4": address}}


@contextmanager
def cloud() -> Iterator[Cloud]:
    state = Cloud()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            asked = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                status, said = error(401, "unauthorized")
            else:
                status, said = state.answer(self.command, asked.path, parse_qs(asked.query), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        do_GET = do_POST = do_DELETE = _reply  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
