"""Times in the sentences of a scaling decision."""

from datetime import datetime, timedelta
from math import isinf


def span_text(seconds: float) -> str:
    """``4 min``, ``2 h 10 min``, ``3 days``."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def outlook_text(at: datetime, total_s: float, saved: int = 0) -> str:
    """When it is done, and how many more messages make the deadline, as the rest of a sentence."""
    more = f", and {saved:,} more messages make it" if saved > 0 else ""
    if isinf(total_s):
        return f"it is never done{more}"
    return f"it is done at {at + timedelta(seconds=total_s):%Y-%m-%d %H:%M} UTC{more}"


def late_text(ref: str, at: datetime, total_s: float, finish_by: datetime) -> str:
    """How late a send is, as it stands."""
    deadline = f"its deadline {finish_by:%Y-%m-%d %H:%M} UTC"
    if isinf(total_s):
        return f"{ref} would never be done, and {deadline} is missed"
    done = at + timedelta(seconds=total_s)
    if done <= finish_by:
        return f"{ref} would be done at {done:%Y-%m-%d %H:%M} UTC, hardly before {deadline}"
    late = span_text((done - finish_by).total_seconds())
    return f"{ref} would be done at {done:%Y-%m-%d %H:%M} UTC, {late} after {deadline}"
