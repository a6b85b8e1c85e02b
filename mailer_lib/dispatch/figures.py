"""What is known of a test slice: outcomes by variant from the ledgers, reactions from what the web doors noted.

A person counts once for each kind, and only as a person: proxies and scanners that fetch pixels and links are left out
(``web/user_agents.py``). Opens without the proxies are few, so clicks are what is compared.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from sqlalchemy import Engine, select

from mailer_lib.audience.duck import over_files
from mailer_lib.database.engine import read
from mailer_lib.database.named_sql import named_sql
from mailer_lib.database.schema import shards, snapshots
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import leases_of_send
from mailer_lib.dispatch.sends import SendRecord
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.message.compile import load_bundle
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, SnapshotState

_Z = 1.959964  # 95 %
_OPENED, _CLICKED, _LEFT = "open", "click", "unsubscribe"


@dataclass(frozen=True)
class VariantFigures:
    """Of one variant's part of the slice."""

    name: str
    weight: int
    people: int = 0
    injected: int = 0
    rejected: int = 0
    other: int = 0  # suppressed, failed, expired, cancelled, unknown
    opened: int = 0
    clicked: int = 0
    left: int = 0  # unsubscribed

    @property
    def waiting(self) -> int:
        return self.people - self.injected - self.rejected - self.other


@dataclass(frozen=True)
class Figures:
    variants: tuple[VariantFigures, ...]
    rest: int  # people who wait for the decision


def figures_of(engine: Engine, settings: Settings, send: SendRecord) -> Figures:
    """The figures at hand of every phase's test slice; the rest isn't in them, whenever it is sent.

    Raises:
        CampaignError: the frozen message is lost.
    """
    assert send.content_hash is not None
    variants = load_bundle(settings, send.content_hash).variants
    people, outcomes, keys, rest = _slices(engine, settings, send.id)
    counted: Counter[tuple[str, int]] = Counter()
    for kind, key in _reactions(settings, send):
        if key in keys:
            counted[kind, keys[key]] += 1
    made = []
    for number, variant in enumerate(variants):
        of = {outcome: outcomes[number, outcome] for outcome in Outcome}
        made.append(
            VariantFigures(
                name=variant.name,
                weight=variant.weight,
                people=people[number],
                injected=of[Outcome.INJECTED],
                rejected=of[Outcome.REJECTED],
                other=sum(of.values()) - of[Outcome.INJECTED] - of[Outcome.REJECTED],
                opened=counted[_OPENED, number],
                clicked=counted[_CLICKED, number],
                left=counted[_LEFT, number],
            )
        )
    return Figures(tuple(made), rest)


def _slices(
    engine: Engine, settings: Settings, send_id: int
) -> tuple[Counter[int], Counter[tuple[int, Outcome]], dict[str, int], int]:
    """By variant: people, outcomes, message keys (hex). And how many people are the rest of the newest phase."""
    with read(engine) as connection:
        sliced = connection.execute(
            select(shards.c.id, shards.c.path, shards.c.rows, shards.c.slice_rows, snapshots.c.path.label("folder"))
            .join_from(shards, snapshots, shards.c.snapshot_id == snapshots.c.id)
            .where(
                shards.c.send_id == send_id,
                shards.c.slice_rows.is_not(None),
                snapshots.c.state == SnapshotState.PUBLISHED,
            )
            .order_by(snapshots.c.phase, shards.c.number)
        ).all()
        held = leases_of_send(connection, send_id)
    people: Counter[int] = Counter()
    outcomes: Counter[tuple[int, Outcome]] = Counter()
    keys: dict[str, int] = {}
    rest: Counter[str] = Counter()
    for shard in sliced:
        rest[shard.folder] += shard.rows - shard.slice_rows
        if not shard.slice_rows:
            continue
        columns = load_columns(store(settings) / shard.folder / shard.path)
        variant = columns.variant[: shard.slice_rows]
        people.update(variant)
        keys.update((key.hex(), number) for key, number in zip(columns.message_key, variant, strict=False))
        for lease in held:
            if lease.shard_id == shard.id and lease.first_row < shard.slice_rows:
                for row, record in final_rows(KeptLedger(store(settings), lease)).items():
                    if row < shard.slice_rows:
                        outcomes[variant[row], record.outcome] += 1
    newest = sliced[-1].folder if sliced else ""
    return people, outcomes, keys, rest[newest]


