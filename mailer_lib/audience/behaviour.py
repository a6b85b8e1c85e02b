"""What people did, as criteria ask for it: everybody who did one thing a number of times, in some time.

    sent      our MTA took a message for them, or may have (outcomes injected and unknown)
    bounced   it was refused for good at hand-over (outcome rejected); what comes back later will count too
    opened    the pixel or the web version was fetched
    clicked   a tracked link was followed

Counted is each event: two looks at one message are two. What a proxy or a scanner did (``user_agents.AgentClass``
proxy and bot) counts only when ``machines`` is set. Test sends never count.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class BehaviourKind(StrEnum):
    SENT = "sent"
    OPENED = "opened"
    CLICKED = "clicked"
    BOUNCED = "bounced"

    @property
    def at_hand_over(self) -> bool:
        """Known from ledgers; the others from the doors."""
        return self in {BehaviourKind.SENT, BehaviourKind.BOUNCED}


@dataclass(frozen=True)
class Behaviour:
    """A set of people: ``least`` to ``most`` events of one kind at ``since <= t < until``.

    The same words give the same ``table``, so two rules that ask the same are answered once.
    """

    kind: BehaviourKind
    until: datetime  # UTC; never after the tree's "now"
    since: datetime | None = None
    campaign: str | None = None  # any without
    edition: str | None = None  # all of the campaign without
    machines: bool = False
    least: int = 1
    most: int | None = None

    @property
    def table(self) -> str:
        """Name of the temporary table that its people are staged in."""
        return f"behaviour_{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"

    def __str__(self) -> str:
        times = f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        where = f" in {self.campaign}" if self.campaign else ""
        where += f"#{self.edition}" if self.edition else ""
        since = f" from {self.since:%Y-%m-%d %H:%M:%S}" if self.since else ""
        machines = ", machines too" if self.machines else ""
        return f"{self.kind} {times} times{where}{since} until {self.until:%Y-%m-%d %H:%M:%S} UTC{machines}"


@dataclass(frozen=True)
class Occurrence:
    """What a rule asks: to be one of ``people``, or with ``absent`` not to be. Never missing, so ``not`` is exact."""

    people: Behaviour
    absent: bool = False
