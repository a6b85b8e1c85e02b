"""Does what was decided about a sending pool, once somebody allowed it: provision → verify → warm, drain, retire.

Whoever does it may be killed and called again: each step finds what the one before it left. The decision is made once
more before anything is done, because an approval may come when the backlog is gone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.dispatch import retiring, scale_book
from mailer_lib.dispatch.scale_book import StoredDecision
from mailer_lib.dispatch.server_builder import ServerBuilder
from mailer_lib.fleet import login_key, servers
from mailer_lib.fleet.hosts import HostsError, HostSource
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.provisioning import MTA_LOG, MTA_SPOOL
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, MtaKind, ScaleAction, ScaleState, ServerState


@dataclass
class Applier:
    """Applies one decision. ``builder`` may be None where no server is behind SSH, ``hosts`` where none is rented."""

    engine: Engine
    settings: Settings
    actor: str
    builder: ServerBuilder | None = None
    hosts: HostSource | None = None
    say: Callable[[str], object] = lambda line: None

    def apply(self, decision_id: int) -> StoredDecision:
        """Returns the decision as it ended: APPLIED, FAILED with the cause, or LAPSED when it no longer holds.

        Raises:
            ScaleError: nobody approved it, or it is over.
        """
        decision, again = scale_book.begin(self.engine, decision_id, by=self.actor)
        if not again:
            changed = self._what_changed(decision)
            if changed is not None:
                return self._end(decision, ScaleState.LAPSED, f"it no longer holds: {changed}")
        try:
            outcome = self._do(decision)
        except (FleetError, HostsError, SecretRefError) as error:
            return self._end(decision, ScaleState.FAILED, str(error))
        return self._end(decision, ScaleState.APPLIED, outcome)

    def _end(self, decision: StoredDecision, state: ScaleState, outcome: str) -> StoredDecision:
        self.say(f"{decision.title}: {state}, {outcome}")
        return scale_book.finish(self.engine, decision.id, state, outcome, by=self.actor)

    def _what_changed(self, decision: StoredDecision) -> str | None:
        """None: the same would be decided now."""
        for now in scale_book.plan(self.engine, self.settings, ignore=decision.id):
            if now.pool == decision.pool:
                same = (now.action, now.server, now.machine_from) == (
                    decision.action,
                    decision.server,
                    decision.machine_from,
                )
                return None if same else now.reason
        return f"there is no sending pool {decision.pool} any more"

    def _do(self, decision: StoredDecision) -> str:
        match decision.action:
            case ScaleAction.ACTIVATE:
                return self._into_service(self._server(decision), ServerState.ACTIVE)
            case ScaleAction.PROVISION:
                server = self._server(decision) if decision.server else self._rent(decision)
                self._provision(server)
                return self._into_service(server, ServerState.WARMING)
            case ScaleAction.DRAIN:
                self._set_state(self._server(decision).name, ServerState.DRAINING)
                return "it takes no new rows, and its queue empties"
            case ScaleAction.RETIRE:
                return self._retire(self._server(decision))
        raise FleetError(f"there is nothing to do about {decision.action}")

    # --- into service -------------------------------------------------------------------------------------------------

    def _rent(self, decision: StoredDecision) -> DispatchServer:
        """The machine of this decision, as a server on standby; both are made once, under the decision's number."""
        domain = self.settings.rented_domain
        if self.hosts is None or domain is None:
            raise FleetError(
                "no machine can be rented: MAILFLEET_HETZNER_TOKEN_REF or MAILFLEET_RENTED_DOMAIN is missing"
            )
        name = f"{decision.pool}-{decision.id}"
        helo_name = f"{name}.{domain}"
        self.say(f"renting {name}")
        machine = self.hosts.create(name, helo_name=helo_name, login_key=login_key.public_line(self.settings))
        spec = servers.make_spec(
            name=name, pool=decision.pool, state=ServerState.STANDBY, channel=ChannelKind.SSH, host=machine.address,
            host_key=machine.host_key, helo_name=helo_name, mta=MtaKind.EXIM, mta_log=MTA_LOG, mta_spool=MTA_SPOOL,
        )  # fmt: skip
        with write(self.engine) as connection:
            if name not in {server.name for server in servers.list_servers(connection)}:
                servers.add(connection, spec, actor=self.actor)
            connection.execute(
                dispatch_servers.update()
                .where(dispatch_servers.c.name == name)
                .values(machine_from=self.hosts.kind, machine_id=machine.id)
            )
            return servers.get(connection, name)

    def _provision(self, server: DispatchServer) -> None:
        if server.channel is ChannelKind.LOCAL or server.state not in (ServerState.STANDBY, ServerState.PROVISIONING):
            return
        self.say(f"provisioning {server.name}")
        self._set_state(server.name, ServerState.PROVISIONING)
        try:
            self._builder().provision(server.name)
        except FleetError:
            self._set_state(server.name, ServerState.FAILED)
            raise
        self._set_state(server.name, ServerState.STANDBY)

    def _into_service(self, server: DispatchServer, state: ServerState) -> str:
        if server.channel is not ChannelKind.LOCAL:
            self.say(f"verifying {server.name}")
            self._builder().verify(server.name)
        self._set_state(server.name, state)
        joins = "it joins the sends that run, where its slot waits"
        return f"{server.name} is {state}: {joins}"

    # --- out of service -----------------------------------------------------------------------------------------------

    def _retire(self, server: DispatchServer) -> str:
        """Only what is empty at this moment is taken away: the decision was made from an older look."""
        if server.machine_id is None:
            self._check_empty(server)
            self._set_state(server.name, ServerState.STANDBY)
            return f"{server.name} is on standby"
        retiring.retire(
            self.engine, self.settings, server.name, actor=self.actor, builder=self.builder, hosts=self.hosts
        )
        return f"{server.name} is retired, and its machine is given back"

    def _check_empty(self, server: DispatchServer) -> None:
        wrong = retiring.why_not_retire(retiring.look(self.engine, self.settings, server))
        if wrong is not None:
            raise FleetError(f"{server.name} stays: {wrong}")

    # --- small things -------------------------------------------------------------------------------------------------

    def _server(self, decision: StoredDecision) -> DispatchServer:
        with read(self.engine) as connection:
            return servers.get(connection, decision.server or "")

    def _set_state(self, name: str, state: ServerState) -> None:
        with write(self.engine) as connection:
            servers.set_state(connection, name, state, actor=self.actor)

    def _builder(self) -> ServerBuilder:
        if self.builder is None:
            raise FleetError("a server behind SSH can't be set up here: install mailfleet with the extra `fleet`")
        return self.builder
