"""``provider_grant_counts``: rows granted for a mailbox provider by all servers of a sending pool, by hour and by day.

Counted is only what has a cap (docs/decisions/0613): all servers of a pool grow the same counter.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, and_, or_, select, update

from mailer_lib.database.schema import dispatch_servers, leases, provider_grant_counts, provider_limits
from mailer_lib.dispatch.caps import Cap, CapRules, caps_at, span_start
from mailer_lib.dispatch.grant_counts import drop_old_hours, grow
from mailer_lib.terms import CapSpan


def provider_rules(connection: Connection, pool_id: int) -> dict[str, CapRules]:
    """What an operator set, by mailbox provider; those without a cap are left out."""
    table = provider_limits.c
    capped = or_(table.hourly_cap.is_not(None), table.daily_cap.is_not(None))
    rows = connection.execute(select(provider_limits).where(table.pool_id == pool_id, capped).order_by(table.provider))
    return {row.provider: CapRules(row.provider, row.hourly_cap, row.daily_cap) for row in rows}


def provider_used(connection: Connection, pool_id: int, at: datetime) -> dict[str, dict[CapSpan, int]]:
    """Rows granted in the hour and on the day of ``at``, by mailbox provider."""
    table = provider_grant_counts.c
    spans = [and_(table.span == span, table.starts_at == span_start(span, at)) for span in CapSpan]
    found: dict[str, dict[CapSpan, int]] = {}
    rows = select(table.provider, table.span, table.rows).where(table.pool_id == pool_id, or_(*spans))
    for row in connection.execute(rows):
        found.setdefault(row.provider, {})[CapSpan(row.span)] = row.rows
    return found


def caps_of_providers(connection: Connection, pool_id: int, at: datetime) -> dict[str, tuple[Cap, ...]]:
    """The caps of a sending pool at this moment, and what is used of them, by mailbox provider."""
    rules = provider_rules(connection, pool_id)
    used = provider_used(connection, pool_id, at) if rules else {}
    return {provider: caps_at(rule, used.get(provider, {}), at) for provider, rule in rules.items()}


def pool_of(connection: Connection, server_id: int) -> int:
    pool_id = connection.scalar(select(dispatch_servers.c.pool_id).where(dispatch_servers.c.id == server_id))
    assert pool_id is not None
    return int(pool_id)


def count_provider_grant(
    connection: Connection, pool_id: int, mix: Mapping[str, int] | None, at: datetime
) -> str | None:
    """Count the rows of a grant for the providers that have a cap, in the transaction that grants them.

    ``mix``: rows by mailbox provider; None: nobody looked. Returns why the transaction must not be committed.
    """
    rules = provider_rules(connection, pool_id)
    if not rules:
        return None
    if mix is None:
        return "a cap of a mailbox provider was set at this moment"
    for provider in sorted(mix.keys() & rules.keys()):
        mine = and_(provider_grant_counts.c.pool_id == pool_id, provider_grant_counts.c.provider == provider)
        caps = caps_at(rules[provider], {}, at)
        for span in CapSpan:
            most = min((cap.rows for cap in caps if cap.span is span), default=None)
            whose = {"pool_id": pool_id, "provider": provider, "span": span, "starts_at": span_start(span, at)}
            grown = grow(connection, provider_grant_counts, whose, mix[provider], most)
            if grown is None:
                return f"{mix[provider]} more rows would pass the cap of {provider}"
            if grown and span is CapSpan.DAY:
                drop_old_hours(connection, provider_grant_counts, mine, at)
    return None


def credit_providers(connection: Connection, lease_id: int, rows: Mapping[str, int], at: datetime) -> None:
    """Take back what was counted for granted rows that were dropped, as ``grant_counts.credit`` does."""
    lease = connection.execute(select(leases.c.server_id, leases.c.created_at).where(leases.c.id == lease_id)).one()
    if lease.server_id is None:
        return
    pool_id, table = pool_of(connection, lease.server_id), provider_grant_counts.c
    for provider in sorted(provider_rules(connection, pool_id).keys() & rows.keys()):
        for span in CapSpan:
            starts_at = span_start(span, at)
            if lease.created_at < starts_at:
                continue
            whose = and_(table.pool_id == pool_id, table.provider == provider)
            mine = and_(whose, table.span == span, table.starts_at == starts_at, table.rows >= rows[provider])
            connection.execute(update(provider_grant_counts).where(mine).values(rows=table.rows - rows[provider]))
