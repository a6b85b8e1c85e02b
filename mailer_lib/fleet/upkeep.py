"""What is done to dispatch servers that were provisioned, each by its playbook: configure, rotate keys, drain, retire.

Every playbook may be run again, so whatever fails half-way is done again as it is. What was run, and what it came to,
is in the audit log.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from mailer_lib import secret_refs
from mailer_lib.database.engine import read, write
from mailer_lib.fleet import provisioning, servers, sources
from mailer_lib.fleet.login_key import public_half, public_line
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.playbooks import TIMEOUT_S, HostResult, Playbook, PlaybookEvent, run_playbook
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome, ServerState

_WHY_NOT: Mapping[ServerState, str] = {
    ServerState.RETIRED: "it is retired: make it standby and provision it again",
    ServerState.FENCED: "it is given up: `mailfleet server reconcile` first",
    ServerState.PROVISIONING: "it is being provisioned: wait for that",
}


@dataclass(frozen=True)
class Upkeep:
    """Runs playbooks. With ``check`` nothing is changed, on a server or here."""

    engine: Engine
    settings: Settings
    actor: str
    admin_user: str = provisioning.ADMIN_USER
    on_event: Callable[[PlaybookEvent], None] = lambda event: None
    check: bool = False

    def configure(self, names: Sequence[str]) -> dict[str, HostResult]:
        """Exim's configuration anew, from the central tables; the one before is put back when Exim isn't well with it.

        Raises:
            FleetError: a server wasn't provisioned or is out of service, or nothing could be run.
        """
        with read(self.engine) as connection:
            shared = provisioning.exim_variables(connection)
        return self._play(Playbook.CONFIGURE, names, _WHY_NOT, shared)

    def renew_host_keys(self, names: Sequence[str], *, next_login_key: str | None = None) -> dict[str, HostResult]:
        """A new TLS certificate with its key, and who may log in: our key alone, or with the next one beside it.

        Args:
            next_login_key: reference to the private key that MAILFLEET_SSH_KEY_REF is going to name.

        Raises:
            FleetError: a server wasn't provisioned or is out of service, or a key can't be read.
            SecretRefError: a key isn't there.
        """
        keys = [public_line(self.settings)]
        if next_login_key is not None:
            keys.append(public_half(secret_refs.resolve(self.settings, next_login_key), next_login_key))
        return self._play(Playbook.ROTATE_KEYS, names, _WHY_NOT, {"base_authorized_keys": keys})

    def wait_drained(self, names: Sequence[str], wait_s: int) -> dict[str, HostResult]:
        """Wait until no agent runs and no message is queued there, ``wait_s`` for each of the two at most.

        Raises:
            FleetError: a server wasn't provisioned, or nothing could be run.
        """
        # two waits, and a task that waits says nothing meanwhile
        return self._play(Playbook.DRAIN, names, {}, {"drain_wait_s": wait_s}, timeout_s=TIMEOUT_S + 2 * wait_s)

    def retire(self, names: Sequence[str], *, give_up_queue: bool = False) -> dict[str, HostResult]:
        """Stop Exim, close port 25, remove job folders, keys and agent. Refused while something is queued.

        Raises:
            FleetError: a server wasn't provisioned, or nothing could be run.
        """
        return self._play(Playbook.RETIRE, names, {}, {"retire_give_up_queue": give_up_queue})

    def _play(
        self,
        playbook: Playbook,
        names: Sequence[str],
        refused: Mapping[ServerState, str],
        variables: Mapping[str, Any],
        timeout_s: int = TIMEOUT_S,
    ) -> dict[str, HostResult]:
        with read(self.engine) as connection:
            found = [servers.get(connection, name) for name in names]
            for server in found:
                _require(server, refused)
            hosts = [provisioning.playbook_host(connection, server, admin_user=self.admin_user) for server in found]
        results = run_playbook(
            self.settings, playbook, hosts,
            variables=variables, on_event=self.on_event, check=self.check, timeout_s=timeout_s,
        )  # fmt: skip
        if not self.check:
            with write(self.engine) as connection:
                provisioning.note(connection, self.actor, playbook, results)
                for server in found:
                    if playbook is Playbook.CONFIGURE and results[server.name].outcome is not HostOutcome.FAILED:
                        sources.set_in_use(connection, server.id, provisioning.addresses_of(server))
        return results


def _require(server: DispatchServer, refused: Mapping[ServerState, str]) -> None:
    if server.state in refused:
        raise FleetError(f"nothing is done to {server.name}: {refused[server.state]}")
    if server.provisioned_at is None:
        raise FleetError(
            f"{server.name} wasn't installed by Mailfleet, so its MTA is its owner's: `mailfleet server provision "
            f"{server.name}` makes a dispatch server of a bare Debian host"
        )
