"""Machines for dispatch servers, from whoever has them: one's own (``inventory``), or rented through an API.

One's own are the servers on standby in the central table; nothing is made or deleted for them. A rented machine carries
labels: that it is ours, and for which decision it was made. So a retry finds the machine of the first try instead of
renting a second one, and nothing without our label is ever deleted.
"""

from dataclasses import dataclass
from typing import Protocol

from mailer_lib.settings import Settings
from mailer_lib.terms import HostProvider


class HostsError(RuntimeError):
    """A machine can't be had or given back; the sentence says why and what to do."""


class NoMachineError(HostsError):
    """The one whom it is rented from has none at the moment, or allows no more."""


@dataclass(frozen=True)
class Machine:
    """A rented machine. ``host_key`` is ours: the machine got it when it was made, so it is pinned without a first
    sight."""

    id: str
    name: str
    address: str
    host_key: str


@dataclass(frozen=True)
class Terms:
    """What one more machine costs."""

    cost_per_day: float
    currency: str = "EUR"


class HostSource(Protocol):
    """Whoever rents machines out. Every call may be repeated."""

    kind: HostProvider

    def terms(self) -> Terms:
        """
        Raises:
            HostsError: it doesn't answer, or refuses.
        """

    def create(self, name: str, *, helo_name: str, login_key: str) -> Machine:
        """The machine of this name, running; made unless it is there. ``login_key``: may log in as root.

        Raises:
            NoMachineError: there is none to be had.
            HostsError: it doesn't answer, or refuses.
        """

    def machines(self) -> list[Machine]:
        """Those of ours.

        Raises:
            HostsError: it doesn't answer, or refuses.
        """

    def delete(self, machine_id: str) -> None:
        """Give a machine of ours back; nothing happens when it is gone.

        Raises:
            HostsError: it isn't ours, or the other side doesn't answer or refuses.
        """


def source_of(settings: Settings) -> HostSource | None:
    """Whom machines are rented from here; None: from nobody, there are one's own only."""
    if settings.hetzner_token_ref is None or settings.rented_domain is None:
        return None
    from mailer_lib.fleet.hetzner import Hetzner

    return Hetzner(settings)
