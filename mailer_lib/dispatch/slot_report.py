"""``slot_reports``: each slot's last word in the central database, for who watches and for slots that share a pace."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine, and_, case, func, insert, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, leases, shards, slot_reports
from mailer_lib.dispatch.caps import room
from mailer_lib.dispatch.grant_counts import caps_of_server
from mailer_lib.dispatch.lease import MAY_JOIN, MAY_TAKE, parked, transact
from mailer_lib.dispatch.over_quota import expires_now
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.provider_counts import caps_of_providers, pool_of
from mailer_lib.dispatch.sends import get_send
from mailer_lib.dispatch.slot_rules import SlotProgress, SlotState
from mailer_lib.dispatch.zones import Zones
from mailer_lib.terms import Control, LeaseState, OverQuota, SendState, ShardState

GONE_AFTER = timedelta(minutes=5)  # a slot that said nothing for so long is not coming back by itself
ENDED_AFTER = timedelta(seconds=90)  # the same for one that said that it ends or failed: a retry may still come


@dataclass(frozen=True)
class SlotRow:
    """A row of ``slot_reports``."""

    server: str
    server_id: int
    slot: int
    state: SlotState
    reason: str
    per_s: float
    in_flight: int
    deferred: int
    at: datetime


@dataclass(frozen=True)
class ShardsLeft:
    """How many shards without an outcome for every row are alike."""

    zone: str | None
    provider: str | None
    is_open: bool
    parked: bool  # what is left of them waits for a decision
    count: int


def shards_left(connection: Connection, send_id: int, decided_variant: int | None) -> list[ShardsLeft]:
    """What is unsettled of a send."""
    table = shards.c
    waits = case((and_(table.state == ShardState.OPEN, parked(decided_variant)), 1), else_=0)
    rows = connection.execute(
        select(table.zone, table.provider, table.state, waits.label("waits"), func.count().label("shards"))
        .where(table.send_id == send_id, table.state != ShardState.SETTLED)
        .group_by(table.zone, table.provider, table.state, waits)
    )
    return [
        ShardsLeft(row.zone, row.provider, row.state == ShardState.OPEN, bool(row.waits), row.shards) for row in rows
    ]


def say(engine: Engine, send_id: int, slot: Slot, progress: SlotProgress) -> None:
    """Store the slot's word."""
    key = {"send_id": send_id, "server_id": slot.server_id, "slot": slot.slot}
    values = {
        "state": progress.state,
        "reason": progress.reason or None,
        "per_s": progress.per_s,
        "in_flight": progress.in_flight,
        "deferred": progress.deferred,
        "at": now(),
    }

    def work(connection: Connection) -> None:
        table = slot_reports
        mine = (table.c.send_id == send_id) & (table.c.server_id == slot.server_id) & (table.c.slot == slot.slot)
        if connection.execute(update(table).where(mine).values(**values)).rowcount == 0:
            connection.execute(insert(table).values(**key, **values))

    transact(engine, work)


def slot_rows(connection: Connection, send_id: int) -> list[SlotRow]:
    """What the slots of a send said last, by server and slot."""
    rows = connection.execute(
        select(slot_reports, dispatch_servers.c.name)
        .join(dispatch_servers, slot_reports.c.server_id == dispatch_servers.c.id)
        .where(slot_reports.c.send_id == send_id)
        .order_by(dispatch_servers.c.name, slot_reports.c.slot)
    )
    return [
        SlotRow(
            server=row.name,
            server_id=row.server_id,
            slot=row.slot,
            state=SlotState(row.state),
            reason=row.reason or "",
            per_s=row.per_s,
            in_flight=row.in_flight,
            deferred=row.deferred,
            at=row.at,
        )
        for row in rows
    ]


def is_coming_back(
    state: SlotState, silent: timedelta, ended_after: timedelta = ENDED_AFTER, *, rested: bool = False
) -> bool:
    """Whether a slot that holds rows can be expected to go on with them. ``rested``: the send window was shut."""
    if state == SlotState.IDLE and rested:
        return True
    if state in (SlotState.FAILED, SlotState.LEFT, SlotState.FENCED):
        return silent < ended_after
    return silent < GONE_AFTER


