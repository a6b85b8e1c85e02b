"""Servers of the world whose MTA is a real Exim that delivers to nobody by itself, with a queue for each send."""

from sqlalchemy import update

from mailer_lib.agent.mta_queue import EximQueue
from mailer_lib.database.engine import write
from mailer_lib.database.schema import dispatch_servers
from mailer_lib.fleet import domains
from tests.dispatch.real import DOMAIN
from tests.dispatch.world import World
from tests.mta.exim import Exim


def equip_with_exim(world: World, exim: Exim, server: int | None = None) -> None:
    """One server, or all of them."""
    with write(world.engine) as connection:
        domains.add(connection, world.settings, DOMAIN, actor="test")
        statement = update(dispatch_servers)
        if server is not None:
            statement = statement.where(dispatch_servers.c.id == world.servers[server])
        connection.execute(
            statement.values(
                smtp_host="127.0.0.1",
                smtp_port=exim.port,
                mta="exim",
                mta_log=str(exim.log),
                mta_spool=str(exim.spool),
                mta_queues=True,
                mta_command=exim.command,
            )
        )


def queue_of(exim: Exim, send_id: int) -> EximQueue:
    return EximQueue(exim.spool, (f"s{send_id}", ""), tuple(exim.command.split()))
