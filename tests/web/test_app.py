"""What holds for every door: strangers learn nothing, garbage changes nothing, headers keep the token at home."""

import logging
import string
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from starlette.testclient import TestClient

from mailer_lib.database.engine import write
from mailer_lib.tokens import TokenKind
from tests.web.world import World

DOORS = ("/u/{}", "/k/{}", "/c/{}", "/o/{}.gif", "/v/{}", "/p/{}")
FUZZ = hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("door", DOORS)
def test_bad_tokens_all_look_the_same(sqlite_world: World, sqlite_client: TestClient, door: str) -> None:
    good = sqlite_world.token(TokenKind.UNSUBSCRIBE, "ann@isp.example")
    forged = good[:-1] + ("A" if good[-1] != "A" else "B")
    answers = [sqlite_client.get(door.format(token)) for token in ("x", good[:40], forged, good + "A", "ü" * 60)]
    if door != "/u/{}":
        answers.append(sqlite_client.get(door.format(good)))  # ours, but for something else
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1


@pytest.mark.parametrize("path", ["/u/x", "/healthz", "/nothing", "/o/x.gif"])
def test_headers_of_every_answer(sqlite_client: TestClient, path: str) -> None:
    headers = sqlite_client.get(path).headers
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-robots-tag"].startswith("noindex")
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "set-cookie" not in headers


def test_health(sqlite_client: TestClient) -> None:
    assert sqlite_client.get("/healthz").status_code == 200


def test_large_bodies_are_refused(sqlite_world: World, sqlite_client: TestClient) -> None:
    url = f"/u/{sqlite_world.token(TokenKind.UNSUBSCRIBE, 'ann@isp.example')}"
    body = b"List-Unsubscribe=One-Click&x=" + b"x" * 65_536

    def in_pieces():  # type: ignore[no-untyped-def]
        for start in range(0, len(body), 5_000):
            yield body[start : start + 5_000]

    assert sqlite_client.post(url, content=body).status_code == 413
    assert sqlite_client.post(url, content=in_pieces()).status_code == 413
    assert sqlite_world.state("ann@isp.example") == "confirmed"


def test_a_failure_of_ours_is_a_page_and_a_log_line_without_token(
    sqlite_world: World, sqlite_client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    token = sqlite_world.token(TokenKind.UNSUBSCRIBE, "ann@isp.example")
    with write(sqlite_world.engine) as connection:
        connection.execute(text("ALTER TABLE suppressions RENAME TO hidden"))
    with caplog.at_level(logging.DEBUG):
        answer = sqlite_client.post(f"/u/{token}", data={"List-Unsubscribe": "One-Click"})
    assert answer.status_code == 500 and "our fault" in answer.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mailfleet")]
    assert ours and not any(token in line or "isp.example" in line for line in ours)
    assert sqlite_world.state("ann@isp.example") == "confirmed"  # rolled back: nothing half done


@FUZZ
@given(
    door=st.sampled_from(DOORS), token=st.text(min_size=1, max_size=90), method=st.sampled_from(["GET", "POST", "HEAD"])
)
@example(door="/u/{}", token="0/", method="GET")
def test_any_path(sqlite_client: TestClient, door: str, token: str, method: str) -> None:
    path = door.format(quote(token.encode("utf-8", "surrogatepass"), safe=""))
    assert sqlite_client.request(method, path).status_code in (404, 405)


@FUZZ
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from(
        ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", ""]
    ),
)
def test_any_body(sqlite_world: World, sqlite_client: TestClient, body: bytes, kind: str) -> None:
    url = f"/u/{sqlite_world.token(TokenKind.UNSUBSCRIBE, 'ann@isp.example')}"
    answer = sqlite_client.post(url, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 400
    assert sqlite_world.state("ann@isp.example") == "confirmed"


@FUZZ
@given(
    value=st.text(
        alphabet=string.printable.replace("\n", "").replace("\r", "").replace("\x0b", "").replace("\x0c", ""),
        max_size=200,
    )
)
def test_any_headers(sqlite_world: World, sqlite_client: TestClient, value: str) -> None:
    url = f"/u/{sqlite_world.token(TokenKind.UNSUBSCRIBE, 'léa@bücher.example')}"
    headers = {"accept-language": value.strip(), "user-agent": value.strip()}
    assert sqlite_client.get(url, headers=headers).status_code == 200
