"""The task of campaign_control: each action reaches the send, under the name of who triggered it."""

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log, sends
from mailer_lib.dispatch import decision, recall_send
from mailer_lib.dispatch.recall_send import Recalled
from mailer_lib.dispatch.sends import SendError
from mailer_lib.settings import Settings
from mailer_lib.terms import SendState
from tests.airflow_home import PROJECT
from tests.dispatch.world import World, make_world

SEND = "spring-sale#1"
Apply = Callable[..., str]


@pytest.fixture
def world(sqlite_engine: Engine, settings: Settings) -> World:
    made = make_world(sqlite_engine, settings)
    made.send(state=SendState.RUNNING)
    return made


@pytest.fixture
def apply(world: World, monkeypatch: pytest.MonkeyPatch) -> Apply:
    spec = importlib.util.spec_from_file_location("campaign_control", PROJECT / "dags" / "campaign_control.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "installation", lambda: (world.engine, world.settings))

    def call(**params: Any) -> str:
        given = {"send": SEND, "pace_per_s": None, "variant": None} | params
        run = SimpleNamespace(triggering_user_name="ann", run_id="manual__1")
        monkeypatch.setattr(module, "get_current_context", lambda: {"params": given, "dag_run": run})
        return str(module.apply_action.function())

    return call


def test_pause_resume_pace_and_stop_reach_the_send_with_who_did_it(world: World, apply: Apply) -> None:
    def stored() -> tuple[str, float | None]:
        with read(world.engine) as connection:
            row = connection.execute(select(sends.c.control, sends.c.pace_per_s)).one()
        return row.control, row.pace_per_s

    assert apply(action="pause") == f"{SEND}: pause, by ann"
    assert stored() == ("pause", None)
    apply(action="resume")
    apply(action="pace", pace_per_s=5)
    assert stored() == ("run", 5.0)
    apply(action="pace", pace_per_s=0)
    apply(action="stop")
    assert stored() == ("stop", None)
    with read(world.engine) as connection:
        assert set(connection.scalars(select(audit_log.c.actor).where(audit_log.c.object == f"send:{SEND}"))) == {"ann"}


@pytest.mark.parametrize(("action", "says"), [("pace", "needs pace_per_s"), ("decide", "needs variant")])
def test_an_action_says_what_it_lacks(apply: Apply, action: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        apply(action=action)


def test_decide_and_recall_are_handed_on(
    world: World, apply: Apply, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(decision, "decide", lambda engine, settings, *what: done.append(what))

    def recall(engine: Engine, settings: Settings, *what: str) -> list[Recalled]:
        done.append(what)
        return [Recalled("mta-1.0", 3), Recalled("mta-2.0", trouble="the server is fenced")]

    monkeypatch.setattr(recall_send, "recall_send", recall)
    apply(action="decide", variant="B")
    with caplog.at_level("INFO"):
        apply(action="recall")
    assert done == [(SEND, "B", "ann"), (SEND, "ann")]
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("mta-")] == [
        "mta-1.0: 3 messages taken back",
        "mta-2.0: the server is fenced",
    ]


def test_a_send_that_is_not_over_is_not_recalled(apply: Apply) -> None:
    with pytest.raises(SendError, match="is running: `mailfleet send stop"):
        apply(action="recall")
