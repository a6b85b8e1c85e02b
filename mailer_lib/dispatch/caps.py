"""How many rows may still be granted in this hour and on this day, to a server or for a provider. Pure;
``grant_counts.py`` and ``provider_counts.py`` count.

A cap is held where rows are granted: an agent sends nothing that wasn't granted to it, so what was never granted needs
no watching, and a row that is tried again isn't counted again (docs/decisions/0604).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mailer_lib.fleet.warmup import day_of, quota
from mailer_lib.terms import CapSpan

HAND_BACK_FROM = timedelta(seconds=60)  # who waits less for a cap keeps the rows at hand


def span_start(span: CapSpan, at: datetime) -> datetime:
    """When the hour or the day (UTC) that ``at`` lies in began."""
    return at.replace(hour=0 if span is CapSpan.DAY else at.hour, minute=0, second=0, microsecond=0)


def span_end(span: CapSpan, at: datetime) -> datetime:
    return span_start(span, at) + (timedelta(days=1) if span is CapSpan.DAY else timedelta(hours=1))


@dataclass(frozen=True)
class NewAddress:
    """An address that a server's mail leaves from, beside others, and that is warmed up by itself."""

    address: str
    ramp: tuple[int, ...]
    warming_from: datetime | None = None


@dataclass(frozen=True)
class CapRules:
    """What bounds the grants of a server, or those for a mailbox provider. ``ramp`` None: nothing is warming.
    ``addresses``: each has an equal share."""

    name: str
    per_hour: int | None = None
    per_day: int | None = None
    ramp: tuple[int, ...] | None = None
    warming_from: datetime | None = None
    addresses: int = 1
    new_addresses: tuple[NewAddress, ...] = ()


@dataclass(frozen=True)
class Cap:
    """One bound, and what is used of it."""

    name: str
    span: CapSpan
    rows: int
    used: int
    ends_at: datetime
    warm_up: bool = False  # the quota of a day of the ramp

    @property
    def left(self) -> int:
        return max(0, self.rows - self.used)


def caps_at(rules: CapRules, used: Mapping[CapSpan, int], at: datetime) -> tuple[Cap, ...]:
    """The bounds that hold at this moment; ``used`` counts the rows granted in the hour and on the day of ``at``."""

    def cap(name: str, span: CapSpan, rows: int, *, warm_up: bool = False) -> Cap:
        return Cap(name, span, rows, used.get(span, 0), span_end(span, at), warm_up)

    found = []
    if rules.per_hour is not None:
        found.append(cap(f"hourly cap of {rules.name}", CapSpan.HOUR, rules.per_hour))
    if rules.per_day is not None:
        found.append(cap(f"daily cap of {rules.name}", CapSpan.DAY, rules.per_day))
    if rules.ramp is not None:
        day = day_of(rules.warming_from, at)
        rows = quota(rules.ramp, day)
        if rows is not None:
            name = f"warm-up quota of {rules.name}, day {day}"
            found.append(cap(name, CapSpan.DAY, rows * rules.addresses, warm_up=True))
    for new in rules.new_addresses:
        day = day_of(new.warming_from, at)
        rows = quota(new.ramp, day)
        if rows is not None:
            name = f"warm-up quota of {new.address}, one of {rules.addresses} of {rules.name}, day {day}"
            found.append(cap(name, CapSpan.DAY, rows * rules.addresses, warm_up=True))
    return tuple(found)


def room(caps: Iterable[Cap]) -> int | None:
    """Rows that may still be granted; None: as many as there are."""
    return min((cap.left for cap in caps), default=None)


def least(*rooms: int | None) -> int | None:
    """The tightest of several rooms; None: as many as there are."""
    return min((rows for rows in rooms if rows is not None), default=None)


def within(providers: Sequence[str], first: int, through: int, rooms: Mapping[str, int]) -> int:
    """How far a grant of rows ``[first, through)`` of mixed providers may go: up to the first one that has no room."""
    left = dict(rooms)
    for row in range(first, through):
        provider = providers[row]
        if provider in left:
            if left[provider] <= 0:
                return row
            left[provider] -= 1
    return through


def exhausted(caps: Iterable[Cap]) -> Cap | None:
    """The cap that has to be waited for: of those without room the one that ends last."""
    return max((cap for cap in caps if not cap.left), key=lambda cap: cap.ends_at, default=None)


def sentence(cap: Cap) -> str:
    """Why, and until when."""
    return f"waits until {cap.ends_at:%Y-%m-%d %H:%M} UTC: the {cap.name} ({cap.rows:,}) is used up"
