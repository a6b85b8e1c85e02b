"""Which time zones' shards may be sent now, where a send window is read off the recipients' own clocks. Pure.

Without such a window every shard has the zone None, and the window is one for all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mailer_lib.message.send_window import SendWindow

CLOSING_MARGIN = timedelta(seconds=1)
LONG_AGO = datetime.fromtimestamp(0, UTC)
BACK_AFTER = timedelta(minutes=5)  # a slot that rests while windows are shut has begun again by then


@dataclass(frozen=True)
class Zones:
    """A send's window at one moment. ``left``: zones of shards without an outcome for every row."""

    window: SendWindow | None
    left: frozenset[str | None]
    at: datetime

    @classmethod
    def of(cls, window: SendWindow | None, left: Iterable[str | None], at: datetime) -> "Zones":
        return cls(window, frozenset(left), at)

    @property
    def are_asked(self) -> bool:
        """Whether the zones of recipients matter."""
        return self.window is not None and self.window.recipients_timezone

    def opens_at(self, zone: str | None) -> datetime | None:
        """When a shut window opens; the present moment if it is open, None if it never does."""
        window = self._window(zone)
        return self.at if window is None or window.is_open(self.at) else window.changes_after(self.at)

    def is_open(self, zone: str | None) -> bool:
        window = self._window(zone)
        return window is None or window.is_open(self.at)

    @property
    def open(self) -> frozenset[str | None]:
        """Of ``left``, those that may be sent now."""
        return frozenset(zone for zone in self.left if self.is_open(zone))

    def why_shut(self) -> str | None:
        """Why and until when nothing may be sent at all, or None: something may."""
        return None if any(self.is_open(zone) for zone in self._zones) else self.why_some_wait()

    def why_some_wait(self) -> str:
        """Why and until when zones whose window is shut wait."""
        opens_at = self.next_opening
        until = f"until {opens_at:%Y-%m-%d %H:%M} UTC" if opens_at is not None else "for ever"
        where = " of the time zones that are left" if self.are_asked else ""
        return f"waits {until}: outside the send window{where}"

    @property
    def next_opening(self) -> datetime | None:
        """When the first window opens that is shut."""
        shut = [self.opens_at(zone) for zone in self._zones if not self.is_open(zone)]
        return min((at for at in shut if at is not None), default=None)

    @property
    def all_close_at(self) -> datetime | None:
        """Likewise of the whole send, if it is open and has one clock."""
        return None if self.are_asked or not self.is_open(None) else self.closes_at(None)

    @property
    def were_shut(self) -> bool:
        """All of them, not long ago: whoever rested over it comes back by itself."""
        return Zones(self.window, self.left, self.at - BACK_AFTER).why_shut() is not None

    def closes_at(self, zone: str | None) -> datetime | None:
        """When an agent must have stopped by itself with rows of this zone; a second before the window closes, so that
        what it begins then is through. ``LONG_AGO`` if it is shut, None if no end is in sight."""
        window = self._window(zone)
        if window is None:
            return None
        if not window.is_open(self.at):
            return LONG_AGO
        changes_at = window.changes_after(self.at)
        return changes_at - CLOSING_MARGIN if changes_at is not None else None

    @property
    def _zones(self) -> frozenset[str | None]:
        return self.left if self.are_asked and self.left else frozenset([None])

    def _window(self, zone: str | None) -> SendWindow | None:
        return self.window.in_zone(zone) if self.window is not None else None
