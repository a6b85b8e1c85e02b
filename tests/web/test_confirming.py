"""Double opt-in: a button, and evidence of who pressed it."""

from datetime import UTC, datetime

from sqlalchemy import select
from starlette.testclient import TestClient

from mailer_lib.contacts import consent
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import consent_events
from mailer_lib.terms import SuppressionReason
from mailer_lib.tokens import TokenKind
from tests.web.world import World

PAULA = "paula@isp.example"


def link(world: World, address: str = PAULA) -> str:
    return f"/k/{world.confirm_token(address)}"


def test_looking_confirms_nobody(world: World, client: TestClient) -> None:
    answer = client.get(link(world))
    assert answer.status_code == 200 and "<button" in answer.text and "p•••@isp.example" in answer.text
    assert client.head(link(world)).status_code == 200
    assert world.state(PAULA) == "pending"


def test_the_button_confirms_with_evidence(world: World, client: TestClient) -> None:
    answer = client.post(link(world), headers={"user-agent": "Firefox"})
    assert answer.status_code == 200 and "Fjord &amp; Fern News" in answer.text
    assert world.state(PAULA) == "confirmed"
    assert world.evidence(PAULA)[-1] == ("confirmed", "confirmation-link")
    with read(world.engine) as connection:
        source = connection.scalar(select(consent_events.c.source).where(consent_events.c.action == "confirmed"))
    assert source is not None and "Firefox" in source


def test_confirming_twice_is_confirming_once(world: World, client: TestClient) -> None:
    assert [client.post(link(world)).status_code for _ in range(2)] == [200, 200]
    assert [action for action, _ in world.evidence(PAULA)] == ["requested", "confirmed"]


def test_who_left_after_the_sign_up_stays_out(world: World, client: TestClient) -> None:
    client.post(f"/u/{world.token(TokenKind.UNSUBSCRIBE, PAULA)}", data={"List-Unsubscribe": "One-Click"})
    assert client.post(link(world)).status_code == 409
    assert world.state(PAULA) == "unsubscribed" and world.suppressed(PAULA)


def test_who_left_after_confirming_is_not_brought_back_by_the_old_link(world: World, client: TestClient) -> None:
    client.post(link(world))
    client.post(f"/u/{world.token(TokenKind.UNSUBSCRIBE, PAULA)}", data={"scope": "all"})
    assert client.post(link(world)).status_code == 409
    assert world.state(PAULA) == "unsubscribed"


def test_who_was_suppressed_by_an_operator_stays_out(world: World, client: TestClient) -> None:
    with write(world.engine) as connection:
        consent.suppress(
            connection,
            address_hash=world.hash_of(PAULA),
            reason=SuppressionReason.MANUAL,
            source="t",
            at=datetime.now(UTC),
        )
    assert client.post(link(world)).status_code == 409
    assert world.state(PAULA) == "pending" and world.suppressed(PAULA)


def test_somebody_who_never_asked_cannot_confirm(world: World, client: TestClient) -> None:
    assert client.post(link(world, "stranger@isp.example")).status_code == 410


def test_an_unsubscribe_link_confirms_nothing(world: World, client: TestClient) -> None:
    token = world.token(TokenKind.UNSUBSCRIBE, PAULA)
    assert client.post(f"/k/{token}").status_code == 404
    assert world.state(PAULA) == "pending"
