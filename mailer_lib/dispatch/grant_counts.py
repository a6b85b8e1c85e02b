"""``grant_counts``: rows granted to each server, by hour and by day in UTC. The counter that caps are held by."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, insert, or_, select, update

from mailer_lib.database.schema import dispatch_servers, grant_counts, leases, sending_pools
from mailer_lib.dispatch.caps import Cap, CapRules, NewAddress, caps_at, span_start
from mailer_lib.fleet import sources
from mailer_lib.fleet.warmup import effective_ramp
from mailer_lib.terms import CapSpan, ServerState

KEEP_HOURS_FOR = timedelta(days=7)


def rules_of(connection: Connection, server_id: int) -> CapRules:
    """What an operator set for a server."""
    columns = dispatch_servers.c
    row = connection.execute(
        select(
            columns.name,
            columns.state,
            columns.per_hour,
            columns.per_day,
            columns.warming_from,
            columns.warmup,
            sending_pools.c.warmup.label("pool_warmup"),
        )
        .join_from(dispatch_servers, sending_pools)
        .where(columns.id == server_id)
    ).one()
    ramp = effective_ramp(row.warmup, row.pool_warmup)
    used = [one for one in sources.of_server(connection, server_id) if one.in_use]
    new = tuple(NewAddress(one.address, ramp, one.warming_from) for one in used if not one.warmed)
    of_server = ramp if row.state == ServerState.WARMING else None
    return CapRules(row.name, row.per_hour, row.per_day, of_server, row.warming_from, max(1, len(used)), new)


def used_at(connection: Connection, server_id: int, at: datetime) -> dict[CapSpan, int]:
    """Rows granted to a server in the hour and on the day of ``at``."""
    table = grant_counts.c
    spans = [and_(table.span == span, table.starts_at == span_start(span, at)) for span in CapSpan]
    rows = connection.execute(select(table.span, table.rows).where(table.server_id == server_id, or_(*spans)))
    return {CapSpan(row.span): row.rows for row in rows}


def caps_of_server(connection: Connection, server_id: int, at: datetime) -> tuple[Cap, ...]:
    """The bounds of a server at this moment, and what is used of them."""
    return caps_at(rules_of(connection, server_id), used_at(connection, server_id, at), at)


def count_grant(connection: Connection, server_id: int, rows: int, at: datetime) -> bool:
    """Count ``rows`` more for a server, in the transaction that grants them. False: a cap has no room for so many (then
    the transaction must not be committed)."""
    rules = rules_of(connection, server_id)
    caps = caps_at(rules, {}, at)
    for span in CapSpan:
        most = min((cap.rows for cap in caps if cap.span is span), default=None)
        whose = {"server_id": server_id, "span": span, "starts_at": span_start(span, at)}
        grown = grow(connection, grant_counts, whose, rows, most)
        if grown is None:
            return False
        if grown and span is CapSpan.DAY:
            drop_old_hours(connection, grant_counts, grant_counts.c.server_id == server_id, at)
    if rules.ramp is not None and rules.warming_from is None:
        first = and_(dispatch_servers.c.id == server_id, dispatch_servers.c.warming_from.is_(None))
        today = span_start(CapSpan.DAY, at)
        connection.execute(update(dispatch_servers).where(first).values(warming_from=today))
    if any(new.warming_from is None for new in rules.new_addresses):
        sources.begin_warming(connection, server_id, span_start(CapSpan.DAY, at))
    return True


def grow(connection: Connection, table: Table, whose: Mapping[str, Any], rows: int, most: int | None) -> bool | None:
    """Add ``rows`` to a counter. True: it is a new one; None: it would pass ``most``."""
    if most is not None and rows > most:
        return None
    mine = and_(*(table.c[name] == value for name, value in whose.items()))
    fits = mine if most is None else and_(mine, table.c.rows <= most - rows)
    if connection.execute(update(table).where(fits).values(rows=table.c.rows + rows)).rowcount:
        return False
    if most is not None and connection.scalar(select(table.c.rows).where(mine)) is not None:
        return None
    # two slots that insert it at the same moment: the database refuses one, and its transaction is run again
    connection.execute(insert(table).values(**whose, rows=rows))
    return True


def credit(connection: Connection, lease_id: int, rows: int, at: datetime) -> None:
    """Take back what was counted for granted rows that were dropped, in the transaction that accounts for them.

    A lease that began in an earlier hour or on an earlier day may have been granted them then: that span is over, and
    the present one isn't theirs to credit. So no more is ever sent in a span than its cap.
    """
    lease = connection.execute(select(leases.c.server_id, leases.c.created_at).where(leases.c.id == lease_id)).one()
    table = grant_counts.c
    for span in CapSpan:
        starts_at = span_start(span, at)
        if lease.server_id is None or lease.created_at < starts_at:
            continue
        mine = and_(table.server_id == lease.server_id, table.span == span, table.starts_at == starts_at)
        connection.execute(update(grant_counts).where(mine, table.rows >= rows).values(rows=table.rows - rows))


def drop_old_hours(connection: Connection, table: Table, mine: ColumnElement[bool], at: datetime) -> None:
    old = and_(mine, table.c.span == CapSpan.HOUR, table.c.starts_at < at - KEEP_HOURS_FOR)
    connection.execute(table.delete().where(old))
