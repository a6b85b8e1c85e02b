"""The message in the browser, and the approvers' preview: the frozen one, caged."""

import re
import shutil

from starlette.testclient import TestClient

from mailer_lib import tokens
from mailer_lib.message.preview_link import preview_link
from mailer_lib.tokens import TokenKind
from tests.web.world import World, freeze

ANN = "ann@isp.example"


def test_the_recipients_own_message(world: World, client: TestClient) -> None:
    bundle = freeze(world)
    answer = client.get(f"/v/{world.token(TokenKind.VIEW, ANN)}")
    variant = bundle.variants[world.people[ANN] % 2].name
    assert answer.status_code == 200 and f"This is {variant}" in answer.text
    assert "&lt;b&gt;Ann" in answer.text  # data is escaped
    token = re.search(r"/u/([\w=-]{60})", answer.text)
    assert token is not None  # with their own way out
    assert tokens.verify(world.settings.tokens(), token[1], TokenKind.UNSUBSCRIBE).message_key == world.key_of(ANN)
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy and "allow-scripts" not in policy and "allow-same-origin" not in policy


def test_an_erased_contacts_message_is_found_by_its_key(world: World, client: TestClient) -> None:
    freeze(world)
    assert client.get(f"/v/{world.token(TokenKind.VIEW, ANN, contact_id=4711)}").status_code == 200


def test_an_expired_snapshot_is_a_polite_page(world: World, client: TestClient) -> None:
    freeze(world)
    shutil.rmtree(world.settings.storage / "snapshots")
    answer = client.get(f"/v/{world.token(TokenKind.VIEW, ANN)}")
    assert answer.status_code == 410 and "no longer here" in answer.text


def test_a_send_without_a_frozen_message(world: World, client: TestClient) -> None:
    assert client.get(f"/v/{world.token(TokenKind.VIEW, ANN)}").status_code == 410
    assert client.get(path_of(preview_link(world.settings, world.send_id))).status_code == 410


def test_the_preview_shows_subject_variants_and_text(world: World, client: TestClient) -> None:
    freeze(world)
    path = path_of(preview_link(world.settings, world.send_id))
    page = client.get(path, params={"variant": 1})
    assert "B: spring for" in page.text and "Variant A" in page.text and "this is B" in page.text
    frame = client.get(path, params={"variant": 1, "part": "html"})
    assert "This is B" in frame.text and "sandbox" in frame.headers["content-security-policy"]


def test_links_in_a_preview_act_for_nobody(world: World, client: TestClient) -> None:
    freeze(world)
    frame = client.get(path_of(preview_link(world.settings, world.send_id)), params={"part": "html"})
    token = re.search(r"/u/([\w=-]{60})", frame.text)
    assert token is not None
    assert client.post(f"/u/{token[1]}", data={"List-Unsubscribe": "One-Click"}).status_code == 404
    assert world.events() == []


def test_odd_variants_fall_back(world: World, client: TestClient) -> None:
    freeze(world)
    path = path_of(preview_link(world.settings, world.send_id))
    for odd in ("7", "-1", "x", "9" * 400, "²"):
        assert client.get(path, params={"variant": odd}).status_code == 200


def test_a_recipients_token_opens_no_preview(world: World, client: TestClient) -> None:
    freeze(world)
    assert client.get(f"/p/{world.token(TokenKind.VIEW, ANN)}").status_code == 404


def path_of(url: str) -> str:
    return url.removeprefix("http://127.0.0.1:8025")
