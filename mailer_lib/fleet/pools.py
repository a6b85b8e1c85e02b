"""Sending pools, and how much their servers, each or all together, may hand over to a mailbox provider."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from mailer_lib.contacts.providers import PROVIDERS
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import (
    dispatch_servers,
    provider_grant_counts,
    provider_limits,
    rollups_hourly,
    sending_pools,
)
from mailer_lib.fleet.names import FleetError, check_name
from mailer_lib.terms import CapSpan, Outcome

KINDS = ("per_hour", "shared_per_hour", "hourly_cap", "daily_cap")


@dataclass(frozen=True)
class Pool:
    id: int
    name: str
    per_hour: dict[str, int] = field(default_factory=dict)  # by mailbox provider, for each server; absent: no limit
    shared_per_hour: dict[str, int] = field(default_factory=dict)  # likewise, for all servers together
    hourly_cap: dict[str, int] = field(default_factory=dict)  # rows granted in an hour, for all servers together
    daily_cap: dict[str, int] = field(default_factory=dict)  # likewise on a day
    warmup: tuple[int, ...] | None = None  # ramp of its servers; None: the default


def ensure(connection: Connection, name: str, *, actor: str) -> int:
    """The id of the sending pool; made when there is none of that name.

    Raises:
        FleetError: the name can't be used.
    """
    found: int | None = connection.execute(
        select(sending_pools.c.id).where(sending_pools.c.name == name)
    ).scalar_one_or_none()
    if found is not None:
        return found
    done = connection.execute(insert(sending_pools).values(name=check_name("sending pool", name), created_at=now()))
    record(connection, actor, "add", f"pool:{name}")
    key = done.inserted_primary_key
    assert key is not None
    return int(key[0])


def get(connection: Connection, name: str) -> Pool:
    """
    Raises:
        FleetError: there is no such sending pool; the sentence names those that there are.
    """
    for pool in list_pools(connection):
        if pool.name == name:
            return pool
    names = ", ".join(pool.name for pool in list_pools(connection)) or "none yet: mailfleet pool add NAME"
    raise FleetError(f"there is no sending pool {name!r} (there are: {names})")


def list_pools(connection: Connection) -> list[Pool]:
    """Every sending pool with its limits, by name."""
    limits: dict[int, dict[str, dict[str, int]]] = {}
    for row in connection.execute(select(provider_limits).order_by(provider_limits.c.provider)):
        of_pool = limits.setdefault(row.pool_id, {kind: {} for kind in KINDS})
        for kind in KINDS:
            if row._mapping[kind] is not None:
                of_pool[kind][row.provider] = row._mapping[kind]
    rows = connection.execute(select(sending_pools).order_by(sending_pools.c.name))
    return [
        Pool(
            row.id,
            row.name,
            warmup=tuple(row.warmup) if row.warmup else None,
            **limits.get(row.id, {}),
        )
        for row in rows
    ]


def set_limit(
    connection: Connection, name: str, provider: str, per_hour: int | None, *, actor: str, shared: bool = False
) -> None:
    """Let each server of the pool, or with ``shared`` all of them together, hand over at most ``per_hour`` messages to
    ``provider``; None lifts the limit. The two kinds hold side by side.

    Raises:
        FleetError: no such pool or mailbox provider, or a limit under 1 (a provider isn't stopped by a limit of 0).
    """
    _change(connection, name, provider, "shared_per_hour" if shared else "per_hour", per_hour, actor=actor)


def set_cap(connection: Connection, name: str, provider: str, span: CapSpan, rows: int | None, *, actor: str) -> None:
    """Let all servers of the pool together be granted at most ``rows`` for ``provider`` in an hour, or on a day (UTC);
    None lifts the cap. What was handed over in the present hour or on the present day counts from the start.

    Raises:
        FleetError: no such pool or mailbox provider, or a cap under 1.
    """
    pool = _change(connection, name, provider, "hourly_cap" if span is CapSpan.HOUR else "daily_cap", rows, actor=actor)
    counts = provider_grant_counts
    at = now().replace(minute=0, second=0, microsecond=0)
    for each in CapSpan if rows is not None else ():
        starts_at = at if each is CapSpan.HOUR else at.replace(hour=0)
        mine = {"pool_id": pool.id, "provider": provider, "span": each, "starts_at": starts_at}
        same = and_(*(counts.c[column] == value for column, value in mine.items()))
        gone = _handed_over(connection, pool.id, provider, starts_at)
        counted = connection.scalar(select(counts.c.rows).where(same))
        if counted is None:
            connection.execute(insert(counts).values(**mine, rows=gone))
        elif counted < gone:  # there was no cap for a while
            connection.execute(update(counts).where(same).values(rows=gone))


def _handed_over(connection: Connection, pool_id: int, provider: str, since: datetime) -> int:
    table = rollups_hourly.c
    taken = table.metric.in_((Outcome.INJECTED, Outcome.REJECTED))
    servers = select(dispatch_servers.c.id).where(dispatch_servers.c.pool_id == pool_id)
    mine = and_(table.server_id.in_(servers), table.provider == provider, table.hour >= since, taken)
    return int(connection.scalar(select(func.sum(table.count)).where(mine)) or 0)


def _change(connection: Connection, name: str, provider: str, changed: str, most: int | None, *, actor: str) -> Pool:
    """Set one kind of limit beside the others."""
    pool = get(connection, name)
    if provider not in PROVIDERS:
        raise FleetError(f"{provider!r} isn't a mailbox provider that is told apart: {', '.join(sorted(PROVIDERS))}")
    if most is not None and most < 1:
        raise FleetError("a limit is at least 1 message; to stop sending, pause the send or drain the server")
    before = {kind: getattr(pool, kind).get(provider) for kind in KINDS}
    after = before | {changed: most}
    mine = (provider_limits.c.pool_id == pool.id) & (provider_limits.c.provider == provider)
    connection.execute(delete(provider_limits).where(mine))
    if any(limit is not None for limit in after.values()):
        connection.execute(insert(provider_limits).values(pool_id=pool.id, provider=provider, **after))
    detail = {"provider": provider, changed: most, "before": before[changed]}
    record(connection, actor, "limit", f"pool:{name}", detail)
    return pool
