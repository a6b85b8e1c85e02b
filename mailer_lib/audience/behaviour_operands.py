"""The value of a rule on behaviour, from JSON to an ``Occurrence``. Pure.

    {"field": "behaviour.opened", "operator": ">=", "value": {"times": 2, "campaign": "spring-sale", "withinDays": 90}}

``times`` belongs to ``= < <= > >=``; ``null`` is never and ``notNull`` at least once. A number alone is the times.
``campaign`` is a name, or one edition of it (``spring-sale#3``); any without. ``withinDays`` is today and the days
before it, ``from`` and ``to`` are days (whole ones, in the tree's time zone) or moments. ``includeMachine`` counts what
proxies and scanners did.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mailer_lib.audience.behaviour import Behaviour, Occurrence
from mailer_lib.audience.catalogue import Catalogue, Field, Operator, suggestion
from mailer_lib.audience.operands import Clock, OperandError, kind_of, read_whole, show, span_of

MAX_TIMES = 1_000_000
MAX_WITHIN_DAYS = 36_525
KEYS = ("times", "campaign", "withinDays", "from", "to", "includeMachine")
_EXISTENCE = frozenset({Operator.NULL, Operator.NOT_NULL})


def read_behaviour(catalogue: Catalogue, clock: Clock, field: Field, operator: Operator, raw: Any) -> Occurrence:
    """Raises:
    OperandError: the value doesn't suit; ``at`` says which part of it.
    """
    assert field.behaviour is not None
    said = _object(raw, operator)
    least, most, absent = _times(operator, said)
    since, until = _time(clock, said)
    campaign, edition = _campaign(catalogue, said.get("campaign"))
    machines = said.get("includeMachine", False)
    if not isinstance(machines, bool):
        raise OperandError(f"must be true or false, not {kind_of(machines)}", ".includeMachine")
    people = Behaviour(
        kind=field.behaviour,
        until=until,
        since=since,
        campaign=campaign,
        edition=edition,
        machines=machines,
        least=least,
        most=most,
    )
    return Occurrence(people, absent)


def _object(raw: Any, operator: Operator) -> Mapping[str, Any]:
    if isinstance(raw, Mapping):
        unknown = sorted(str(key) for key in raw if key not in KEYS)
        if unknown:
            raise OperandError(f'has "{unknown[0]}", which means nothing here; known are {", ".join(KEYS)}')
        return raw
    if operator in _EXISTENCE and (raw is None or raw == ""):
        return {}
    if operator not in _EXISTENCE and isinstance(raw, int | float | str):
        return {"times": raw}
    raise OperandError(f'must be an object like {{"times": 2, "withinDays": 90}}, not {kind_of(raw)}')


def _times(operator: Operator, said: Mapping[str, Any]) -> tuple[int, int | None, bool]:
    """Least, most, and whether it is everybody else who is wanted."""
    if operator in _EXISTENCE:
        if "times" in said:
            raise OperandError(f'means nothing with "{operator}"; say "=" or ">="', ".times")
        return 1, None, operator == Operator.NULL
    times = read_whole(said.get("times"))
    if times is None or not 0 <= times <= MAX_TIMES:
        raise OperandError(f"must be a whole number, 0 to {MAX_TIMES}, not {show(said.get('times'))}", ".times")
    match operator:
        case Operator.EQ if times:
            return times, times, False
        case Operator.EQ:
            return 1, None, True
        case Operator.LE:
            return times + 1, None, True
        case Operator.GT:
            return times + 1, None, False
    if not times:
        raise OperandError(f'"{operator}" 0 is {"nobody" if operator == Operator.LT else "everybody"}', ".times")
    return times, None, operator == Operator.LT


def _time(clock: Clock, said: Mapping[str, Any]) -> tuple[datetime | None, datetime]:
    until = clock.now.astimezone(UTC) + timedelta(microseconds=1)
    if "withinDays" in said:
        if "from" in said or "to" in said:
            raise OperandError('takes either "withinDays" or "from" and "to"')
        days = read_whole(said["withinDays"])
        if days is None or not 0 <= days <= MAX_WITHIN_DAYS:
            raise OperandError(
                f"must be a whole number of days, 0 to {MAX_WITHIN_DAYS}, not {show(said['withinDays'])}", ".withinDays"
            )
        return clock.span_of(clock.today - timedelta(days)).start, until
    since = _moment(clock, said, "from")
    to = _moment(clock, said, "to")
    return since, until if to is None else min(until, to)


def _moment(clock: Clock, said: Mapping[str, Any], key: str) -> datetime | None:
    if said.get(key) is None:
        return None
    try:
        span = span_of(clock, said[key])
    except OperandError as error:
        raise OperandError(str(error), f".{key}") from None
    return span.start if key == "from" else span.end


def _campaign(catalogue: Catalogue, raw: Any) -> tuple[str | None, str | None]:
    if raw is None:
        return None, None
    name, hash_sign, edition = raw.partition("#") if isinstance(raw, str) else ("", "", "")
    if name not in catalogue.campaigns:
        near = suggestion(name, catalogue.campaigns)
        raise OperandError(f"there is no campaign {show(raw if not hash_sign else name)}{near}", ".campaign")
    if hash_sign and (not edition or edition.startswith(".") or "/" in edition):
        raise OperandError(f'must be a campaign or one edition of it like "{name}#1"', ".campaign")
    return name, edition or None
