"""Leaving a list through the signed link: by RFC 8058's one click, or the form."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from mailer_lib.database.engine import read
from mailer_lib.database.schema import consent_events
from mailer_lib.tokens import TokenKind
from mailer_lib.web.app import create_app
from tests.web.world import World, freeze

ONE_CLICK = {"List-Unsubscribe": "One-Click"}


def link(world: World, address: str = "ann@isp.example") -> str:
    return f"/u/{world.token(TokenKind.UNSUBSCRIBE, address)}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_looking_changes_nothing(world: World, client: TestClient, method: str) -> None:
    answer = client.request(method, link(world))
    assert answer.status_code == 200
    assert world.state("ann@isp.example") == "confirmed"
    assert world.suppressed("ann@isp.example") == [] and world.evidence("ann@isp.example") == []
    assert world.events() == []


def test_the_form_names_list_and_masked_address(world: World, client: TestClient) -> None:
    text = client.get(link(world)).text
    assert "Fjord &amp; Fern News" in text and "a•••@isp.example" in text and "ann@isp.example" not in text


@pytest.mark.parametrize("body", [
    {"data": ONE_CLICK},
    {"files": {"List-Unsubscribe": (None, "One-Click")}},  # multipart/form-data
    {"content": b"List-Unsubscribe=One-Click", "headers": {"content-type": "text/plain"}},
])  # fmt: skip
def test_one_click_leaves_the_campaigns_list(world: World, client: TestClient, body: dict) -> None:  # type: ignore[type-arg]
    answer = client.post(link(world), **body)
    assert answer.status_code == 200  # never a redirect (RFC 8058 §3.1)
    assert world.state("ann@isp.example") == "unsubscribed"
    assert world.suppressed("ann@isp.example") == [("unsubscribed", world.list_id)]
    assert world.evidence("ann@isp.example") == [("unsubscribed", "one-click")]
    assert world.state("bert@isp.example") == "confirmed"


@pytest.mark.parametrize(("scope", "lists"), [("list", "one"), ("all", "every")])
def test_the_form_leaves_this_list_or_all(world: World, client: TestClient, scope: str, lists: str) -> None:
    answer = client.post(link(world), data={"scope": scope})
    assert answer.status_code == 200 and "You are unsubscribed" in answer.text
    assert world.state("ann@isp.example") == "unsubscribed"
    assert world.suppressed("ann@isp.example") == [("unsubscribed", world.list_id if lists == "one" else 0)]
    assert world.evidence("ann@isp.example") == [("unsubscribed", "web-form")]


def test_leaving_twice_is_leaving_once(world: World, client: TestClient) -> None:
    answers = [client.post(link(world), data=ONE_CLICK).status_code for _ in range(3)]
    assert answers == [200, 200, 200]
    assert len(world.suppressed("ann@isp.example")) == 1 and len(world.evidence("ann@isp.example")) == 1


def test_fifty_clicks_at_once_are_one(world: World, client: TestClient) -> None:
    url = link(world)
    with ThreadPoolExecutor(50) as threads:
        codes = list(threads.map(lambda _: client.post(url, data=ONE_CLICK).status_code, range(50)))
    assert codes == [200] * 50
    assert len(world.suppressed("ann@isp.example")) == 1 and len(world.evidence("ann@isp.example")) == 1


@pytest.mark.parametrize(
    "body", [b"", b"scope=everything", b"List-Unsubscribe=", b"\xff\xfe\x00", b"&" * 500, b"a=b&" * 100]
)
def test_a_post_that_says_neither_changes_nothing(world: World, client: TestClient, body: bytes) -> None:
    answer = client.post(link(world), content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 400 and "<form" in answer.text
    assert world.state("ann@isp.example") == "confirmed"


def test_a_contact_that_was_erased_still_leaves_by_the_frozen_row(world: World, client: TestClient) -> None:
    freeze(world)
    gone = f"/u/{world.token(TokenKind.UNSUBSCRIBE, 'ann@isp.example', contact_id=4711)}"
    assert client.post(gone, data=ONE_CLICK).status_code == 200
    assert world.suppressed("ann@isp.example") == [("unsubscribed", world.list_id)]


def test_nobody_else_is_taken_for_somebody_who_is_gone(world: World, client: TestClient) -> None:
    """Ids may come again: the message key must fit the contact."""
    other = f"/u/{world.token(TokenKind.UNSUBSCRIBE, 'gone@isp.example', contact_id=world.people['ann@isp.example'])}"
    assert client.get(other).status_code == 410
    assert client.post(other, data=ONE_CLICK).status_code == 410
    assert world.state("ann@isp.example") == "confirmed"


def test_an_event_holds_no_address(world: World, client: TestClient) -> None:
    client.post(link(world, "léa@bücher.example"), data=ONE_CLICK)
    (line,) = world.events()
    assert '"kind":"unsubscribe"' in line and "bücher" not in line and "xn--" not in line and "testclient" not in line


@pytest.mark.parametrize(("behind_proxy", "kept"), [(True, "2001:db8::7"), (False, None)])
def test_the_address_kept_as_evidence(sqlite_world: World, behind_proxy: bool, kept: str | None) -> None:
    settings = sqlite_world.settings.model_copy(update={"serve_behind_proxy": behind_proxy})
    with TestClient(create_app(settings)) as client:  # its own name, "testclient", is no address
        client.post(link(sqlite_world), data=ONE_CLICK, headers={"x-forwarded-for": "203.0.113.9, 2001:db8::7"})
    with read(sqlite_world.engine) as connection:
        assert connection.scalars(
            select(consent_events.c.ip).where(consent_events.c.action == "unsubscribed")
        ).all() == [kept]


@pytest.mark.parametrize(("address", "accept", "sentence"), [
    ("bert@isp.example", "fr", "Abmelden?"),  # the contact's locale wins
    ("léa@bücher.example", "es;q=0.9, fr;q=0.4", "¿Darse de baja?"),
    ("léa@bücher.example", "nl, pt", "Unsubscribe?"),
])  # fmt: skip
def test_languages(world: World, client: TestClient, address: str, accept: str, sentence: str) -> None:
    answer = client.get(link(world, address), headers={"accept-language": accept})
    assert sentence in answer.text


def test_all_lists_can_be_left_after_one(world: World, client: TestClient) -> None:
    client.post(link(world), data={"scope": "list"})
    assert "already" in client.get(link(world)).text
    client.post(link(world), data={"scope": "all"})
    assert ("unsubscribed", 0) in world.suppressed("ann@isp.example")
