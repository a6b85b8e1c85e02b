"""Rows for which no warming server has quota left on this day, by the send's setting (docs/decisions/0614)."""

from sqlalchemy import Connection, Engine, select

from mailer_lib.database.engine import now, read
from mailer_lib.database.schema import dispatch_servers, shards
from mailer_lib.dispatch.caps import HAND_BACK_FROM, Cap
from mailer_lib.dispatch.central_ledger import write_off
from mailer_lib.dispatch.grant_counts import caps_of_server
from mailer_lib.dispatch.lease import MAY_TAKE
from mailer_lib.dispatch.sends import SendRecord, get_send
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Outcome, OverQuota, ShardState


def expires_now(connection: Connection, send: SendRecord) -> Cap | None:
    """The quota that was used up last, when what is open of the send is to expire for it: no server of the sending pool
    may be granted more on this day, and all of them are warming. A test slice waits: it is judged when it is whole."""
    if send.over_quota is not OverQuota.EXPIRES:
        return None
    of_send = shards.c.send_id == send.id
    if (
        send.decided_variant is None
        and connection.execute(select(shards.c.id).where(of_send, shards.c.slice_rows.is_not(None)).limit(1)).first()
    ):
        return None
    if not connection.execute(select(shards.c.id).where(of_send, shards.c.state == ShardState.OPEN).limit(1)).first():
        return None
    table, at = dispatch_servers.c, now()
    serving = select(table.id).where(
        table.pool_id == send.pool_id, table.state.in_(MAY_TAKE), table.unreconciled.is_(False)
    )
    found: Cap | None = None
    for server_id in connection.scalars(serving.order_by(table.id)).all():
        spent = [cap for cap in caps_of_server(connection, server_id, at) if cap.warm_up and not cap.left]
        if not spent or spent[0].ends_at - at < HAND_BACK_FROM:
            return None
        found = spent[0]
    return found


def expire_beyond(engine: Engine, settings: Settings, send_id: int) -> int:
    """Book what is open as expired, if it is to be; returns how many rows. Twice is the same as once."""
    with read(engine) as connection:
        cap = expires_now(connection, get_send(connection, send_id))
    if cap is None:
        return 0
    why = f"the {cap.name} ({cap.rows:,}) was used up"
    return write_off(engine, store(settings), send_id, Outcome.EXPIRED, why)
