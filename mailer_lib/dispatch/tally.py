"""From ledger records to numbers: outcomes, hourly roll-ups, and the mailboxes that turned out not to exist. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from mailer_lib.agent.ledger import Amended, Deferral, Final, Record
from mailer_lib.agent.replies import ReplyClass, classify
from mailer_lib.dispatch.accounting import Tally
from mailer_lib.terms import Outcome

DEFERRAL = "deferral"


@dataclass(frozen=True)
class Counted:
    tally: Tally
    dead_mailboxes: tuple[int, ...]  # rows refused because the mailbox doesn't exist


def hour_of(t_ms: int) -> datetime:
    """The hour in which ``t_ms`` (Unix milliseconds) lies, in UTC."""
    return datetime.fromtimestamp(t_ms // 3_600_000 * 3600, UTC)


def count(records: Iterable[Record], variant_of: Callable[[int], int]) -> Counted:
    """Count outcomes and deferrals. ``variant_of(row)`` is asked about deferred rows only."""
    counts: Counter[Outcome] = Counter()
    rollups: Counter[tuple[int, str, datetime, str]] = Counter()
    deferrals = 0
    dead = []
    for record in records:
        if isinstance(record, Final):
            counts[record.outcome] += 1
            rollups[record.variant, record.provider, hour_of(record.t_ms), record.outcome.value] += 1
            if record.outcome is Outcome.REJECTED and is_dead_mailbox(record):
                dead.append(record.row)
        elif isinstance(record, Deferral) and record.code:  # code 0: our own second attempt, no 4xx
            deferrals += 1
            rollups[variant_of(record.row), record.provider, hour_of(record.t_ms), DEFERRAL] += 1
    return Counted(Tally(dict(counts), deferrals, dict(rollups)), tuple(dead))


def count_amended(amended: Iterable[tuple[Final, Amended]]) -> Tally:
    """What changes when rows that were counted as the first are the second after all."""
    counts: Counter[Outcome] = Counter()
    rollups: Counter[tuple[int, str, datetime, str]] = Counter()
    for before, after in amended:
        for record, one in ((before, -1), (after, 1)):
            counts[record.outcome] += one
            rollups[record.variant, record.provider, hour_of(record.t_ms), record.outcome.value] += one
    return Tally(dict(counts), 0, {key: change for key, change in rollups.items() if change})


def is_dead_mailbox(record: Final) -> bool:
    """Whether the refusal says that the mailbox doesn't exist. Refusals for policy or reputation never do."""
    return classify(record.code, record.enhanced, record.text) is ReplyClass.UNKNOWN_MAILBOX
