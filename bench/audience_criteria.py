"""How long a count of criteria takes: a list, two attributes and a rule on behaviour, over ten events a contact.

    python -m bench.audience_criteria [PEOPLE]          by itself, on a private MariaDB; 1,000,000 by default

No bar: time and plan are what is asked. The parts are told apart: reading the events (DuckDB), staging the ids,
and the statement; first without, then with indexes on the attributes.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
from sqlalchemy import Connection, Engine, text

from bench.audience_people import fill
from bench.figures import Figures
from bench.private_mariadb import BUFFER_POOL_MB, private_mariadb
from mailer_lib.audience import behaviour_store, catalogue, counts, sampling
from mailer_lib.audience.behaviour import Behaviour, BehaviourKind
from mailer_lib.audience.behaviour_sets import StoredPeople, staged
from mailer_lib.audience.explain import explain
from mailer_lib.audience.rules import behaviours, parse
from mailer_lib.contacts import attributes
from mailer_lib.database import bulk_stage
from mailer_lib.database.engine import now, open_engine, read, write
from mailer_lib.settings import Settings

DAYS = 100
EVENTS_A_PERSON = 10
RAW_EVENTS = 500_000
REPEATS = 3
TREE = {
    "combinator": "and",
    "rules": [
        {"field": "list", "operator": "=", "value": "newsletter"},
        {"field": "attribute.tier", "operator": "=", "value": "gold"},
        {"field": "attribute.points", "operator": ">=", "value": 9000},
        {"field": "behaviour.opened", "operator": ">=", "value": {"times": 8, "withinDays": 90}},
    ],
}

# A derived file a day, as behaviour_store writes them: most opens are of people, one of five of a machine.
_EVENTS = """
COPY (
    SELECT 1 + hash(seq * {days} + {day}) % {people} AS contact_id, 'spring-sale' AS campaign, '1' AS edition,
           CASE WHEN seq % 10 < 8 THEN 'opened' ELSE 'clicked' END AS kind,
           CAST(TIMESTAMP '{date}' + to_seconds(seq % 86400) AS TIMESTAMP_MS) AS happened_at, seq % 5 = 0 AS machine
    FROM range({events}) AS numbers(seq) ORDER BY contact_id, happened_at
) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 131072)
"""
_RAW = """
COPY (
    SELECT epoch(TIMESTAMP '{date}') + seq % 86400 AS t, 'open' AS kind, 1 AS send_id, md5(seq::VARCHAR) AS message_key,
           1 + hash(seq) % {people} AS contact_id, 'person' AS agent
    FROM range({events}) AS numbers(seq)
) TO '{path}' (FORMAT json)
"""


def run(figures: Figures, url: str, people: int) -> None:
    engine = open_engine(url)
    with tempfile.TemporaryDirectory(prefix="mf-bench-") as home:
        settings = Settings(home=Path(home), database_url=url)
        fill(engine, people)
        figures.note("criteria_events", make_events(settings, people), "events in derived files")
        refresh(figures, engine, settings, people)
        measure(figures, engine, settings, "plain")
        for key in ("tier", "points"):
            figures.note(f"criteria_index_{key}", took(lambda k=key: attributes.index(engine, k, actor="bench")), "s")  # type: ignore[misc]
        with write(engine) as connection:
            connection.execute(text("ANALYZE TABLE contacts")).all()
        measure(figures, engine, settings, "indexed")
    engine.dispose()


def make_events(settings: Settings, people: int) -> int:
    """Ten events a person over a hundred days until yesterday."""
    root, events = behaviour_store.root_of(settings) / "events", people * EVENTS_A_PERSON // DAYS
    for day in range(DAYS):
        date = (datetime.now(UTC) - timedelta(DAYS - day)).date()
        path = root / f"day={date}" / "events.parquet"
        path.parent.mkdir(parents=True)
        duckdb.sql(_EVENTS.format(days=DAYS, day=day, people=people, date=date, events=events, path=path))
    return events * DAYS


def refresh(figures: Figures, engine: Engine, settings: Settings, people: int) -> None:
    """One day of raw events, of a send that exists."""
    date = "2020-01-01"
    path = settings.storage / "events" / "raw" / date / "1.jsonl"
    path.parent.mkdir(parents=True)
    duckdb.sql(_RAW.format(people=people, date=date, events=RAW_EVENTS, path=path))
    with write(engine) as connection:
        for statement in (
            "INSERT INTO sending_pools (id, name, created_at) VALUES (1, 'main', NOW())",
            "INSERT INTO campaigns (id, name, definition, list_id, pool_id, created_at, updated_at, updated_by) "
            "VALUES (1, 'spring-sale', '{}', 1, 1, NOW(), NOW(), 'bench')",
            "INSERT INTO sends (id, campaign_id, edition, mode, state, created_at) "
            "VALUES (1, 1, '1', 'send', 'finished', NOW())",
        ):
            connection.execute(text(statement))
    seconds = took(lambda: behaviour_store.refresh(engine, settings))
    figures.note("behaviour_refresh", RAW_EVENTS / seconds, "raw events/s")


def measure(figures: Figures, engine: Engine, settings: Settings, name: str) -> None:
    with read(engine) as connection:
        known, at = catalogue.load(connection), now()
        group = parse(TREE, known, now=at)
        (asked,) = behaviours(group)
        found = 0

        def read_events() -> None:
            nonlocal found
            found = sum(map(len, StoredPeople(settings).ids(asked)))

        def stage() -> None:
            with staged(connection, [asked], StoredPeople(settings)):
                pass

        def count() -> None:
            nonlocal counted
            counted = counts.count(connection, settings, TREE, known, known.lists["newsletter"], now=at)

        counted = counts.Counts(0, 0, 0, {})
        if name == "plain":
            figures.note("criteria_events_read", median(read_events), f"s, {found:,} people")
            figures.note("criteria_events_read_and_staged", median(stage), "s")
            everybody = Behaviour(BehaviourKind.OPENED, at)
            figures.note("criteria_staging", _staging_rate(connection, settings, everybody), "ids/s, MariaDB included")
        figures.note(f"criteria_count_{name}", median(count), f"s, {counted.matching:,} match")
        with sampling.picking(connection, settings, TREE, known, now=at) as picked:
            plan = explain(connection, group, picked)
    for line in (*plan.plan, *(f"warning: {warning}" for warning in plan.warnings)):
        print(f"plan {name}: {line}", flush=True)


def _staging_rate(connection: Connection, settings: Settings, everybody: Behaviour) -> float:
    batches = list(StoredPeople(settings).ids(everybody))
    bulk_stage.create(connection, everybody.table)
    seconds = took(lambda: [bulk_stage.fill(connection, everybody.table, ids) for ids in batches])
    bulk_stage.drop(connection, everybody.table)
    return sum(map(len, batches)) / seconds


def median(work: Callable[[], object]) -> float:
    return statistics.median(took(work) for _ in range(REPEATS))


def took(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    people = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    figures = Figures()
    with private_mariadb(BUFFER_POOL_MB * max(1, people // 1_000_000)) as server:
        run(figures, server.database("criteria"), people)
    return figures.exit_status()


if __name__ == "__main__":
    sys.exit(main())
