"""What a frozen audience looks like: for each column of its shards how many lack it, and how the values spread.

One scan groups by all columns at once (GROUPING SETS), because opening 1,500 files costs as much as reading three
columns of them. A column that has another value for almost everybody would make that table huge: it is known by the
first shards, and gets a scan of its own (docs/decisions/0308).
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import duckdb

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.duck import over_files
from mailer_lib.audience.plan import PLAN_FILE, SnapshotError, load_plan
from mailer_lib.audience.published import PublishedSnapshot
from mailer_lib.shard.recipient import ATTRIBUTE_PREFIX
from mailer_lib.shard.store import at_hand
from mailer_lib.terms import AttributeType

PERCENTS = (5, 25, 50, 75, 95)
MAX_TOP = 20
_COLUMNS_A_SCAN = 30  # grouping() is a bitmask
_SAMPLE_FILES = 16
_MANY = 10_000  # different values in these, which have some 30,000 rows


class ColumnKind(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    TEXT_LIST = "text-list"


_KINDS: Mapping[AttributeType, ColumnKind] = {
    AttributeType.TEXT: ColumnKind.TEXT,
    AttributeType.ENUM: ColumnKind.TEXT,
    AttributeType.NUMBER: ColumnKind.NUMBER,
    AttributeType.BOOLEAN: ColumnKind.BOOLEAN,
    AttributeType.DATE: ColumnKind.DATE,
    AttributeType.TEXT_LIST: ColumnKind.TEXT_LIST,
}
_ALWAYS = ("provider", "domain", "locale", "timezone", "variant")


@dataclass(frozen=True)
class Spread:
    """Of numbers. ``percentiles``: by percent, the smallest value that so many have at most."""

    smallest: float
    largest: float
    percentiles: Mapping[int, float]


@dataclass(frozen=True)
class Column:
    """``values``: how many people have which, the most frequent first, at most 20; of dates every month, in order; of
    lists the items, each counted for everybody who has it. None for numbers that differ for almost everybody.
    """

    name: str
    kind: ColumnKind
    missing: int  # people without a value, or with an empty list
    different: int  # values; of such numbers as above an estimate, within some percent
    values: tuple[tuple[str, int], ...]
    spread: Spread | None = None


@dataclass(frozen=True)
class Profile:
    name: str  # campaign#edition
    phase: int
    people: int  # without the blanked
    blanked: int  # erased, or expired: nothing is known of them but provider and variant
    columns: tuple[Column, ...]


def profile(snapshot: PublishedSnapshot) -> Profile:
    """Of one phase.

    Raises:
        SnapshotError: its files can't be read.
        StoreError: the store can't be reached.
    """
    manifest = manifests.load(snapshot.folder)
    attributes = load_plan(snapshot.folder / PLAN_FILE).inputs.attributes
    kinds = dict.fromkeys(_ALWAYS, ColumnKind.TEXT)
    kinds |= {f"{ATTRIBUTE_PREFIX}{key}": _KINDS[type_] for key, type_ in sorted(attributes.items())}
    names = [entry.path for entry in manifest.shards]
    rows = sum(entry.rows for entry in manifest.shards)
    if not names:
        return Profile(snapshot.send, snapshot.phase, 0, 0, tuple(Column(n, k, 0, 0, ()) for n, k in kinds.items()))
    try:
        with over_files() as duck, tempfile.TemporaryDirectory(prefix="mailfleet-profiled-") as work:
            folder = at_hand(snapshot.folder, names, Path(work))
            files = [str(folder / name) for name in names]
            duck.execute("SET VARIABLE files = $files", {"files": files})
            scan = _Scan(duck, files[:_SAMPLE_FILES], kinds, blanked=bool(manifest.amendments))
            people = scan.people() if manifest.amendments else rows
            found = {column.name: column for column in scan.columns(people)}
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        raise SnapshotError(f"a file of {snapshot.folder} can't be read: {error}") from None
    return Profile(snapshot.send, snapshot.phase, people, rows - people, tuple(found[name] for name in kinds))


class _Scan:
    """One snapshot's shards; ``blanked``: some of their rows may be, and don't count."""

    def __init__(
        self, duck: duckdb.DuckDBPyConnection, sample: list[str], kinds: Mapping[str, ColumnKind], *, blanked: bool
    ) -> None:
        self._duck = duck
        self._sample = sample
        self._kinds = kinds
        where = " WHERE domain <> ''" if blanked else ""
        self._source = f"read_parquet(getvariable('files'), hive_partitioning = false){where}"

    def people(self) -> int:
        return int(self._one(f"SELECT count(*) FROM {self._source}")[0])  # noqa: S608

    def columns(self, people: int) -> Iterator[Column]:
        many = set(self._with_many_values())
        numbers = [name for name in many if self._kinds[name] == ColumnKind.NUMBER]
        few = [name for name in self._kinds if name not in many]
        alone = [[name] for name in sorted(many - set(numbers))]
        if numbers:
            yield from self._numbers(people, numbers)
        for group in (*(few[n : n + _COLUMNS_A_SCAN] for n in range(0, len(few), _COLUMNS_A_SCAN)), *alone):
            yield from self._grouped(people, group)

    def _with_many_values(self) -> Iterator[str]:
        names = list(self._kinds)
        different = ", ".join(f"count(DISTINCT {_quoted(name)})" for name in names)
        query = f"SELECT {different} FROM read_parquet($sample, hive_partitioning = false)"  # noqa: S608
        found = self._one(query, sample=self._sample)
        yield from (name for name, values in zip(names, found, strict=True) if name not in _ALWAYS and values > _MANY)

    def _grouped(self, people: int, names: Sequence[str]) -> Iterator[Column]:
        """Columns with few values, from one table of how many people have which."""
        columns = [_quoted(name) for name in names]
        self._duck.execute(
            f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {', '.join(columns)}, "  # noqa: S608
            f"grouping({', '.join(columns)}) AS other, count(*) AS n FROM {self._source} "
            f"GROUP BY GROUPING SETS ({', '.join(f'({column})' for column in columns)})"
        )
        everything = (1 << len(names)) - 1
        for place, name in enumerate(names):
            mine = everything - (1 << (len(names) - 1 - place))  # grouping(): the first column is the highest bit
            counted = f"(SELECT {columns[place]} AS value, n FROM counted WHERE other = {mine})"  # noqa: S608
            yield self._column(name, counted, people)

    def _column(self, name: str, counted: str, people: int) -> Column:
        kind = self._kinds[name]
        if kind == ColumnKind.TEXT_LIST:
            missing = self._one(f"SELECT coalesce(sum(n), 0) FROM {counted} WHERE coalesce(len(value), 0) = 0")[0]  # noqa: S608
            counted = f"(SELECT value, sum(n) AS n FROM (SELECT unnest(value) AS value, n FROM {counted}) GROUP BY 1)"  # noqa: S608
            different = self._one(f"SELECT count(*) FROM {counted}")[0]  # noqa: S608
        else:
            found = f"SELECT count(value), people - coalesce(sum(n) FILTER (value IS NOT NULL), 0) FROM {counted}"  # noqa: S608
            different, missing = self._one(found.replace("people", str(people)))
        if kind == ColumnKind.DATE:
            counted = f"(SELECT substr(value, 1, 7) AS value, sum(n) AS n FROM {counted} GROUP BY 1)"  # noqa: S608
        order = "value" if kind == ColumnKind.DATE else f"n DESC, value LIMIT {MAX_TOP}"
        rows = self._duck.execute(
            f"SELECT CAST(value AS VARCHAR), n FROM {counted} WHERE value IS NOT NULL ORDER BY {order}"  # noqa: S608
        ).fetchall()
        values = tuple((value, int(n)) for value, n in rows)
        spread = self._spread(counted) if kind == ColumnKind.NUMBER and values else None
        return Column(name, kind, int(missing), int(different), values, spread)

    def _spread(self, counted: str) -> Spread:
        """The value at which the running count reaches the percentage."""
        reached = ", ".join(f"min(value) FILTER (100 * until >= {percent} * total)" for percent in PERCENTS)
        smallest, largest, *at = self._one(
            f"SELECT min(value), max(value), {reached} FROM ("  # noqa: S608
            "SELECT value, sum(n) OVER (ORDER BY value) AS until, sum(n) OVER () AS total "
            f"FROM {counted} WHERE value IS NOT NULL)"
        )
        return Spread(smallest, largest, dict(zip(PERCENTS, at, strict=True)))

    def _numbers(self, people: int, names: Sequence[str]) -> Iterator[Column]:
        """Numbers with many values, all in one scan."""
        percents = ", ".join(f"{percent / 100:.2f}" for percent in PERCENTS)
        asked = ", ".join(
            f"count({c}), approx_count_distinct({c}), min({c}), max({c}), quantile_disc({c}, [{percents}])"
            for c in map(_quoted, names)
        )
        found = self._one(f"SELECT {asked} FROM {self._source}")  # noqa: S608
        for place, name in enumerate(names):
            some, different, smallest, largest, at = found[5 * place : 5 * place + 5]
            spread = Spread(smallest, largest, dict(zip(PERCENTS, at, strict=True))) if some else None
            yield Column(name, ColumnKind.NUMBER, people - some, different, (), spread)

    def _one(self, query: str, **bound: Any) -> tuple[Any, ...]:
        row = self._duck.execute(query, bound or None).fetchone()
        assert row is not None
        return row


def _quoted(name: str) -> str:
    """As an identifier; attribute keys have no quotes, but nothing hangs on it."""
    return '"' + name.replace('"', '""') + '"'
