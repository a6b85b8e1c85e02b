"""Taking a dispatch server out of service: it drains first, and is retired when nothing of ours is left on it.

What our playbook installed, its playbook removes; a rented machine is given back last. Each step finds what the one
before it left, so whoever was killed half-way calls it again.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.database.audit import record
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import leases
from mailer_lib.dispatch.server_builder import ServerBuilder
from mailer_lib.fleet import dkim_keys, servers, states
from mailer_lib.fleet.hosts import HostSource
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.fleet.verification_facts import ProbeError, RunScript, run_probe, script_runner
from mailer_lib.settings import Settings
from mailer_lib.terms import LeaseState, MtaKind, ServerState


@dataclass(frozen=True)
class Left:
    """What a server still holds."""

    leases: int  # not settled yet
    queued: int | None  # messages in its MTA's queue; None: that queue is somebody else's, or can't be read
    problem: str | None = None  # why the queue can't be read


def why_not_retire(left: Left) -> str | None:
    """What still stands against retiring, and what to do; None: nothing."""
    if left.leases:
        held = "a lease" if left.leases == 1 else f"{left.leases} leases"
        return f"it still holds {held}: its granted rows must be settled first (see `mailfleet send watch`)"
    if left.problem is not None:
        return f"whether its MTA still holds mail can't be told: {left.problem}"
    if left.queued:
        if left.queued == 1:
            return "its MTA still holds a message: wait until it is delivered, or has come back"
        return f"its MTA still holds {left.queued:,} messages: wait until they are delivered, or have come back"
    return None


def look(engine: Engine, settings: Settings, server: DispatchServer, run: RunScript | None = None) -> Left:
    held = _leases_of(engine, server.id)
    if server.mta is not MtaKind.EXIM or server.mta_spool is None:
        return Left(held, None)
    try:
        answer = run_probe(run or script_runner(server, settings), {"do": "queue", "spool": server.mta_spool})
    except ProbeError as problem:
        return Left(held, None, str(problem))
    return Left(held, answer["queued"], answer["error"])


def begin_drain(engine: Engine, name: str, *, actor: str, reason: str | None = None) -> DispatchServer:
    """It takes no new lease from now on. The same twice changes nothing.

    Raises:
        FleetError: there is no such server, or it isn't in service.
    """
    with write(engine) as connection:
        servers.set_state(connection, name, ServerState.DRAINING, actor=actor, reason=reason)
        return servers.get(connection, name)


def retire(
    engine: Engine,
    settings: Settings,
    name: str,
    *,
    actor: str,
    builder: ServerBuilder | None = None,
    hosts: HostSource | None = None,
    give_up_queue: bool = False,
    gone: bool = False,
    run: RunScript | None = None,
) -> bool:
    """Retire a drained server. Returns whether a rented machine was given back.

    Args:
        builder: runs the playbook on a server that was provisioned; ``hosts``: whom machines are rented from.
        give_up_queue: although its MTA still holds mail, or can't be asked.
        gone: the machine doesn't exist any more: nothing is asked of it or done there.

    Raises:
        FleetError: it isn't drained, its ledgers haven't been read, something of ours is left on it, or the playbook
            failed.
        HostsError: its machine can't be given back.
    """
    with read(engine) as connection:
        server = servers.get(connection, name)
    if server.machine_id is not None and hosts is None:
        raise FleetError(f"{name} is rented, and MAILFLEET_HETZNER_TOKEN_REF is missing: nobody can give it back")
    if server.state is not ServerState.RETIRED:
        _check(engine, settings, server, run, blind=give_up_queue or gone)
        if server.provisioned_at is not None and not gone:
            if builder is None:
                raise FleetError(f"{name} was installed by a playbook, which can't be run here: see `mailfleet doctor`")
            builder.retire(name, give_up_queue=give_up_queue)
        with write(engine) as connection:
            if _leases(connection, server.id):  # it was taken into service a moment ago
                raise FleetError(f"{name} has taken a lease meanwhile: drain it again")
            reason = "its machine is gone" if gone else "its queue was given up" if give_up_queue else "drained"
            servers.set_state(connection, name, ServerState.RETIRED, actor=actor, reason=reason)
            servers.set_provisioned(connection, name, None)
            keys = dkim_keys.keys_of(connection, server_id=server.id)
            for key in keys:
                dkim_keys.let_go(connection, key, actor=actor)
        for key in keys:
            dkim_keys.remove_file(settings, key)
    if server.machine_id is None or hosts is None:
        return False
    hosts.delete(server.machine_id)
    with write(engine) as connection:
        record(connection, actor, "give back", f"server:{name}", {"from": hosts.kind, "machine": server.machine_id})
    return True


def _check(engine: Engine, settings: Settings, server: DispatchServer, run: RunScript | None, *, blind: bool) -> None:
    """
    Raises:
        FleetError: something stands against retiring.
    """
    wrong = states.why_not(server.state, ServerState.RETIRED)
    if wrong is None and server.unreconciled:
        wrong = (
            "it was given up, and its ledgers haven't been read since: "
            f"`mailfleet server reconcile {server.name}` first (--gone if its disk is lost)"
        )
    if wrong is None:
        # its playbook looks into the queue itself, by the administrator's login: ours may be removed already
        plays = server.provisioned_at is not None
        never_installed = server.machine_id is not None and not plays
        left = Left(_leases_of(engine, server.id), None) if blind else look(engine, settings, server, run)
        if left.problem is not None and (plays or never_installed):
            left = Left(left.leases, None)
        wrong = why_not_retire(left)
    if wrong is not None:
        raise FleetError(f"{server.name} can't be retired: {wrong}")


def _leases_of(engine: Engine, server_id: int) -> int:
    with read(engine) as connection:
        return _leases(connection, server_id)


def _leases(connection: Connection, server_id: int) -> int:
    active = (leases.c.server_id == server_id) & (leases.c.state == LeaseState.ACTIVE)
    return int(connection.scalar(select(func.count()).select_from(leases).where(active)) or 0)
