"""Addresses that a server's mail leaves from, when it has several: its sending pool's reputation spread over them.

Exim takes one at random for each connection, so each has an equal share. One that is new is warmed up by itself: what
the whole server is granted on a day is held to its quota times the number of addresses (``dispatch/caps.py``). A server
without any stored here sends from the address that its routes say.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import dispatch_servers, server_sources
from mailer_lib.fleet import servers
from mailer_lib.fleet.names import FleetError, check_address, check_host
from mailer_lib.terms import ChannelKind


@dataclass(frozen=True)
class Source:
    address: str
    helo_name: str
    warmed: bool  # mailbox providers know it
    in_use: bool  # Exim there is configured with it
    warming_from: datetime | None


def add(connection: Connection, server: str, address: str, *, helo_name: str, warmed: bool = False, actor: str) -> bool:
    """Store one more address of a server; it is used once the server is verified with it and configured. Returns
    whether anything changed.

    Raises:
        FleetError: there is no such server behind SSH, something is malformed, or the address is another's.
    """
    found = servers.get(connection, server)
    if found.channel is not ChannelKind.SSH:
        raise FleetError(f"{server} has the channel {found.channel}: only an Exim that we configure is given addresses")
    text, name = check_address(address), check_host(helo_name)
    taken = connection.execute(
        select(dispatch_servers.c.name, server_sources.c.helo_name, server_sources.c.warmed)
        .join(dispatch_servers)
        .where(server_sources.c.address == text)
    ).one_or_none()
    if taken is not None and taken.name != server:
        raise FleetError(f"{text} is an address of {taken.name}: remove it there first")
    if taken is not None and (taken.helo_name, taken.warmed) == (name, warmed):
        return False
    mine = server_sources.c.address == text
    if taken is None:
        connection.execute(
            insert(server_sources).values(
                server_id=found.id, address=text, helo_name=name, warmed=warmed, created_at=now()
            )
        )
    else:
        connection.execute(update(server_sources).where(mine).values(helo_name=name, warmed=warmed))
    record(connection, actor, "source", f"server:{server}", {"address": text, "helo_name": name, "warmed": warmed})
    return True


def remove(connection: Connection, server: str, address: str, *, actor: str) -> None:
    """
    Raises:
        FleetError: the server has no such address.
    """
    found = servers.get(connection, server)
    text = check_address(address)
    mine = (server_sources.c.server_id == found.id) & (server_sources.c.address == text)
    if not connection.execute(delete(server_sources).where(mine)).rowcount:
        known = ", ".join(one.address for one in of_server(connection, found.id)) or "none is stored"
        raise FleetError(f"{text} isn't an address of {server} ({known})")
    record(connection, actor, "source", f"server:{server}", {"removed": text})


def of_server(connection: Connection, server_id: int) -> list[Source]:
    """By the time that they were added."""
    query = select(server_sources).where(server_sources.c.server_id == server_id)
    return [
        _source(row)
        for row in connection.execute(query.order_by(server_sources.c.created_at, server_sources.c.address))
    ]


def set_in_use(connection: Connection, server_id: int, addresses: Collection[str]) -> None:
    """Its Exim sends from these, and no others, from now on."""
    mine = server_sources.c.server_id == server_id
    chosen = server_sources.c.address.in_(sorted(addresses))
    connection.execute(update(server_sources).where(mine, chosen).values(in_use=True))
    connection.execute(update(server_sources).where(mine, ~chosen).values(in_use=False))


def begin_warming(connection: Connection, server_id: int, day: datetime) -> None:
    """The first day of the ramp of each new address: when something is granted to its server."""
    new = (server_sources.c.server_id == server_id) & server_sources.c.in_use & ~server_sources.c.warmed
    connection.execute(
        update(server_sources).where(new, server_sources.c.warming_from.is_(None)).values(warming_from=day)
    )


def _source(row: Row[Any]) -> Source:
    return Source(row.address, row.helo_name, row.warmed, row.in_use, row.warming_from)
