"""Sending pools, and how much their servers, each or all together, may hand over to a mailbox provider in an hour."""

from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, insert, select

from mailer_lib.contacts.providers import PROVIDERS
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import provider_limits, sending_pools
from mailer_lib.fleet.names import FleetError, check_name


@dataclass(frozen=True)
class Pool:
    id: int
    name: str
    per_hour: dict[str, int] = field(default_factory=dict)  # by mailbox provider, for each server; absent: no limit
    shared_per_hour: dict[str, int] = field(default_factory=dict)  # likewise, for all servers together
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
    each: dict[int, dict[str, int]] = {}
    shared: dict[int, dict[str, int]] = {}
    for row in connection.execute(select(provider_limits).order_by(provider_limits.c.provider)):
        for limits, per_hour in ((each, row.per_hour), (shared, row.shared_per_hour)):
            if per_hour is not None:
                limits.setdefault(row.pool_id, {})[row.provider] = per_hour
    rows = connection.execute(select(sending_pools).order_by(sending_pools.c.name))
    return [
        Pool(
            row.id,
            row.name,
            each.get(row.id, {}),
            shared.get(row.id, {}),
            tuple(row.warmup) if row.warmup else None,
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
    pool = get(connection, name)
    if provider not in PROVIDERS:
        raise FleetError(f"{provider!r} isn't a mailbox provider that is told apart: {', '.join(sorted(PROVIDERS))}")
    if per_hour is not None and per_hour < 1:
        raise FleetError("a limit is at least 1 message an hour; to stop sending, pause the send or drain the server")
    before = {"per_hour": pool.per_hour.get(provider), "shared_per_hour": pool.shared_per_hour.get(provider)}
    changed = "shared_per_hour" if shared else "per_hour"
    after = before | {changed: per_hour}
    mine = (provider_limits.c.pool_id == pool.id) & (provider_limits.c.provider == provider)
    connection.execute(delete(provider_limits).where(mine))
    if any(limit is not None for limit in after.values()):
        connection.execute(insert(provider_limits).values(pool_id=pool.id, provider=provider, **after))
    record(
        connection,
        actor,
        "limit",
        f"pool:{name}",
        {"provider": provider, changed: per_hour, "before": before[changed]},
    )
