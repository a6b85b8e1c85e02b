"""Starting the agent of a slot once more, not to send: to empty the MTA's queue, or to settle what a lost one left."""

import time
from collections.abc import Sequence

from sqlalchemy import Connection, Engine, select

from mailer_lib.agent.job import ControlFile, LeaseGrant
from mailer_lib.database.engine import read
from mailer_lib.database.schema import dispatch_servers, leases
from mailer_lib.dispatch.agent_keeper import AgentKeeper
from mailer_lib.dispatch.channel import Channel, ChannelError
from mailer_lib.dispatch.job_files import bundle_bytes, make_job
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.sends import SendRecord
from mailer_lib.settings import Settings
from mailer_lib.terms import Control

PATIENCE_S = 180.0
_LOOK_S = 0.1


def slots_of(connection: Connection, send_id: int, server_id: int | None = None) -> list[Slot]:
    """Slots that had rows of a send, of one server or of all."""
    query = (
        select(dispatch_servers.c.id, dispatch_servers.c.name, leases.c.slot)
        .join_from(leases, dispatch_servers, leases.c.server_id == dispatch_servers.c.id)
        .where(leases.c.send_id == send_id)
        .distinct()
        .order_by(dispatch_servers.c.name, leases.c.slot)
    )
    if server_id is not None:
        query = query.where(dispatch_servers.c.id == server_id)
    rows = connection.execute(query)
    return [Slot(row.name, row.id, row.slot, f"{row.name}.{row.slot}") for row in rows]


def run_once(
    engine: Engine,
    settings: Settings,
    send: SendRecord,
    slot: Slot,
    channel: Channel,
    *,
    control: Control,
    grants: Sequence[LeaseGrant] = (),
    suppressions: Sequence[str] = (),
    keep_queue: bool = False,
) -> None:
    """Let the agent do what ``control`` says with the job folder that is there, and wait for its end. Its shards must
    lie in the folder already. Nothing is granted that wasn't granted before.

    Raises:
        ChannelError: no agent ever worked in the folder, another one works there now, or this one ended in error.
        SendError, FleetError, SecretRefError: message, server, domain or a secret is missing.
    """
    last = channel.read_control()
    if last is None:
        raise ChannelError(f"{slot.folder} has no job folder of {send.ref}: nothing is known about its queue")
    if channel.is_alive():
        raise ChannelError(f"an agent works for {slot.folder} in {send.ref} at this moment; stop the send first")
    with read(engine) as connection:
        job, secrets = make_job(connection, settings, send, slot, bundle_bytes(settings, send))
    channel.prepare(job, bundle_bytes(settings, send), secrets)
    fresh = sorted(set(suppressions) - channel.suppressions())
    if fresh:
        channel.append_suppressions(fresh)
    channel.write_control(
        ControlFile(
            generation=last.generation + 1,
            control=control,
            limits=job.limits,
            expires_at=job.expires_at,
            leases=tuple(grants),
            keep_queue=keep_queue,
            complete=True,
        )
    )
    channel.start()
    give_up_at = time.monotonic() + PATIENCE_S
    while channel.is_alive():
        if time.monotonic() > give_up_at:
            AgentKeeper(channel, slot.label).end()
            raise ChannelError(f"the agent of {slot.folder} didn't end within {PATIENCE_S:.0f} s; try it again")
        time.sleep(_LOOK_S)
    status = channel.status()
    if status is None or status.state != "done" or status.generation != last.generation + 1:
        said = "\n".join(channel.log_tail(4))
        raise ChannelError(f"the agent of {slot.folder} ended without doing its work; its log says:\n{said}")
