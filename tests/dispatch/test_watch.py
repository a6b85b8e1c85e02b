"""What is left, how fast it goes and when each mailbox provider is done, as people see it while a send runs."""

from collections.abc import Callable

import pytest
from sqlalchemy import insert

from mailer_lib.database.engine import write
from mailer_lib.database.schema import provider_limits
from mailer_lib.dispatch.slot_report import say
from mailer_lib.dispatch.slot_rules import SlotProgress, SlotState
from mailer_lib.dispatch.watch import ProviderLeft, glance
from mailer_lib.terms import Outcome
from tests.conftest import Ran
from tests.dispatch.ledgers import final, leased, write_ledger
from tests.dispatch.world import World


def begun(world: World, per_s: float) -> str:
    """40 rows, ten a provider, of which three of gmail are done; one slot says how fast it is."""
    send_id = world.send()
    world.publish(send_id, [40])
    lease = leased(world, send_id, through=40)
    write_ledger(world, lease, [final(0), final(4), final(8, Outcome.REJECTED)], settle=False)
    say(world.engine, send_id, world.slot(), SlotProgress("local-1", SlotState.SENDING, per_s=per_s))
    return f"{world.campaign}#1"


@pytest.mark.usefixtures("any_store")
def test_each_provider_has_its_own_end_at_the_rate_of_this_moment(world: World) -> None:
    ref = begun(world, per_s=8.5)
    with write(world.engine) as connection:
        connection.execute(
            insert(provider_limits).values(pool_id=world.pool_id, provider="yahoo", per_hour=1800)
        )  # half a message a second and server
    seen = glance(world.engine, world.settings, ref)
    assert (seen.left, seen.per_s) == (37, 8.5)
    assert {p.provider: (p.frozen, p.left) for p in seen.by_provider} == {
        "gmail": (10, 7), "outlook": (10, 10), "other": (10, 10), "yahoo": (10, 10),
    }  # fmt: skip
    assert seen.by_provider[0] == ProviderLeft("yahoo", 10, 10, 10.0, "limit of yahoo")
    assert seen.by_provider[1].eta_s == pytest.approx(27 / 7.5)
    assert {p.bound_by for p in seen.by_provider[1:]} == {"capacity"}


def test_while_nothing_moves_nobody_has_an_end(sqlite_world: World) -> None:
    seen = glance(sqlite_world.engine, sqlite_world.settings, begun(sqlite_world, per_s=0))
    assert seen.eta_s is None
    assert {(p.eta_s, p.bound_by) for p in seen.by_provider} == {(None, "")}
    assert sum(p.left for p in seen.by_provider) == 37


def test_send_status_tells_it_by_provider(sqlite_world: World, mailfleet: Callable[..., Ran]) -> None:
    shown = mailfleet("send", "status", begun(sqlite_world, per_s=8.5))
    assert shown.code == 0
    row = next(line for line in shown.stdout.splitlines() if "gmail" in line)
    cells = [cell.strip() for cell in row.strip("│┃ ").replace("┃", "│").split("│")]
    assert cells == ["gmail", "7", "10", "0:00:04", "capacity"]
