"""Deciding on a page: who may trigger campaign_control may, who may only read can't, whoever is logged in is named."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import audit_log, sends
from mailer_lib.settings import Settings
from mailer_lib.terms import SendState
from tests.dispatch.real import freeze
from tests.dispatch.world import World, make_world

SEND = "spring-sale#1"


@pytest.fixture
def world(sqlite_engine: Engine, settings: Settings) -> World:
    """A send whose test slice is through."""
    world = make_world(sqlite_engine, settings)
    send_id = world.send(state=SendState.JUDGING)
    world.publish(send_id, [20], slices=[4])
    freeze(world, send_id)
    return world


@pytest.fixture
def browser(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    """A browser in which somebody of that role is logged in."""
    from airflow.models.dag import DagModel

    monkeypatch.setattr(DagModel, "get_team_name", staticmethod(lambda dag_id: None))
    from airflow.api_fastapi.app import create_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient
    from mailfleet_airflow.installation import installation
    from mailfleet_airflow.sends_view import sends_app

    installation.cache_clear()
    create_auth_manager()
    app = sends_app()

    def logged_in(name: str, role: str) -> TestClient:
        app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username=name, role=role)
        return TestClient(app)

    yield logged_in
    installation.cache_clear()


def decided(world: World) -> tuple[int | None, str | None]:
    with read(world.engine) as connection:
        row = connection.execute(select(sends.c.decided_variant, sends.c.decided_by)).one()
    return row.decided_variant, row.decided_by


def test_nobody_decides_or_reads_without_a_log_in(world: World) -> None:
    from airflow.api_fastapi.app import create_auth_manager
    from fastapi.testclient import TestClient
    from mailfleet_airflow.sends_view import sends_app

    create_auth_manager()
    client = TestClient(sends_app())
    assert client.get("/decide", params={"send": SEND}).status_code == 401
    assert client.post("/decide", json={"send": SEND, "variant": "A"}).status_code == 401
    assert decided(world) == (None, None)


def test_who_may_only_read_sees_the_question_and_cannot_answer(world: World, browser: Any) -> None:
    vera = browser("vera", "viewer")
    page = vera.get("/decide", params={"send": SEND})
    assert page.status_code == 200
    assert "which variant does the rest get?" in page.text
    assert '<button value="A">' in page.text and '<button value="B">' in page.text
    assert vera.post("/decide", json={"send": SEND, "variant": "B"}).status_code == 403
    assert decided(world) == (None, None)


def test_who_may_trigger_the_control_decides_once_and_is_named(world: World, browser: Any) -> None:
    olaf = browser("olaf", "user")
    answer = olaf.post("/decide", json={"send": SEND, "variant": "B"})
    assert (answer.status_code, answer.json()["said"]) == (200, f"{SEND}: the rest gets variant B, decided by olaf")
    assert decided(world) == (1, "olaf")
    with read(world.engine) as connection:
        assert connection.scalar(select(audit_log.c.actor).where(audit_log.c.action == "send.decided")) == "olaf"
    again = olaf.post("/decide", json={"send": SEND, "variant": "A"})
    assert again.status_code == 409
    assert "a decision stands" in again.json()["detail"]
    assert "<button" not in olaf.get("/decide", params={"send": SEND}).text


def test_a_page_of_another_site_cannot_decide_with_the_readers_session(world: World, browser: Any) -> None:
    olaf = browser("olaf", "user")
    for site in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site}
        assert olaf.post("/decide", json={"send": SEND, "variant": "B"}, headers=headers).status_code == 403
    assert olaf.post("/decide", data={"send": SEND, "variant": "B"}).status_code == 422  # no plain form
    assert decided(world) == (None, None)


def test_what_cannot_be_decided_is_refused_with_a_sentence(world: World, browser: Any) -> None:
    olaf = browser("olaf", "user")
    assert "there is none called 'C'" in olaf.post("/decide", json={"send": SEND, "variant": "C"}).json()["detail"]
    assert olaf.get("/decide", params={"send": "nothing#1"}).status_code == 404
    with write(world.engine) as connection:
        connection.execute(update(sends).values(state=SendState.STOPPED))
    assert olaf.post("/decide", json={"send": SEND, "variant": "B"}).status_code == 409


def test_the_page_of_sends_leads_to_the_question(world: World, browser: Any) -> None:
    assert 'href="decide?send=spring-sale%231"' in browser("vera", "viewer").get("/sends").text
