"""The DAG fleet_scale: who is asked, what an answer does, and that a sick server is told of once."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mailer_lib.dispatch import scale_book
from mailer_lib.fleet.notice import NoticeError, send_notice
from mailer_lib.terms import ScaleState
from tests.dispatch.test_backlog import late_world, states
from tests.dispatch.world import World, make_world


@pytest.fixture
def world(sqlite_engine, settings, monkeypatch) -> World:
    """A late send, and the tasks see its database."""
    made = make_world(sqlite_engine, settings)
    late_world(made)
    from mailfleet_airflow import scaling, sick_server

    for module in (scaling, sick_server):
        monkeypatch.setattr(module, "installation", lambda: (made.engine, made.settings))
        monkeypatch.setattr(module, "get_current_context", lambda: {"dag_run": Run()})
    return made


class Run:
    run_id = "manual__1"


def looked() -> list[dict]:
    from mailfleet_airflow.scaling import look_at_pools

    return look_at_pools.function()


def applied(decision: dict) -> str:
    from mailfleet_airflow.scaling import apply_decision

    return apply_decision.function(decision)


class Answered:
    """What Airflow hands to the operator when somebody answered."""

    def __init__(self, monkeypatch, option: str) -> None:
        from airflow.providers.standard.operators.hitl import HITLOperator

        answer = {"chosen_options": [option], "responded_by_user": {"name": "ann"}}
        monkeypatch.setattr(HITLOperator, "execute_complete", lambda self, context, event: answer)

    def of(self, decision: dict) -> dict:
        from mailfleet_airflow.scaling import ApproveScalingOperator

        return ApproveScalingOperator(task_id="approval", decision=decision).execute_complete({}, {})


def test_an_approval_makes_the_standby_active(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (decision,) = looked()
    assert decision["title"] == "activate local-2 in the sending pool main"
    assert applied(decision) == "proposed"  # nobody has allowed it
    assert states(world) == ["active", "standby"]
    answered = Answered(monkeypatch, "Approve").of(decision)
    assert answered["state"] == ScaleState.APPROVED
    assert applied(answered).startswith("applied: local-2 is active")
    assert states(world) == ["active", "active"]
    assert looked() == []


def test_a_rejection_changes_nothing_and_is_stored_with_its_name(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (decision,) = looked()
    answered = Answered(monkeypatch, "Reject").of(decision)
    assert applied(answered) == "rejected"
    assert states(world) == ["active", "standby"]
    with world.engine.connect() as connection:
        assert scale_book.get(connection, decision["id"]).decided_by == "ann"


def test_the_question_says_what_and_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.operators.hitl import HITLOperator
    from mailfleet_airflow.scaling import ApproveScalingOperator

    monkeypatch.setattr(HITLOperator, "execute", lambda self, context: (self.subject, self.body))
    (decision,) = looked()
    subject, body = ApproveScalingOperator(task_id="approval", decision=decision).execute({})
    assert subject == "Activate local-2 in the sending pool main?"
    assert "spring-sale#1 would be done at" in body


def test_what_is_allowed_already_is_not_asked(world: World) -> None:
    from mailfleet_airflow.scaling import ApproveScalingOperator

    (decision,) = looked()
    scale_book.approve(world.engine, decision["id"], by="bob")
    found = ApproveScalingOperator(task_id="approval", decision=decision).execute({})
    assert found["state"] == ScaleState.APPROVED


def test_an_hour_without_an_answer_does_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.exceptions import HITLTimeoutError
    from airflow.providers.standard.operators.hitl import HITLOperator
    from mailfleet_airflow.scaling import ApproveScalingOperator

    def over(self, context, event):
        raise HITLTimeoutError("over")

    monkeypatch.setattr(HITLOperator, "execute_complete", over)
    (decision,) = looked()
    found = ApproveScalingOperator(task_id="approval", decision=decision).execute_complete({}, {})
    assert applied(found) == "proposed"


# --- telling ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat() -> Iterator[tuple[str, list[str], list[int]]]:
    """An address that takes notices: (its URL, what came, statuses to answer before 200)."""
    heard: list[str] = []
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook/secret", heard, statuses
    server.shutdown()
    server.server_close()


def test_a_server_that_turns_sick_is_told_of_once(world: World, chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from mailfleet_airflow.sick_server import look_at_servers

    from mailer_lib.fleet import health_book
    from mailer_lib.fleet.health import Health
    from mailer_lib.terms import HealthVerdict

    url, heard, _ = chat
    monkeypatch.setenv("NOTIFY", url)
    world.settings = world.settings.model_copy(update={"notify_url_ref": "env:NOTIFY"})
    sick = Health(HealthVerdict.SICK, ("Exim doesn't run",))
    monkeypatch.setattr(health_book, "_ask", lambda *arguments: sick)
    assert look_at_servers.function() == {"local-1": "sick", "local-2": "sick"}
    look_at_servers.function()
    assert heard == [f"Dispatch server local-{number} is sick: Exim doesn't run" for number in (1, 2)]


def test_a_notice_that_is_not_taken_is_tried_again_and_said_without_the_address(
    settings, chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, heard, statuses = chat
    monkeypatch.setenv("NOTIFY", url)
    told = settings.model_copy(update={"notify_url_ref": "env:NOTIFY"})
    statuses.extend([503])
    waits: list[float] = []
    assert send_notice(told, "hello", sleep=waits.append)
    assert (heard, waits) == (["hello", "hello"], [2.0])
    statuses.extend([500] * 3)
    with pytest.raises(NoticeError, match="it answers 500") as caught:
        send_notice(told, "again", sleep=waits.append)
    assert "secret" not in str(caught.value)
    assert not send_notice(settings, "nobody")


def test_a_schedule_that_is_no_number_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    from mailfleet_airflow.policy import every_minutes

    for text, minutes in (("15", 15), ("", 5), ("soon", 5), ("0", 5)):
        monkeypatch.setenv("MAILFLEET_SCALE_EVERY_MIN", text)
        assert every_minutes("MAILFLEET_SCALE_EVERY_MIN", 5) == timedelta(minutes=minutes)