def _reactions(settings: Settings, send: SendRecord) -> Iterator[tuple[str, str]]:
    """(kind, message key) of each person's first open, click and leaving."""
    first = "" if send.started_at is None else send.started_at.date().isoformat()
    folders = sorted((settings.storage / "events" / "raw").glob("????-??-??"))
    files = [str(path) for day in folders if day.name >= first for path in _written(day)]
    if not files:
        return
    with over_files() as db:
        yield from db.execute(named_sql("reactions"), {"files": files, "send_id": send.id}).fetchall()


def _written(day: Path) -> list[Path]:
    return [path for path in sorted(day.glob("*.jsonl")) if path.stat().st_size]


# --- in words ---------------------------------------------------------------------------------------------------------


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212): right for few hits too."""
    if not of:
        return 0.0, 1.0
    share, spread = hits / of, _Z * _Z / of
    middle = share + spread / 2
    half = _Z * sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def difference(hits: tuple[int, int], of: tuple[int, int]) -> tuple[float, float]:
    """The 95 % interval of first share minus second (Newcombe 1998, Stat. Med. 17, 873-890, method 10)."""
    (low, high), (other_low, other_high) = wilson(hits[0], of[0]), wilson(hits[1], of[1])
    share, other = (hit / n if n else 0.5 for hit, n in zip(hits, of, strict=True))
    below = sqrt((share - low) ** 2 + (other_high - other) ** 2)
    above = sqrt((high - share) ** 2 + (other - other_low) ** 2)
    return share - other - below, share - other + above


def figures_text(found: Figures) -> list[str]:
    """A table, and a sentence on how sure it is, as lines of markdown."""
    people = sum(one.people for one in found.variants)
    lines = [
        f"{people:,} people are the test slice; {found.rest:,} are the rest.",
        "",
        "| variant | people | injected | rejected | not sent | waiting | opened | clicked | unsubscribed |",
        "| --- |" + " ---: |" * 8,
    ]
    for one in found.variants:
        lines.append(
            f"| {one.name} | {one.people:,} | {one.injected:,} | {one.rejected:,} | {one.other:,} | {one.waiting:,} "
            f"| {_share(one.opened, one.injected)} | {_share(one.clicked, one.injected)} "
            f"| {_share(one.left, one.injected)} |"
        )
    return [*lines, "", certainty(found.variants)]


def certainty(variants: tuple[VariantFigures, ...]) -> str:
    """How sure the lead in clicks is, as a sentence."""
    tested = sorted((one for one in variants if one.injected), key=lambda one: -one.clicked / one.injected)
    if len(tested) < 2 or not tested[0].clicked:
        return "Nobody has clicked yet: the clicks say nothing."
    best, second = tested[:2]
    low, high = difference((best.clicked, second.clicked), (best.injected, second.injected))
    ahead = f"{best.name} leads {second.name} in clicks by {100 * low:+.1f} to {100 * high:+.1f} points (95 %)"
    if low <= 0:
        return f"{ahead}: that may well be chance."
    many = " With several variants the best one is partly lucky." if len(tested) > 2 else ""
    return f"{ahead}: that is hardly chance.{many}"


def _share(hits: int, of: int) -> str:
    """``12 (1.2 %: 0.7-2.1)``: the interval is Wilson's."""
    if not of:
        return f"{hits:,}"
    low, high = wilson(hits, of)
    return f"{hits:,} ({100 * hits / of:.1f} %: {100 * low:.1f}–{100 * high:.1f})"
