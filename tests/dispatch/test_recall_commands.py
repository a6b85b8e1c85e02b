"""``mailfleet send recall``: what it asks, refuses and says; what it does to a queue is in test_recalling.py."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log
from mailer_lib.dispatch import recall_send
from mailer_lib.dispatch.recall_send import Recalled
from mailer_lib.terms import SendState
from tests.conftest import Ran
from tests.dispatch.ledgers import final, intents, leased, write_ledger
from tests.dispatch.world import World

SEND = "spring-sale#1"


def asked(monkeypatch: pytest.MonkeyPatch, *found: Recalled) -> list[bool]:
    """Whether only what is due was asked for, each time that something was taken back."""
    calls: list[bool] = []

    def recall(*_: Any, due_only: bool = False) -> list[Recalled]:
        calls.append(due_only)
        return list(found)

    monkeypatch.setattr(recall_send, "recall_send", recall)
    return calls


def test_everything_is_taken_back_only_when_somebody_says_so(
    mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    mailfleet("init")
    calls = asked(monkeypatch, Recalled("mta-1.0", 3), Recalled("mta-2.0", 0))
    assert mailfleet("send", "recall", SEND).code == 1  # nobody is there to answer
    assert calls == []
    ran = mailfleet("send", "recall", SEND, "--yes")
    assert (ran.code, ran.stdout.splitlines()) == (
        0,
        ["mta-1.0: 3 messages taken back", "mta-2.0: 0 messages taken back"],
    )
    mailfleet("send", "recall", SEND, "--due")
    assert calls == [False, True]


def test_a_queue_that_could_not_be_looked_at_is_named_and_the_command_fails(
    mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    mailfleet("init")
    asked(monkeypatch, Recalled("mta-1.0", 3), Recalled("mta-2.0", trouble="the server is fenced"))
    ran = mailfleet("send", "recall", SEND, "--yes")
    assert (ran.code, "mta-2.0: the server is fenced" in ran.stdout) == (1, True)
    assert "not every queue could be looked at" in ran.stderr


def test_a_send_that_is_not_over_is_stopped_instead(sqlite_world: World, mailfleet: Callable[..., Ran]) -> None:
    sqlite_world.send(state=SendState.RUNNING)
    ran = mailfleet("send", "recall", SEND, "--yes")
    assert ran.code == 1
    assert f"{SEND} is running: `mailfleet send stop {SEND}`" in " ".join(ran.stderr.split())


def test_the_queue_of_a_relay_is_out_of_reach_and_that_is_said_for_each_slot(
    sqlite_world: World, mailfleet: Callable[..., Ran]
) -> None:
    world = sqlite_world
    send_id = world.send(state=SendState.RUNNING)
    world.publish(send_id, [2])
    lease = leased(world, send_id)
    write_ledger(world, lease, [*intents(world, lease, range(2)), *(final(row) for row in range(2))])
    with world.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE sends SET state = 'finished'")
    ran = mailfleet("send", "recall", SEND, "--yes")
    assert (ran.code, "local-1.0: the queue of a relay can't be reached from here" in ran.stdout) == (1, True)
    with read(world.engine) as connection:
        detail = connection.scalars(select(audit_log.c.detail).where(audit_log.c.action == "send.recall")).all()
    assert detail == [{"due_only": False, "messages": 0}]
