"""Warm-up: how many messages a new sending address may hand over on each of its first days, and who set the ramp.

Mailbox providers judge an address by its history. One that is new and sends much is deferred or blocked, whatever it
sends. So a server in the state WARMING is held to a *ramp*: a number of messages for each day since its first.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, Table, select, update

from mailer_lib.database.audit import record
from mailer_lib.database.schema import dispatch_servers, sending_pools
from mailer_lib.fleet import pools, servers
from mailer_lib.fleet.names import FleetError

DEFAULT_RAMP = (
    50, 100, 500, 1_000, 5_000, 10_000, 20_000, 40_000, 70_000, 100_000, 150_000, 250_000, 400_000, 600_000,
)  # fmt: skip
MAX_DAYS = 366


def check_ramp(quotas: Iterable[int]) -> tuple[int, ...]:
    """
    Raises:
        FleetError: no day or too many, a quota under 1, or one below the day's before.
    """
    ramp = tuple(quotas)
    if not 1 <= len(ramp) <= MAX_DAYS:
        raise FleetError(f"a ramp has 1 to {MAX_DAYS} days, not {len(ramp)}")
    for day, quota in enumerate(ramp, 1):
        if quota < 1:
            raise FleetError(f"day {day} of the ramp: a quota is at least 1 message, not {quota}")
        if day > 1 and quota < ramp[day - 2]:
            raise FleetError(f"day {day} of the ramp has {quota:,}, less than the {ramp[day - 2]:,} of the day before")
    return ramp


def day_of(warming_from: datetime | None, at: datetime) -> int:
    """Which day of the ramp (in UTC) it is: 1 on the first day that something is granted, and until then."""
    return 1 if warming_from is None else max(1, (at.date() - warming_from.date()).days + 1)


def quota(ramp: tuple[int, ...], day: int) -> int | None:
    """Messages on this day of the ramp; None after its last day: no bound any more."""
    return ramp[day - 1] if day <= len(ramp) else None


def is_through(ramp: tuple[int, ...], warming_from: datetime | None, at: datetime) -> bool:
    """Whether the last day of the ramp is over; one that was never begun isn't."""
    return warming_from is not None and quota(ramp, day_of(warming_from, at)) is None


def left_of(ramp: tuple[int, ...], day: int) -> timedelta:
    """How long the ramp still lasts, the present day included."""
    return timedelta(days=max(0, len(ramp) - day + 1))


def effective_ramp(of_server: Iterable[int] | None, of_pool: Iterable[int] | None) -> tuple[int, ...]:
    """The server's own ramp, else its sending pool's, else the default."""
    return tuple(of_server or of_pool or DEFAULT_RAMP)


def ramp_of_server(connection: Connection, name: str) -> tuple[tuple[int, ...], str]:
    """The ramp that holds for a server, and whose it is.

    Raises:
        FleetError: there is no such server.
    """
    server = servers.get(connection, name)
    of_pool = connection.scalar(select(sending_pools.c.warmup).where(sending_pools.c.id == server.pool_id))
    whose = f"of {name}" if server.warmup else f"of the sending pool {server.pool}" if of_pool else "the default"
    return effective_ramp(server.warmup, of_pool), whose


def set_server_ramp(connection: Connection, name: str, ramp: tuple[int, ...] | None, *, actor: str) -> None:
    """Give a server a ramp of its own; None: its sending pool's again.

    Raises:
        FleetError: no such server, or a ramp that can't be used.
    """
    server = servers.get(connection, name)
    _store(connection, dispatch_servers, server.id, ramp)
    record(connection, actor, "warmup", f"server:{name}", {"before": server.warmup, "ramp": ramp})


def set_pool_ramp(connection: Connection, name: str, ramp: tuple[int, ...] | None, *, actor: str) -> None:
    """Give the servers of a sending pool a ramp; None: the default again.

    Raises:
        FleetError: no such sending pool, or a ramp that can't be used.
    """
    pool = pools.get(connection, name)
    _store(connection, sending_pools, pool.id, ramp)
    record(connection, actor, "warmup", f"pool:{name}", {"before": pool.warmup, "ramp": ramp})


def _store(connection: Connection, table: Table, key: int, ramp: tuple[int, ...] | None) -> None:
    stored = None if ramp is None else list(check_ramp(ramp))
    connection.execute(update(table).where(table.c.id == key).values(warmup=stored))
