"""Who sends what how fast: the slots of a send, and the limits of each slot's job."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, Engine, func, select

from mailer_lib.agent.job import Limits
from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import dispatch_servers, provider_limits, slot_reports
from mailer_lib.dispatch.lease import MAY_TAKE
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


def slots_for(engine: Engine, send_id: int) -> list[Slot]:
    """The slots of the servers in the campaign's sending pool that may send now, by name."""
    with read(engine) as connection:
        send = get_send(connection, send_id)
        rows = connection.execute(
            select(dispatch_servers.c.id, dispatch_servers.c.name, dispatch_servers.c.slots)
            .where(dispatch_servers.c.pool_id == send.pool_id, dispatch_servers.c.state.in_(MAY_TAKE))
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
) -> Limits:
    """The limits of one slot: its share of what holds for its server, and of the whole send's pace.

    ``live_on_server`` counts this server's working slots of all sends, ``live_of_send`` this send's on all servers; the
    asking slot is in both, so each is at least 1.
    """
    on_server, of_send = max(1, live_on_server), max(1, live_of_send)
    bounds = []
    if server_per_hour is not None:
        bounds.append(server_per_hour / 3600 / on_server)
    if pace_per_s is not None:
        bounds.append(pace_per_s / of_send)
    return Limits(
        per_s=min(bounds) if bounds else None,
        provider_per_s={
            provider: per_hour / 3600 / on_server for provider, per_hour in sorted(provider_per_hour.items())
        },
    )


def limits_for(connection: Connection, send: SendRecord, slot: Slot) -> Limits:
    """``share_limits`` with what the database says at this moment."""
    server_per_hour = connection.scalar(
        select(dispatch_servers.c.per_hour).where(dispatch_servers.c.id == slot.server_id)
    )
    by_provider = connection.execute(
        select(provider_limits.c.provider, provider_limits.c.per_hour).where(provider_limits.c.pool_id == send.pool_id)
    )
    alive = (slot_reports.c.at >= now() - LIVE_FOR) & slot_reports.c.state.in_(WORKING)
    on_server = connection.scalar(select(func.count()).where(alive, slot_reports.c.server_id == slot.server_id))
    of_send = connection.scalar(select(func.count()).where(alive, slot_reports.c.send_id == send.id))
    return share_limits(
        server_per_hour=server_per_hour,
        provider_per_hour={row.provider: row.per_hour for row in by_provider},
        pace_per_s=send.pace_per_s,
        live_on_server=on_server or 0,
        live_of_send=of_send or 0,
    )
