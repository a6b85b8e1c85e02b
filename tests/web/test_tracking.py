import json

import pytest
from starlette.testclient import TestClient

from mailer_lib.tokens import TokenKind
from mailer_lib.web.tracking import PIXEL, is_web_url
from tests.web.world import LINKS, World

ANN = "ann@isp.example"
BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0"}


def test_a_click_goes_to_the_frozen_target_and_is_noted(sqlite_world: World, sqlite_client: TestClient) -> None:
    url = f"/c/{sqlite_world.token(TokenKind.CLICK, ANN, link=1)}"
    for _ in range(2):
        answer = sqlite_client.get(url, headers=BROWSER)
        assert (answer.status_code, answer.headers["location"]) == (302, LINKS[1])
    events = [json.loads(line) for line in sqlite_world.events()]
    assert [(e["kind"], e["link"], e["agent"]) for e in events] == [("click", 1, "person")] * 2
    assert events[0]["message_key"] == sqlite_world.key_of(ANN).hex()
    assert set(events[0]) == {"t", "kind", "send_id", "message_key", "contact_id", "link", "agent"}


@pytest.mark.parametrize("link", [2, 3, 9])
def test_only_known_web_addresses_are_gone_to(sqlite_world: World, sqlite_client: TestClient, link: int) -> None:
    answer = sqlite_client.get(f"/c/{sqlite_world.token(TokenKind.CLICK, ANN, link=link)}")
    assert answer.status_code == 404 and "location" not in answer.headers
    assert sqlite_world.events() == []


def test_the_pixel(sqlite_world: World, sqlite_client: TestClient) -> None:
    answer = sqlite_client.get(f"/o/{sqlite_world.token(TokenKind.OPEN, ANN)}.gif", headers=BROWSER)
    assert answer.content == PIXEL and answer.headers["content-type"] == "image/gif"
    assert answer.headers["cache-control"] == "no-store"
    assert [json.loads(line)["kind"] for line in sqlite_world.events()] == ["open"]


def test_head_notes_nothing(sqlite_world: World, sqlite_client: TestClient) -> None:
    assert sqlite_client.head(f"/c/{sqlite_world.token(TokenKind.CLICK, ANN, link=1)}").status_code == 302
    assert sqlite_client.head(f"/o/{sqlite_world.token(TokenKind.OPEN, ANN)}.gif").status_code == 200
    assert sqlite_world.events() == []


@pytest.mark.parametrize(("url", "good"), [
    ("https://a.example/", True), ("HTTP://a.example", True), ("javascript:alert(1)", False), ("//a.example", False),
    ("/etc/passwd", False), ("https:///x", False), ("data:text/html,x", False), ("http://[::1", False), ("", False),
])  # fmt: skip
def test_web_urls(url: str, good: bool) -> None:
    assert is_web_url(url) is good
