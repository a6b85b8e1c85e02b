"""Outcomes that change after their lease ended, and everything that reads them afterwards."""

import pytest
from sqlalchemy import func, select

from mailer_lib.agent.ledger import Amended
from mailer_lib.agent.recalls import Recall, Step
from mailer_lib.database.engine import read
from mailer_lib.database.schema import rollups_hourly
from mailer_lib.dispatch.amendments import amend
from mailer_lib.dispatch.books import balance
from mailer_lib.dispatch.lease import LeaseLostError
from mailer_lib.dispatch.recalling import RecallBooks
from mailer_lib.dispatch.topup import already_sent
from mailer_lib.terms import Outcome
from tests.dispatch.ledgers import AT_MS, final, fresh, intents, leased, write_ledger
from tests.dispatch.world import World


def recall(ledger: str, row: int, queue_id: str | None = None) -> Recall:
    return Recall(Step.RECALLED, ledger, row, queue_id or f"q{row}", AT_MS + 1000, "the send was stopped")


def books_of(world: World, send_id: int) -> RecallBooks:
    return RecallBooks(world.engine, world.settings, send_id, "spring-sale#1", "agent:local-1")


def test_recalled_rows_are_cancelled_once_and_all_that_counts_agrees(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [4])
    lease = leased(world, send_id)
    lease = write_ledger(
        world,
        lease,
        [*intents(world, lease, range(4)), final(0), final(1), final(2, Outcome.REJECTED, code=550), final(3)],
    )
    told = [recall(lease.ledger_name, row) for row in (0, 2)] + [recall(lease.ledger_name, 3, "another")]
    for _ in range(2):
        assert books_of(world, send_id).book(told) == []
        books = balance(world.engine, world.settings, send_id)
        assert books.balanced
        assert (books[Outcome.INJECTED], books[Outcome.CANCELLED], books[Outcome.REJECTED]) == (2, 1, 1)
        assert books.recalled == 1  # a rejected row stands, and so does one under another queue id
        assert fresh(world, lease).counts == {Outcome.INJECTED: 2, Outcome.CANCELLED: 1, Outcome.REJECTED: 1}
        assert len(already_sent(world.engine, world.settings, send_id)) == 3
        with read(world.engine) as connection:
            counted = dict(
                connection.execute(
                    select(rollups_hourly.c.metric, func.sum(rollups_hourly.c.count)).group_by(rollups_hourly.c.metric)
                ).all()
            )
        assert {metric: int(count) for metric, count in counted.items()} == {
            "injected": 2,
            "cancelled": 1,
            "rejected": 1,
        }


def test_a_recall_waits_until_its_lease_has_ended(world: World) -> None:
    send_id = world.send()
    world.publish(send_id, [2])
    lease = leased(world, send_id)
    lease = write_ledger(world, lease, [*intents(world, lease, range(1)), final(0)], settle=False)
    told = [recall(lease.ledger_name, 0)]
    assert books_of(world, send_id).book(told) == told
    assert fresh(world, lease).counts == {Outcome.INJECTED: 1}
    with pytest.raises(LeaseLostError, match="hasn't ended"):
        amend(world.engine, world.settings, lease.id, lambda there: [Amended(*there[0])])
