"""The page of sends: closed without a log-in, and harmless whatever a campaign is called."""

from datetime import UTC, datetime

import pytest


def test_nobody_reads_it_without_a_log_in():
    from airflow.api_fastapi.app import create_auth_manager
    from fastapi.testclient import TestClient
    from mailfleet_airflow.sends_view import sends_app

    create_auth_manager()
    client = TestClient(sends_app())
    assert client.get("/sends").status_code == 401
    assert client.get("/sends", headers={"Authorization": "Bearer nonsense"}).status_code in (401, 403)
    assert client.get("/trigger?campaign=spring-sale").status_code == 401
    assert client.get("/docs").status_code in (401, 404)
    assert client.get("/openapi.json").status_code in (401, 404)


def test_every_route_of_the_application_is_guarded():
    from mailfleet_airflow.sends_view import sends_app

    for route in sends_app().routes:
        assert route.dependencies, route.path


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x>'])
def test_values_are_escaped(text):
    from mailfleet_airflow.sends_view import page

    from mailer_lib.dispatch.sends import SendRecord
    from mailer_lib.terms import Control, SendMode, SendState

    fields = dict.fromkeys(SendRecord.__dataclass_fields__)
    send = SendRecord(
        **fields
        | {"campaign": text, "edition": "1", "reason": text, "launched_by": text}
        | {"mode": SendMode.SEND, "state": SendState.FINISHED, "control": Control.RUN}
        | {"first_injected_at": datetime(2026, 11, 24, 9, 0, tzinfo=UTC)}
    )
    html = page([send])
    assert text not in html
    assert "2026-11-24 09:00:00 UTC" in html


def test_the_plugin_is_found_by_airflow_and_only_once():
    from airflow import plugins_manager

    plugins, errors = plugins_manager._get_plugins()
    ours = [plugin for plugin in plugins if plugin.name == "mailfleet"]
    assert not [path for path in errors if "mailfleet" in path], errors
    assert len(ours) == 1
    assert [view["name"] for view in ours[0].external_views] == ["Sends"]


def test_the_trigger_page_is_filled_in_and_escapes_what_its_url_says():
    from mailfleet_airflow.trigger_page import trigger_page

    from mailer_lib.terms import SendMode

    html = trigger_page("spring-sale", '"><script>alert(1)</script>', SendMode.SEND, approval=False)
    assert 'name="campaign" required value="spring-sale"' in html
    assert '<option value="send" selected>' in html
    assert 'name="approval">' in html
    assert "<script>alert" not in html
    assert 'name="approval" checked>' in trigger_page("a", "1", SendMode.SEND, approval=True)