def holders(
    connection: Connection, send_id: int, *, ended_after: timedelta = ENDED_AFTER, rested: bool = False
) -> tuple[list[str], list[str]]:
    """Labels of the slots that hold active leases of a send: (those at work, those that aren't coming back)."""
    held = connection.execute(
        select(leases.c.server_id, leases.c.slot, dispatch_servers.c.name)
        .join(dispatch_servers, leases.c.server_id == dispatch_servers.c.id)
        .where(leases.c.send_id == send_id, leases.c.state == LeaseState.ACTIVE)
        .distinct()
    ).all()
    said = {(row.server_id, row.slot): row for row in slot_rows(connection, send_id)}
    at = now()
    working: list[str] = []
    gone: list[str] = []
    for row in held:
        word = said.get((row.server_id, row.slot))
        alive = word is not None and is_coming_back(word.state, at - word.at, ended_after, rested=rested)
        (working if alive else gone).append(f"{row.name}.{row.slot}")
    return sorted(working), sorted(gone)


def nobody_sends(connection: Connection, send_id: int, *, ended_after: timedelta = ENDED_AFTER) -> bool:
    """Whether every slot that could send has had its last word, so that a standby server waits for nothing.

    False before any has said its first: slots start one after the other.
    """
    said = connection.execute(
        select(slot_reports.c.state, slot_reports.c.at)
        .join(dispatch_servers, slot_reports.c.server_id == dispatch_servers.c.id)
        .where(slot_reports.c.send_id == send_id, dispatch_servers.c.state.in_(MAY_TAKE))
    ).all()
    at = now()
    return bool(said) and all(_is_over(SlotState(row.state), at - row.at, ended_after) for row in said)


def _is_over(state: SlotState, silent: timedelta, ended_after: timedelta) -> bool:
    if state is SlotState.IDLE:  # deferred: it says nothing, and comes back
        return False
    live = (SlotState.STARTING, SlotState.SENDING, SlotState.WAITING, SlotState.PAUSED)
    return silent >= (GONE_AFTER if state in live else ended_after)


def worth_a_look(
    engine: Engine, send_id: int, server_id: int | None = None, *, ended_after: timedelta = ENDED_AFTER
) -> bool:
    """Whether an idle slot should call ``run_slot`` again: rows are free, or the send is over for it. Only reads.

    ``server_id``: the slot's; while a cap of that server is used up, free rows are nothing to it. ``ended_after``: the
    ``patience`` of that call.
    """
    with read(engine) as connection:
        send = get_send(connection, send_id)
        if send.state != SendState.RUNNING or send.control == Control.STOP:
            return True
        if send.expires_at is not None and send.expires_at <= now():
            return True
        left = [shard for shard in shards_left(connection, send_id, send.decided_variant) if not shard.parked]
        if not left:
            return True
        if server_id is not None and _waits_to_join(connection, server_id):
            return nobody_sends(connection, send_id, ended_after=ended_after)
        if send.control == Control.PAUSE:
            return False
        if expires_now(connection, send) is not None:
            return True
        zones = Zones.of(send.send_window, {shard.zone for shard in left}, now())
        if zones.why_shut():
            return False
        free = {shard.provider for shard in left if shard.is_open and zones.is_open(shard.zone)}
        if free and server_id is None:
            return True
        if free and server_id is not None and room(caps_of_server(connection, server_id, now())) != 0:
            capped = caps_of_providers(connection, pool_of(connection, server_id), now())
            if any(room(capped.get(provider or "", ())) != 0 for provider in free):
                return True
        if server_id is not None and _holds_idle(connection, send_id, server_id):
            kept = send.over_quota is OverQuota.WAITS
            return not kept or room(caps_of_server(connection, server_id, now())) != 0
        if any(shard.is_open for shard in left):
            return False  # their window opens later
        rested = zones.were_shut or send.over_quota is OverQuota.WAITS
        return not holders(connection, send_id, ended_after=ended_after, rested=rested)[0]


def _holds_idle(connection: Connection, send_id: int, server_id: int) -> bool:
    """Whether a slot of the server rests with granted rows: the window was shut before they were all sent."""
    mine = and_(leases.c.send_id == send_id, leases.c.server_id == server_id, leases.c.state == LeaseState.ACTIVE)
    held = set(connection.scalars(select(leases.c.slot).where(mine)))
    return any(row.server_id == server_id and row.slot in held and row.state is SlotState.IDLE
               for row in slot_rows(connection, send_id))  # fmt: skip


def _waits_to_join(connection: Connection, server_id: int) -> bool:
    state = connection.scalar(select(dispatch_servers.c.state).where(dispatch_servers.c.id == server_id))
    return state in MAY_JOIN


def forget(engine: Engine, send_id: int) -> None:
    """Drop the words of a send's slots: it is over."""
    with write(engine) as connection:
        connection.execute(slot_reports.delete().where(slot_reports.c.send_id == send_id))
