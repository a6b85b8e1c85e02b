"""What applying a scaling decision needs of playbooks and verification, and nothing more of them."""

from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Engine

from mailer_lib.settings import Settings


class ServerBuilder(Protocol):
    """Makes a machine behind SSH a dispatch server, and unmakes it. Every call may be repeated."""

    def provision(self, name: str) -> None:
        """Install it: users, MTA, agent.

        Raises:
            FleetError: it can't be; the sentence says on which task it failed.
        """

    def verify(self, name: str) -> None:
        """Look whether it may send; what is found is stored. It is on standby afterwards.

        Raises:
            FleetError: it may not; the sentence says what is missing.
        """

    def retire(self, name: str) -> None:
        """Stop its MTA and agent. Called only when its queue is empty.

        Raises:
            FleetError: it can't be reached, or holds something after all.
        """


def builder_of(engine: Engine, settings: Settings, *, actor: str, say: Callable[[str], object]) -> ServerBuilder | None:
    """Whoever sets up servers here; None where Ansible isn't installed."""
    return None
