"""What a decision is made on: counts by variant, and how sure they are."""

import json
from itertools import product

import pytest
from sqlalchemy import select

from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import snapshots
from mailer_lib.dispatch.figures import VariantFigures, certainty, difference, figures_of, figures_text, wilson
from mailer_lib.dispatch.sends import current_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome
from tests.dispatch.ledgers import final, leased, write_ledger
from tests.dispatch.test_decision import sliced
from tests.dispatch.world import World


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(15, 148, 0.0624, 0.1605), (81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_is_that_of_newcombe_s_table_1(hits: int, of: int, low: float, high: float) -> None:
    assert wilson(hits, of) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_of_nobody_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [((56, 48), (70, 80), 0.0524, 0.3339), ((9, 3), (10, 10), 0.1705, 0.8090), ((10, 0), (10, 20), 0.6791, 1.0)],
)
def test_the_difference_is_that_of_newcombe_s_table_2(
    hits: tuple[int, int], of: tuple[int, int], low: float, high: float
) -> None:
    assert difference(hits, of) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@pytest.mark.parametrize(
    ("clicks", "says"),
    [
        ((0, 0), "say nothing"),
        ((30, 20), "may well be chance"),
        ((60, 20), "A leads B in clicks by +2.3 to +5.8 points"),
    ],
)
def test_a_lead_is_called_chance_until_it_is_none(clicks: tuple[int, int], says: str) -> None:
    variants = tuple(
        VariantFigures(name=name, weight=1, people=1000, injected=1000, clicked=clicked)
        for name, clicked in zip("AB", clicks, strict=True)
    )
    assert says in certainty(variants)
    assert says in certainty(variants[::-1])


def test_each_person_counts_once_as_a_person_and_only_in_the_slice(world: World) -> None:
    send_id = sliced(world, [12], [8])
    lease = leased(world, send_id, 4)
    with read(world.engine) as connection:
        path = connection.scalar(select(snapshots.c.path).where(snapshots.c.send_id == send_id))
    columns = load_columns(store(world.settings) / str(path) / "shard=0000/part-0.parquet")
    folder = world.settings.storage / "events" / "raw" / now().date().isoformat()
    folder.mkdir(parents=True)
    noted = [(0, "open", "person"), (0, "view", "person"), (0, "click", "person"), (0, "click", "unknown")]
    noted += [(2, "open", "proxy"), (2, "click", "bot"), (1, "unsubscribe", "bot"), (9, "click", "person")]
    lines = [
        {"t": 1.5, "kind": kind, "send_id": send, "message_key": columns.message_key[row].hex(), "contact_id": 1}
        | {"agent": agent}
        for (row, kind, agent), send in product(noted, (send_id, send_id + 1))
    ]
    (folder / "1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    (folder / "2.jsonl").write_text("")
    outcomes = [final(0), final(1), final(2), final(3, Outcome.REJECTED)]
    write_ledger(world, lease, outcomes)
    found = figures_of(world.engine, world.settings, current_send(world.engine, send_id))
    assert found.rest == 4
    assert found.variants == (
        VariantFigures("A", 1, people=4, injected=2, opened=1, clicked=1),
        VariantFigures("B", 1, people=4, injected=1, rejected=1, left=1),
    )
    assert [one.waiting for one in found.variants] == [2, 2]
    text = "\n".join(figures_text(found))
    assert "8 people are the test slice; 4 are the rest." in text
    assert "| A | 4 | 2 | 0 | 0 | 2 | 1 (50.0 %: 9.5–90.5) |" in text
