"""What applying a scaling decision needs of playbooks and verification, and nothing more of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from mailer_lib.dispatch.server_verification import verify_server
from mailer_lib.fleet import provisioning
from mailer_lib.fleet.findings import is_error
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.playbooks import HostResult, PlaybookEvent
from mailer_lib.fleet.upkeep import Upkeep
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome


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

    def retire(self, name: str, *, give_up_queue: bool = False) -> None:
        """Stop its MTA and agent, and remove what is ours. Refused while something is queued, unless that is given up.

        Raises:
            FleetError: it can't be reached, or the playbook fails.
        """


@dataclass(frozen=True)
class FleetBuilder:
    """The playbooks by Ansible, and the verification over SSH."""

    engine: Engine
    settings: Settings
    actor: str
    say: Callable[[str], object]
    admin_user: str = provisioning.ADMIN_USER

    def provision(self, name: str) -> None:
        results = provisioning.provision(
            self.engine, self.settings, [name], actor=self.actor, admin_user=self.admin_user, on_event=self._tell
        )
        _check(results[name], "provisioned")

    def verify(self, name: str) -> None:
        done = verify_server(self.engine, self.settings, name, actor=self.actor)
        wrong = [finding for finding in done.check.findings if is_error(finding)]
        for finding in wrong:
            for line in finding.publish:
                self.say(f"publish: {line}")
        if wrong:
            raise FleetError(
                f"{name} may not send yet: {'; '.join(finding.text for finding in wrong)}. "
                f"`mailfleet server verify {name}` shows the records to publish"
            )

    def retire(self, name: str, *, give_up_queue: bool = False) -> None:
        upkeep = Upkeep(self.engine, self.settings, self.actor, self.admin_user, self._tell)
        _check(upkeep.retire([name], give_up_queue=give_up_queue)[name], "retired")

    def _tell(self, event: PlaybookEvent) -> None:
        if event.outcome is not HostOutcome.OK:
            self.say(f"{event.host}: {event.task}: {event.text or event.outcome}")


def _check(result: HostResult, what: str) -> None:
    if result.outcome is HostOutcome.FAILED:
        where = f" (task {result.task})" if result.task else ""
        raise FleetError(f"{result.host} can't be {what}: {result.sentence}{where}")
