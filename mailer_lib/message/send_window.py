"""Days and hours in which a send may hand over. Pure: a moment and the rules of a time zone decide.

A window is open when the *wall clock* of its time zone shows a time within it. So an hour that a clock skips in spring
is simply missing, one that it shows twice in autumn counts twice, and nothing is ever sent at a time that isn't in it.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from mailer_lib.terms import Weekday

_DAY = timedelta(days=1)
_LOOK_DAYS = 9  # a window is open on one weekday at least; one day may be skipped altogether


def _time(value: Any) -> Any:
    if isinstance(value, str) and len(value) == 5 and value[2] == ":" and (value[:2] + value[3:]).isdecimal():
        hour, minute = int(value[:2]), int(value[3:])
        if hour < 24 and minute < 60:
            return time(hour, minute)
    if isinstance(value, int) and not isinstance(value, bool):  # YAML reads 18:00 without quotes as 1080
        raise ValueError('write the time in quotes, such as "18:00"')
    raise ValueError('write a time such as "09:00"; midnight is "00:00"')


WallTime = Annotated[time, BeforeValidator(_time), PlainSerializer(lambda value: f"{value:%H:%M}", return_type=str)]


class SendWindow(BaseModel):
    """Open on ``days`` from ``opens`` until ``closes``; who closes at or before the opening does so on the next day.

    ``timezone`` None: the campaign's. With ``recipients_timezone`` it is for those whose own isn't known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    days: tuple[Weekday, ...] = tuple(Weekday)
    opens: WallTime = Field(alias="from")
    closes: WallTime = Field(alias="until")
    timezone: str | None = None
    recipients_timezone: bool = False

    @field_validator("days")
    @classmethod
    def _some_days(cls, value: tuple[Weekday, ...]) -> tuple[Weekday, ...]:
        if not value:
            raise ValueError("name one weekday at least: mon, tue, wed, thu, fri, sat, sun")
        return tuple(day for day in Weekday if day in value)

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError):
                raise ValueError(f"there is no time zone {value!r}; write one such as Europe/Oslo") from None
        return value

    def dump(self) -> dict[str, Any]:
        """JSON-able."""
        absent = set() if self.recipients_timezone else {"recipients_timezone"}
        return self.model_dump(mode="json", by_alias=True, exclude=absent)

    @property
    def zones(self) -> str | None:
        """With ``recipients_timezone``, the zone of those whose own isn't known; else None."""
        return (self.timezone or "UTC") if self.recipients_timezone else None

    def in_zone(self, zone: str | None) -> "SendWindow":
        """This window on the clock of one time zone, if it is for the recipients to say which."""
        if zone is None or not self.recipients_timezone:
            return self
        return self.model_copy(update={"timezone": zone})

    def is_open(self, at: datetime) -> bool:
        """Whether something may be handed over at this moment."""
        local = at.astimezone(self._zone)
        wall = local.time()
        if self.opens < self.closes:
            return self.opens <= wall < self.closes and self._opens_on(local.date())
        return (wall >= self.opens and self._opens_on(local.date())) or (
            wall < self.closes and self._opens_on(local.date() - _DAY)
        )

    def changes_after(self, at: datetime) -> datetime | None:
        """The next moment (UTC) at which an open window closes, or a closed one opens. None: it never changes."""
        now_open = self.is_open(at)
        return next((moment for moment in self._edges(at) if self.is_open(moment) is not now_open), None)

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone or "UTC")

    def _opens_on(self, day: date) -> bool:
        return tuple(Weekday)[day.weekday()] in self.days

    def _edges(self, at: datetime) -> Iterator[datetime]:
        """Moments after ``at``, in order, at which the window may open or close."""
        first = at.astimezone(self._zone).date() - _DAY
        zone = self._zone
        for number in range(_LOOK_DAYS + 1):
            yield from (m for m in _edges_of_day(zone, first + number * _DAY, self.opens, self.closes) if m > at)


@lru_cache(4096)
def _edges_of_day(zone: ZoneInfo, day: date, opens: time, closes: time) -> tuple[datetime, ...]:
    midnight, next_midnight = (_moment(zone, day + n * _DAY, time(0), 0) for n in (0, 1))
    moments = {_moment(zone, day, wall, fold) for wall in (time(0), opens, closes) for fold in (0, 1)}
    jump = _clock_change(zone, midnight, next_midnight)
    if jump is not None:
        moments.add(jump)
    return tuple(sorted(moments))


def _moment(zone: ZoneInfo, day: date, wall: time, fold: int) -> datetime:
    return datetime.combine(day, wall.replace(fold=fold), zone).astimezone(UTC)


def _clock_change(zone: ZoneInfo, since: datetime, until: datetime) -> datetime | None:
    """The moment between the two at which the zone's offset changes."""

    def offset(at: datetime) -> timedelta | None:
        return at.astimezone(zone).utcoffset()

    before = offset(since)
    if before == offset(until):
        return None
    low, high = 0, round((until - since).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if offset(since + timedelta(seconds=middle)) == before else (low, middle)
    return since + timedelta(seconds=high)
