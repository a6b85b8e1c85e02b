"""The inbox shows strangers' mail: nothing in it may run, and nothing leaves unless asked."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from starlette.testclient import TestClient

from mailer_lib.sink.inbox import create_inbox
from mailer_lib.sink.maildir import make_maildir, store

EVIL = '<script>alert(1)</script><img src="https://tracker.example/x.gif"><h1>Offer</h1>'
ID = "1xAAAA-000001-2F"


def put(root: Path, queue_id: str = ID, subject: str = "Offer", unsubscribe: str = "https://x.example/u/t") -> None:
    maildir = root / "one" / "Maildir"
    make_maildir(maildir)
    message = (
        f"From: a@x.example\r\nTo: b@isp.example\r\nSubject: {subject}\r\nList-Unsubscribe: <{unsubscribe}>\r\n"
        f"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nContent-Type: text/html\r\n\r\n{EVIL}\r\n"
    )
    store(maildir, queue_id, message.encode(), b"Envelope-To: b@isp.example\r\n", fsync=False)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    put(tmp_path)
    with TestClient(create_inbox(tmp_path, tmp_path / "keys"), follow_redirects=False) as client:
        yield client


def test_the_list_escapes_subjects(client: TestClient, tmp_path: Path) -> None:
    put(tmp_path, "1xAAAA-000002-2F", "<script>alert(2)</script>")
    page = client.get("/").text
    assert "&lt;script&gt;alert(2)" in page and "<script" not in page
    assert "2 messages" in page


def test_searching_and_paging(client: TestClient, tmp_path: Path) -> None:
    for number in range(120):
        put(tmp_path, f"1xBBBB-{number:06}-2F", f"Number {number}")
    assert "121 messages" in client.get("/").text
    assert "Older" in client.get("/").text and "Newer" in client.get("/?page=3").text
    assert "1 of 121 messages" in client.get("/", params={"q": "number 77"}).text
    assert "Nothing matches" in client.get("/?q=nowhere").text
    for odd in ("0", "-1", "x", "9" * 30, "²"):
        assert client.get("/", params={"page": odd}).status_code == 200


def test_the_message_is_caged(client: TestClient) -> None:
    page = client.get(f"/m/{ID}")
    assert "<script" not in page.text and "DKIM not valid" in page.text and 'sandbox="' in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    frame = client.get(f"/m/{ID}/html")
    policy = frame.headers["content-security-policy"]
    assert EVIL in frame.text
    assert policy.startswith("sandbox ") and "default-src 'none'" in policy and "allow-scripts" not in policy
    assert "allow-same-origin" not in policy and "img-src data:;" in policy


def test_remote_pictures_only_when_asked(client: TestClient) -> None:
    assert "http" not in client.get(f"/m/{ID}/html").headers["content-security-policy"]
    assert "img-src data: http: https:" in client.get(f"/m/{ID}/html?remote=1").headers["content-security-policy"]


@pytest.mark.parametrize("show", ["html", "text", "headers", "source", "nonsense"])
def test_every_tab(client: TestClient, show: str) -> None:
    page = client.get(f"/m/{ID}", params={"show": show, "said": "<script>"})
    assert page.status_code == 200 and "<script" not in page.text


def test_raw_is_the_file(client: TestClient, tmp_path: Path) -> None:
    answer = client.get(f"/m/{ID}/raw")
    (file,) = (tmp_path / "one" / "Maildir" / "new").iterdir()
    assert answer.content == file.read_bytes() and answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/m/nothing", "/m/..%2f..%2fetc", "/m/nothing/html", "/m/nothing/raw"])
def test_what_is_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


class _Sender(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, bytes]]] = []
    answer: ClassVar[int] = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body))
        self.send_response(self.answer)
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(b"Unsubscribed.")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sender() -> Iterator[HTTPServer]:
    _Sender.seen, _Sender.answer = [], 200
    server = HTTPServer(("127.0.0.1", 0), _Sender)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "said"), [(200, "answered 200: Unsubscribed."), (404, "answered 404"), (302, "answered 302")]
)
def test_the_button_does_the_real_one_click(
    client: TestClient, tmp_path: Path, sender: HTTPServer, status: int, said: str
) -> None:
    _Sender.answer = status
    put(tmp_path, "1xAAAA-000005-2F", unsubscribe=f"http://127.0.0.1:{sender.server_port}/u/token")
    answer = client.post("/m/1xAAAA-000005-2F/unsubscribe")
    assert answer.status_code == 303
    assert said in client.get(answer.headers["location"]).text
    assert _Sender.seen == [("/u/token", b"List-Unsubscribe=One-Click")]  # no redirect followed


def test_another_site_cannot_press_it(client: TestClient, sender: HTTPServer) -> None:
    assert client.post(f"/m/{ID}/unsubscribe", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get(f"/m/{ID}/unsubscribe").status_code == 405


def test_a_sender_that_is_away_is_a_sentence(client: TestClient, tmp_path: Path) -> None:
    put(tmp_path, "1xAAAA-000006-2F", unsubscribe="http://127.0.0.1:1/u/token")
    answer = client.post("/m/1xAAAA-000006-2F/unsubscribe")
    assert "couldn&#39;t be reached" in client.get(answer.headers["location"]).text
