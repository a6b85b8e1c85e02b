"""One value of a rule, from JSON to typed data: what may stand right of an operator. Pure; knows no tree.

Days are days of the tree's time zone: a day given for an instant is the 23 to 25 hours that it has there, and *today*
is the day that it is there at the tree's ``now``.
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, TypeAlias

from mailer_lib.audience.behaviour import Occurrence
from mailer_lib.audience.catalogue import Catalogue, Field, FieldKind, Operator, suggestion

MAX_TEXT = 1_000
MAX_DAYS = 36_525
RELATIVE = frozenset({Operator.IN_LAST_DAYS, Operator.BEFORE_LAST_DAYS, Operator.IN_NEXT_DAYS, Operator.ANNIVERSARY})
_PIECES = frozenset({Operator.CONTAINS, Operator.BEGINS_WITH, Operator.ENDS_WITH})
_WHOLE_YEAR = 365  # days ahead that reach every anniversary


class OperandError(ValueError):
    """A value that can't stand there; the sentence goes behind its JSON path, and ``at`` behind that of the value."""

    def __init__(self, text: str, at: str = "") -> None:
        super().__init__(text)
        self.at = at


@dataclass(frozen=True)
class Span:
    """A moment, or a whole day: ``start <= t < end``, UTC."""

    start: datetime
    end: datetime


Value: TypeAlias = str | float | bool | Span | int | Occurrence


@dataclass(frozen=True)
class Clock:
    """What relative dates of one tree are relative to."""

    now: datetime
    zone: tzinfo

    @property
    def today(self) -> date:
        return self.now.astimezone(self.zone).date()

    def span_of(self, day: date) -> Span:
        return Span(self._midnight(day), self._midnight(day + timedelta(days=1)) if day < date.max else _LATEST)

    def _midnight(self, day: date) -> datetime:
        try:
            return datetime.combine(day, time(), self.zone).astimezone(UTC)
        except OverflowError:
            return _EARLIEST if day.year == 1 else _LATEST


_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def read_operand(catalogue: Catalogue, clock: Clock, field: Field, operator: Operator, raw: Any) -> Value:
    """One value. Lists are their ids.

    Raises:
        OperandError: it doesn't suit field and operator.
    """
    match field.kind:
        case FieldKind.TEXT | FieldKind.TEXT_LIST:
            return _text(raw, piece=operator in _PIECES and field.kind == FieldKind.TEXT)
        case FieldKind.ENUM:
            return _choice(field, _text(raw))
        case FieldKind.NUMBER:
            return _number(raw)
        case FieldKind.BOOLEAN:
            if not isinstance(raw, bool):
                raise OperandError(f"must be true or false, not {kind_of(raw)}")
            return raw
        case FieldKind.DATE:
            day = _day(raw)
            if day is None:
                raise OperandError(f"must be a day like 2026-11-24, not {show(raw)}")
            return day.isoformat()
        case FieldKind.INSTANT:
            return span_of(clock, raw)
        case FieldKind.LIST:
            if not isinstance(raw, str) or raw not in catalogue.lists:
                raise OperandError(f"there is no list {show(raw)}{suggestion(raw, catalogue.lists)}")
            return catalogue.lists[raw]
        case FieldKind.CRITERIA | FieldKind.BEHAVIOUR:
            raise AssertionError("criteria are read by rules.py, behaviour by behaviour_operands.py")


def read_days(clock: Clock, field: Field, operator: Operator, raw: Any) -> tuple[Value, ...]:
    """The number of days of a relative operator, as what it comes to today: first and last day, both included.

    One day for ``beforeLastDays``; for ``anniversaryInDays`` month and day (``11-24``), the first after the last when
    the year ends between them. Who was born on 29 February celebrates on the 28th in other years.

    Raises:
        OperandError: no such number of days.
    """
    most = _WHOLE_YEAR if operator == Operator.ANNIVERSARY else MAX_DAYS
    days = read_whole(raw)
    if days is None or not 0 <= days <= most:
        raise OperandError(f"must be a whole number of days, 0 to {most}, not {show(raw)}")
    if operator == Operator.ANNIVERSARY:
        return _anniversaries(clock.today, days)
    try:
        first = clock.today - timedelta(days if operator != Operator.IN_NEXT_DAYS else 0)
        last = clock.today + timedelta(days if operator == Operator.IN_NEXT_DAYS else 0)
    except OverflowError:
        raise OperandError("leads out of the calendar") from None
    ends = (first,) if operator == Operator.BEFORE_LAST_DAYS else (first, last)
    return tuple(clock.span_of(day) if field.kind == FieldKind.INSTANT else day.isoformat() for day in ends)


def _anniversaries(today: date, days: int) -> tuple[str, str]:
    if days >= _WHOLE_YEAR:
        return "01-01", "12-31"
    last = today + timedelta(days)
    begin, end = f"{today:%m-%d}", f"{last:%m-%d}"
    short_year = (last + timedelta(days=1)).month == 3
    return begin, "02-29" if end == "02-28" and short_year else end


def read_whole(raw: Any) -> int | None:
    """A whole number, as number inputs write it too; None for anything else."""
    try:
        number = _number(raw)
    except OperandError:
        return None
    return int(number) if number.is_integer() else None


def _text(raw: Any, *, piece: bool = False) -> str:
    if not isinstance(raw, str):
        raise OperandError(f"must be a text, not {kind_of(raw)}")
    if len(raw) > MAX_TEXT or any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in raw):
        raise OperandError(f"must have at most {MAX_TEXT} characters, none of them a control character")
    if piece and not raw:
        raise OperandError("must have at least one character")
    text = unicodedata.normalize("NFC", raw)  # as stored texts are (contacts.attributes.clean_text)
    return text if piece else " ".join(text.split())


def _choice(field: Field, text: str) -> str:
    if text not in field.choices:
        near = suggestion(text, field.choices)
        raise OperandError(f"{show(text)} is no choice of {field.name}{near or '; it has ' + ' '.join(field.choices)}")
    return text


def _number(raw: Any) -> float:
    number: float | None = None
    if isinstance(raw, int | float | str) and not isinstance(raw, bool):
        try:
            number = float(raw)
        except (ValueError, OverflowError):
            number = None
    if number is None or not math.isfinite(number):
        raise OperandError(f"must be a number, not {show(raw)}")
    return number


def span_of(clock: Clock, raw: Any) -> Span:
    """A day of the clock's zone, or a moment.

    Raises:
        OperandError: it is neither.
    """
    day = _day(raw)
    if day is not None:
        return clock.span_of(day)
    if isinstance(raw, str):
        try:
            moment = datetime.fromisoformat(raw)
            if moment.tzinfo is not None:
                moment = moment.astimezone(UTC)
                return Span(moment, moment + timedelta(microseconds=1))
        except (ValueError, OverflowError):
            pass
    example = "2026-11-24T08:00:00+01:00"
    raise OperandError(f"must be a day, or a moment with its time zone like {example}, not {show(raw)}")


def _day(raw: Any) -> date | None:
    if isinstance(raw, str) and len(raw) == 10:
        try:
            return date.fromisoformat(raw)
        except ValueError:
            return None
    return None


def kind_of(value: Any) -> str:
    """``a text``, ``an array`` …, for sentences."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case int() | float():
            return "a number"
        case Mapping():
            return "an object"
        case Sequence():
            return "an array"
    return type(value).__name__


def show(value: Any) -> str:
    """A short value itself, of others their kind."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return kind_of(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
