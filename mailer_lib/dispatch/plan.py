"""Who sends what how fast: the slots of a send, and the limits of each slot's job."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.agent.job import Limits
from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import dispatch_servers, provider_limits, slot_reports
from mailer_lib.dispatch.lease import MAY_JOIN, MAY_TAKE
from mailer_lib.dispatch.sends import SendRecord, get_send

LIVE_FOR = timedelta(seconds=15)  # a slot that said something in this time shares limits with the others
WORKING = ("starting", "sending", "waiting")


@dataclass(frozen=True)
class Slot:
    """One agent process of one server. ``label`` is what people read: the server's name, numbered if it has several."""

    server: str
    server_id: int
    slot: int
    label: str

    @property
    def folder(self) -> str:
        """Name of its job folder."""
        return f"{self.server}.{self.slot}"


def slots_for(engine: Engine, send_id: int, *, joining: bool = False) -> list[Slot]:
    """The slots of the servers in the campaign's sending pool that may send now, by name.

    With ``joining`` also those of standby servers, and of servers that are being set up: such a slot idles until its
    server becomes active or warming, because nothing can be added to a mapping later.
    """
    states = (*MAY_TAKE, *MAY_JOIN) if joining else MAY_TAKE
    with read(engine) as connection:
        send = get_send(connection, send_id)
        rows = connection.execute(
            select(dispatch_servers.c.id, dispatch_servers.c.name, dispatch_servers.c.slots)
            .where(dispatch_servers.c.pool_id == send.pool_id, dispatch_servers.c.state.in_(states))
            .order_by(dispatch_servers.c.name)
        ).all()
    return [
        Slot(row.name, row.id, number, row.name if row.slots == 1 else f"{row.name}.{number}")
        for row in rows
        for number in range(row.slots)
    ]


def share_limits(
    *,
    server_per_hour: int | None,
    provider_per_hour: Mapping[str, int],
    pace_per_s: float | None,
    live_on_server: int,
    live_of_send: int,
    shared_per_hour: Mapping[str, int] | None = None,
    live_in_pool: int = 1,
) -> Limits:
    """The limits of one slot: its share of what holds for its server, for its sending pool and for the whole send.

    ``live_on_server`` counts this server's working slots of all sends, ``live_in_pool`` those of all servers of the
    sending pool, which divide ``shared_per_hour``, ``live_of_send`` this send's on all servers; the asking slot is in
    each, so each is at least 1.
    """
    on_server, of_send, in_pool = max(1, live_on_server), max(1, live_of_send), max(1, live_in_pool)
    bounds = []
    if server_per_hour is not None:
        bounds.append(server_per_hour / 3600 / on_server)
    if pace_per_s is not None:
        bounds.append(pace_per_s / of_send)
    of_server = {provider: per_hour / 3600 / on_server for provider, per_hour in provider_per_hour.items()}
    of_pool = {provider: per_hour / 3600 / in_pool for provider, per_hour in (shared_per_hour or {}).items()}
    return Limits(
        per_s=min(bounds) if bounds else None,
        provider_per_s={
            provider: min(limits[provider] for limits in (of_server, of_pool) if provider in limits)
            for provider in sorted(of_server.keys() | of_pool.keys())
        },
    )


def limits_for(connection: Connection, send: SendRecord, slot: Slot) -> Limits:
    """``share_limits`` with what the database says at this moment."""
    server_per_hour = connection.scalar(
        select(dispatch_servers.c.per_hour).where(dispatch_servers.c.id == slot.server_id)
    )
    by_provider = connection.execute(select(provider_limits).where(provider_limits.c.pool_id == send.pool_id)).all()
    alive = (slot_reports.c.at >= now() - LIVE_FOR) & slot_reports.c.state.in_(WORKING)
    on_server = connection.scalar(select(func.count()).where(alive, slot_reports.c.server_id == slot.server_id))
    of_pool = slot_reports.c.server_id.in_(
        select(dispatch_servers.c.id).where(dispatch_servers.c.pool_id == send.pool_id)
    )
    in_pool = connection.scalar(select(func.count()).where(alive, of_pool))
    of_send = connection.scalar(select(func.count()).where(alive, slot_reports.c.send_id == send.id))
    return share_limits(
        server_per_hour=server_per_hour,
        provider_per_hour={row.provider: row.per_hour for row in by_provider if row.per_hour is not None},
        pace_per_s=send.pace_per_s,
        live_on_server=on_server or 0,
        live_of_send=of_send or 0,
        shared_per_hour={row.provider: row.shared_per_hour for row in by_provider if row.shared_per_hour is not None},
        live_in_pool=in_pool or 0,
    )
