"""A dispatch server that is gone for good: its rows that were never granted go to others, the granted ones without an
outcome are unknown, listed, and left alone unless the operator says otherwise."""

from dataclasses import dataclass

from sqlalchemy import Engine, select

from mailer_lib.agent.ledger import LedgerError
from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import leases
from mailer_lib.dispatch.agent_keeper import AgentKeeper
from mailer_lib.dispatch.central_ledger import book_unknown, lost_leases_to_book
from mailer_lib.dispatch.channel import LocalChannel
from mailer_lib.dispatch.lease import Lease, LeaseLostError, leases_of_send, lose_lease
from mailer_lib.dispatch.lease_tracker import LeaseTracker
from mailer_lib.dispatch.sends import get_send
from mailer_lib.fleet import servers
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import ChannelKind, LeaseState


@dataclass(frozen=True)
class Loss:
    """What losing a server cost one send."""

    send: str
    leases: int
    unknown: int  # rows
    given_back: int  # rows that were never granted


def lose_server(engine: Engine, settings: Settings, server: str, actor: str) -> list[Loss]:
    """Fence a server and give up its leases in every send. Ledgers that can still be read are read a last time.

    Raises:
        FleetError: there is no such server.
    """
    with write(engine) as connection:
        record = servers.get(connection, server)
        servers.fence(connection, server, actor=actor)
    with read(engine) as connection:
        affected = connection.scalars(
            select(leases.c.send_id)
            .where(leases.c.server_id == record.id, leases.c.state == LeaseState.ACTIVE)
            .distinct()
        ).all()
    losses = []
    for send_id in affected:
        with read(engine) as connection:
            send = get_send(connection, send_id)
            held = [x for x in leases_of_send(connection, send_id, LeaseState.ACTIVE) if x.server_id == record.id]
        given_back = 0
        lost = 0
        for lease in held:
            if record.channel is ChannelKind.LOCAL:
                folder = settings.jobs_dir / send.campaign / send.edition / f"{server}.{lease.slot}"
                _read_last(engine, settings, lease, LocalChannel(folder), f"send:{send.ref}")
            try:
                gone = lose_lease(engine, lease.id)
            except LeaseLostError:
                continue  # it was settled a moment ago
            lost += 1
            given_back += gone.shard_rows - gone.granted_through
        unknown = finish_losses(engine, settings, send_id, f"server {server} was lost")
        losses.append(Loss(send.ref, lost, unknown, given_back))
        with write(engine) as connection:
            detail = {"server": server, "leases": lost, "unknown": unknown, "given_back": given_back}
            audit.record(connection, actor, "send.lose-server", f"send:{send.ref}", detail)
    return losses


def _read_last(engine: Engine, settings: Settings, lease: Lease, channel: LocalChannel, source: str) -> None:
    """End the agent and take over what its ledger says."""
    if not channel.folder.exists():
        return
    AgentKeeper(channel, channel.folder.name).end()
    tracker = LeaseTracker(store(settings), lease)
    try:
        tracker.sync(engine, channel, source)
    except (LeaseLostError, LedgerError):  # what can't be read is unknown
        return


def finish_losses(engine: Engine, settings: Settings, send_id: int, why: str = "the server was lost") -> int:
    """Book what is unknown in lost leases; also after a kill in the middle of ``lose_server``. Returns the rows."""
    with read(engine) as connection:
        waiting = lost_leases_to_book(connection, send_id)
    return sum(book_unknown(engine, store(settings), lease, why) for lease in waiting)
