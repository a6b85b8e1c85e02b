"""Taking a dispatch server out of service: it drains first, and is retired when nothing of ours is left on it."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import leases
from mailer_lib.fleet import servers
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
    with read(engine) as connection:
        held = _leases(connection, server.id)
    if server.mta is not MtaKind.EXIM or server.mta_spool is None:
        return Left(held, None)
    try:
        answer = run_probe(run or script_runner(server, settings), {"do": "queue", "spool": server.mta_spool})
    except ProbeError as problem:
        return Left(held, None, str(problem))
    return Left(held, answer["queued"], answer["error"])


def retire(
    engine: Engine,
    settings: Settings,
    name: str,
    *,
    actor: str,
    give_up_queue: bool = False,
    run: RunScript | None = None,
) -> None:
    """Retire a drained server. ``give_up_queue``: although its MTA still holds mail, or can't be asked.

    Raises:
        FleetError: it isn't drained, or something of ours is left on it.
    """
    with read(engine) as connection:
        server = servers.get(connection, name)
    left = look(engine, settings, server, run)
    if give_up_queue:
        left = Left(left.leases, None)
    wrong = why_not_retire(left)
    if wrong is not None:
        raise FleetError(f"{name} can't be retired: {wrong}")
    with write(engine) as connection:
        if _leases(connection, server.id):  # it was taken into service a moment ago
            raise FleetError(f"{name} has taken a lease meanwhile: drain it again")
        reason = "its queue was given up" if give_up_queue else "drained"
        servers.set_state(connection, name, ServerState.RETIRED, actor=actor, reason=reason)


def _leases(connection: Connection, server_id: int) -> int:
    active = (leases.c.server_id == server_id) & (leases.c.state == LeaseState.ACTIVE)
    return int(connection.scalar(select(func.count()).select_from(leases).where(active)) or 0)
