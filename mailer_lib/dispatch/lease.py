"""Leases and grants: which server may send which rows, decided by the database and by no clock.

A shard is leased under an *epoch*: one UPDATE guarded by the shard's state and epoch makes it so, or changes no row.
Rows are handed to an agent only after ``granted_through`` was stored here. Every change below is one short transaction
whose guard is its WHERE clause, so it doesn't matter who else is at work, or twice at work.

Invariants: a lease that ended has ``granted_through - first_row`` outcomes; the leases of a shard follow each other
without gap or overlap, the newest one alone can grow; the leases of a settled shard cover its rows exactly once.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import dispatch_servers, leases, sends, shards, snapshots
from mailer_lib.dispatch.grant_counts import count_grant
from mailer_lib.dispatch.provider_counts import count_provider_grant, pool_of
from mailer_lib.fleet.states import MAY_SEND
from mailer_lib.terms import Control, LeaseState, Outcome, SendState, ServerState, ShardState

MAY_TAKE = MAY_SEND
MAY_JOIN = (ServerState.STANDBY, ServerState.PROVISIONING, ServerState.VERIFYING)  # a running send, once they may take
MIN_GRANT_ROWS = 20
_CANDIDATES = 16  # shards looked at in one go
_ATTEMPTS = 6
_DEADLOCK = (1205, 1213)  # MySQL: lock wait timeout, deadlock; the remedy for both is to try again

T = TypeVar("T")


class LeaseLostError(RuntimeError):
    """The lease isn't this slot's any more, or was changed by another process at this moment."""


class UndecidedError(RuntimeError):
    """Rows outside the test slice were to be granted before anybody decided which variant they get."""


@dataclass(frozen=True)
class Lease:
    """A row of ``leases`` and what is needed of its shard and snapshot."""

    id: int
    send_id: int
    server_id: int | None
    slot: int
    state: LeaseState
    shard_id: int
    shard: int  # number
    shard_path: str  # below snapshot_path
    shard_rows: int
    sha256: str
    snapshot_path: str  # below the snapshot store
    phase: int
    epoch: int
    first_row: int
    granted_through: int
    ledger_bytes: int
    counts: Mapping[Outcome, int]
    deferrals: int
    may_grow: bool  # the shard still stands under this epoch; False once its other rows were handed back
    slice_rows: int | None = None  # of the shard, in the test slice; None: the send has none
    zone: str | None = None  # of the shard's people, where the send window asks for it (zones.py)
    provider: str | None = None  # of the shard's people; None: of all that have no shards of their own
    decided_variant: int | None = None  # what the rest gets; None: nobody has decided

    @property
    def free_through(self) -> int:
        """Rows [0, free_through) may be granted by now: all of them, or before the decision the test slice's."""
        return self.shard_rows if self.slice_rows is None or self.decided_variant is not None else self.slice_rows

    @property
    def grantable(self) -> int:
        """Rows that may still be granted under this lease."""
        return max(0, self.free_through - self.granted_through) if self.may_grow else 0

    @property
    def settled(self) -> int:
        """Rows that have an outcome."""
        return sum(self.counts.values())

    @property
    def granted(self) -> int:
        return self.granted_through - self.first_row

    @property
    def ledger_name(self) -> str:
        return f"{self.shard:04d}.p{self.phase}.e{self.epoch}.ledger"


def next_grant(
    rows: int, granted_through: int, settled_through: int, *, per_s: float, grant_s: float, elsewhere: int = 0
) -> int:
    """The new ``granted_through`` of a lease: what is granted and not settled covers ``grant_s`` of sending.

    Args:
        rows: of the shard.
        granted_through: so far.
        settled_through: ``first_row`` plus the rows that need no grant any more (settled, or waiting for a retry).
        per_s: at which the slot sends, measured or bounded.
        elsewhere: rows that the slot's other leases hold granted and unsettled.

    A grant is never taken back, and small top-ups wait until they are worth a transaction.
    """
    outstanding = granted_through - settled_through + elsewhere
    wanted = max(MIN_GRANT_ROWS, math.ceil(per_s * grant_s))
    missing = wanted - outstanding
    if missing <= 0 or (missing < wanted / 4 and outstanding > 0):
        return granted_through
    return min(rows, granted_through + missing)


def _select() -> Any:
    columns = select(
        leases,
        shards.c.number.label("shard"),
        shards.c.path.label("shard_path"),
        shards.c.rows.label("shard_rows"),
        shards.c.sha256,
        shards.c.slice_rows,
        shards.c.zone,
        shards.c.provider,
        sends.c.decided_variant,
        shards.c.epoch.label("shard_epoch"),
        shards.c.state.label("shard_state"),
        snapshots.c.path.label("snapshot_path"),
        snapshots.c.phase,
    )
    of_shards = columns.join_from(leases, shards, leases.c.shard_id == shards.c.id)
    of_snapshots = of_shards.join(snapshots, shards.c.snapshot_id == snapshots.c.id)
    return of_snapshots.join(sends, leases.c.send_id == sends.c.id)


def _lease(row: Any) -> Lease:
    m = row._mapping
    return Lease(
        id=m["id"],
        send_id=m["send_id"],
        server_id=m["server_id"],
        slot=m["slot"],
        state=LeaseState(m["state"]),
        shard_id=m["shard_id"],
        shard=m["shard"],
        shard_path=m["shard_path"],
        shard_rows=m["shard_rows"],
        sha256=m["sha256"],
        snapshot_path=m["snapshot_path"],
        phase=m["phase"],
        epoch=m["epoch"],
        first_row=m["first_row"],
        granted_through=m["granted_through"],
        ledger_bytes=m["ledger_bytes"],
        counts={outcome: m[outcome.value] for outcome in Outcome if m[outcome.value]},
        deferrals=m["deferrals"],
        may_grow=m["shard_epoch"] == m["epoch"] and m["shard_state"] == ShardState.LEASED,
        slice_rows=m["slice_rows"],
        zone=m["zone"],
        provider=m["provider"],
        decided_variant=m["decided_variant"],
    )


def get_lease(connection: Connection, lease_id: int) -> Lease:
    return _lease(connection.execute(_select().where(leases.c.id == lease_id)).one())


def leases_of_slot(connection: Connection, send_id: int, server_id: int, slot: int) -> list[Lease]:
    """The slot's active leases, oldest first."""
    query = _select().where(
        leases.c.send_id == send_id,
        leases.c.server_id == server_id,
        leases.c.slot == slot,
        leases.c.state == LeaseState.ACTIVE,
    )
    return [_lease(row) for row in connection.execute(query.order_by(leases.c.id))]


def leases_of_send(connection: Connection, send_id: int, *states: LeaseState, phase: int | None = None) -> list[Lease]:
    """Leases of a send by shard and epoch, all of them or those in ``states``."""
    query = _select().where(leases.c.send_id == send_id)
    if states:
        query = query.where(leases.c.state.in_(states))
    if phase is not None:
        query = query.where(snapshots.c.phase == phase)
    query = query.order_by(snapshots.c.phase, shards.c.number, leases.c.epoch)
    return [_lease(row) for row in connection.execute(query)]


def transact(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run ``work`` in a write transaction; again when the database chose it as a deadlock's victim."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with write(engine) as connection:
                return work(connection)
        except OperationalError as error:
            code = error.orig.args[0] if error.orig is not None and error.orig.args else None
            if code not in _DEADLOCK or attempt == _ATTEMPTS:
                raise
        except IntegrityError:  # two first rows of one roll-up at the same moment: the second try finds the first's
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _one(connection: Connection, statement: Any, what: str) -> None:
    if connection.execute(statement).rowcount != 1:
        raise LeaseLostError(what)


# --- taking and granting ----------------------------------------------------------------------------------------------


def take_lease(
    engine: Engine,
    send_id: int,
    server_id: int,
    slot: int,
    *,
    zones: Collection[str | None] | None = None,
    providers: Collection[str | None] | None = None,
) -> Lease | None:
    """Lease the first open shard to a slot, under the shard's next epoch. None: nothing is open, or nothing may be
    taken (the send isn't running, or is paused or stopped; the server isn't active or warming; what is left waits for
    a decision). ``zones``, ``providers``: only shards of these."""

    def work(connection: Connection) -> Lease | None:
        allowed = connection.execute(
            select(sends.c.decided_variant)
            .select_from(sends.join(dispatch_servers, dispatch_servers.c.id == server_id))
            .where(
                sends.c.id == send_id,
                sends.c.state == SendState.RUNNING,
                sends.c.control == Control.RUN,
                dispatch_servers.c.state.in_(MAY_TAKE),
                dispatch_servers.c.unreconciled.is_(False),  # whatever its state was made
            )
        ).one_or_none()
        if allowed is None:
            return None
        while True:
            candidates = connection.execute(
                select(shards.c.id, shards.c.epoch, shards.c.next_row)
                .where(shards.c.send_id == send_id, shards.c.state == ShardState.OPEN)
                .where(
                    ~parked(allowed.decided_variant), one_of(shards.c.zone, zones), one_of(shards.c.provider, providers)
                )
                .order_by(shards.c.snapshot_id, shards.c.number)
                .limit(_CANDIDATES)
            ).all()
            if not candidates:
                return None
            for shard in candidates:
                if _claim_shard(connection, shard.id, shard.epoch):
                    rows = (shard.next_row, shard.next_row)  # nothing is granted yet
                    return _insert(connection, send_id, shard, rows, server_id=server_id, slot=slot)

    return transact(engine, work)


def parked(decided_variant: int | None) -> ColumnElement[bool]:
    """Condition on an open shard: what is left of it waits for the decision after the test slice."""
    if decided_variant is not None:
        return false()
    return and_(shards.c.slice_rows.is_not(None), shards.c.next_row >= func.coalesce(shards.c.slice_rows, 0))


def one_of(column: ColumnElement[Any], values: Collection[str | None] | None) -> ColumnElement[bool]:
    """Condition on a column that may be NULL: it has one of these values; None: any."""
    if values is None:
        return true()
    named = column.in_([value for value in values if value is not None])
    return or_(named, column.is_(None)) if None in values else named


def take_central(engine: Engine, shard_id: int) -> Lease | None:
    """Lease what is left of an open shard to nobody: rows that no server may send any more. None: it isn't open."""

    def work(connection: Connection) -> Lease | None:
        shard = connection.execute(
            select(shards).where(shards.c.id == shard_id, shards.c.state == ShardState.OPEN)
        ).one_or_none()
        if shard is None or not _claim_shard(connection, shard.id, shard.epoch):
            return None
        connection.execute(update(shards).where(shards.c.id == shard.id).values(next_row=shard.rows))
        return _insert(connection, shard.send_id, shard, (shard.next_row, shard.rows), server_id=None, slot=0)

    return transact(engine, work)


def _claim_shard(connection: Connection, shard_id: int, epoch: int) -> bool:
    guard = and_(shards.c.id == shard_id, shards.c.state == ShardState.OPEN, shards.c.epoch == epoch)
    return (
        connection.execute(update(shards).where(guard).values(state=ShardState.LEASED, epoch=epoch + 1)).rowcount == 1
    )


def _insert(
    connection: Connection, send_id: int, shard: Any, rows: tuple[int, int], *, server_id: int | None, slot: int
) -> Lease:
    made = connection.execute(
        insert(leases).values(
            shard_id=shard.id,
            send_id=send_id,
            epoch=shard.epoch + 1,
            server_id=server_id,
            slot=slot,
            state=LeaseState.ACTIVE,
            first_row=rows[0],
            granted_through=rows[1],
            created_at=now(),
        )
    ).inserted_primary_key
    assert made is not None
    return get_lease(connection, made[0])


def extend_grant(
    engine: Engine, lease: Lease, granted_through: int, by_provider: Mapping[str, int] | None = None
) -> None:
    """Store a larger grant, counted against the caps of the server and of the mailbox providers. Only when this has
    returned may the agent hear of it. ``by_provider``: the rows that come to it; needed where a provider has a cap and
    the shard isn't of one provider alone.

    Raises:
        LeaseLostError: the lease ended, the shard went on to another epoch, or other slots took the rest of a cap.
        UndecidedError: beyond the test slice, and nobody has decided yet.
        ValueError: beyond the shard's rows, or a grant would shrink.
    """
    if not lease.granted_through <= granted_through <= lease.shard_rows:
        raise ValueError(
            f"a grant of {lease.ledger_name} can't go from {lease.granted_through} to {granted_through} "
            f"of {lease.shard_rows}"
        )

    decided = exists().where(sends.c.id == lease.send_id, sends.c.decided_variant.is_not(None))
    free = or_(shards.c.slice_rows.is_(None), shards.c.slice_rows >= granted_through, decided)

    def work(connection: Connection) -> None:
        gone = f"{lease.ledger_name} isn't leased under this epoch any more"
        granting = update(shards).where(_newest_epoch(lease), free).values(next_row=granted_through)
        if connection.execute(granting).rowcount != 1:
            present = get_lease(connection, lease.id)
            if granted_through > present.free_through:
                raise UndecidedError(
                    f"{lease.ledger_name}: rows from {present.free_through} on wait for a decision on their variant"
                )
            raise LeaseLostError(gone)
        _one(
            connection,
            update(leases)
            .where(
                leases.c.id == lease.id,
                leases.c.state == LeaseState.ACTIVE,
                leases.c.granted_through <= granted_through,
            )
            .values(granted_through=granted_through),
            gone,
        )
        more = granted_through - lease.granted_through
        if lease.server_id is None or not more:
            return
        if not count_grant(connection, lease.server_id, more, now()):
            raise LeaseLostError(f"{lease.ledger_name}: {more} more rows would pass a cap of its server")
        mix = by_provider if lease.provider is None else {lease.provider: more}
        barred = count_provider_grant(connection, pool_of(connection, lease.server_id), mix, now())
        if barred is not None:
            raise LeaseLostError(f"{lease.ledger_name}: {barred}")

    transact(engine, work)


# --- ending -----------------------------------------------------------------------------------------------------------


def hand_back(engine: Engine, lease: Lease) -> bool:
    """Open the rows that were never granted to other slots, while the lease goes on to settle those that were: its slot
    stops, or its server drains. Returns whether there was something to give. The lease gets no further grant.
    """

    def work(connection: Connection) -> bool:
        mine = _newest_epoch(lease) & (shards.c.next_row < shards.c.rows)
        return connection.execute(update(shards).where(mine).values(state=ShardState.OPEN)).rowcount == 1

    return transact(engine, work)


def settle_lease(engine: Engine, lease_id: int) -> ShardState:
    """End a lease whose granted rows all have outcomes; returns the state of its shard: settled when every row has one,
    open when rows were never granted, leased while another lease of it is at work. Twice is the same as once.

    Raises:
        LeaseLostError: rows without an outcome, or the lease was lost.
    """

    def work(connection: Connection) -> ShardState:
        lock_shard_of(connection, lease_id)
        lease = get_lease(connection, lease_id)
        if lease.state == LeaseState.LOST:
            raise LeaseLostError(f"{lease.ledger_name} was lost; it can't be settled")
        if lease.settled != lease.granted:
            raise LeaseLostError(
                f"{lease.ledger_name} has outcomes for {lease.settled} of {lease.granted} granted rows, so it can't be "
                "settled"
            )
        _end(connection, lease, LeaseState.SETTLED)
        return _shard_after(connection, lease)

    return transact(engine, work)


def lose_lease(engine: Engine, lease_id: int) -> Lease:
    """Give up a lease whose server is gone for good. From here its rows that were never granted are open to others, and
    nothing more is granted or accounted under its epoch; ``loss.py`` then books what is unknown.

    Raises:
        LeaseLostError: the lease had been settled.
    """

    def work(connection: Connection) -> Lease:
        lock_shard_of(connection, lease_id)
        lease = get_lease(connection, lease_id)
        if lease.state == LeaseState.SETTLED:
            raise LeaseLostError(f"{lease.ledger_name} was settled; there is nothing to lose")
        _end(connection, lease, LeaseState.LOST)
        _shard_after(connection, lease)
        return get_lease(connection, lease_id)

    return transact(engine, work)


def settle_shard_of(connection: Connection, lease: Lease) -> None:
    """After a lost lease was booked: its shard may be settled now."""
    lock_shard_of(connection, lease.id)
    _shard_after(connection, lease)


def _newest_epoch(lease: Lease) -> Any:
    return and_(shards.c.id == lease.shard_id, shards.c.epoch == lease.epoch, shards.c.state == ShardState.LEASED)


def lock_shard_of(connection: Connection, lease_id: int) -> None:
    """Two leases of one shard that end at the same moment must see each other: the shard's row is their lock."""
    shard_id = select(leases.c.shard_id).where(leases.c.id == lease_id).scalar_subquery()
    connection.execute(update(shards).where(shards.c.id == shard_id).values(next_row=shards.c.next_row))


def _end(connection: Connection, lease: Lease, state: LeaseState) -> None:
    if lease.state == state:
        return
    unchanged = and_(
        leases.c.id == lease.id,
        leases.c.state == LeaseState.ACTIVE,
        leases.c.granted_through == lease.granted_through,
        leases.c.ledger_bytes == lease.ledger_bytes,
    )
    changed = update(leases).where(unchanged).values(state=state, ended_at=now())
    _one(connection, changed, f"{lease.ledger_name} was changed by another process at this moment")


def _shard_after(connection: Connection, lease: Lease) -> ShardState:
    """The shard's state after ``lease`` ended, with the shard's row locked."""
    if lease.granted_through < lease.shard_rows:
        connection.execute(update(shards).where(_newest_epoch(lease)).values(state=ShardState.OPEN))
    outcomes = sum((leases.c[outcome.value] for outcome in Outcome), start=literal(0))
    with_outcome = connection.scalar(select(func.sum(outcomes)).where(leases.c.shard_id == lease.shard_id)) or 0
    at_work = connection.scalar(
        select(func.count()).where(leases.c.shard_id == lease.shard_id, leases.c.state == LeaseState.ACTIVE)
    )
    if with_outcome == lease.shard_rows and not at_work:
        connection.execute(update(shards).where(shards.c.id == lease.shard_id).values(state=ShardState.SETTLED))
    state = connection.scalar(select(shards.c.state).where(shards.c.id == lease.shard_id))
    return ShardState(str(state))


# --- looking ----------------------------------------------------------------------------------------------------------


def unsettled_rows(connection: Connection, send_id: int, phase: int | None = None) -> int:
    """Rows of published phases, or of one phase, without an outcome."""
    unsettled = (shards.c.send_id == send_id) & (shards.c.state != ShardState.SETTLED)
    of_phase = select(snapshots.c.id).where(snapshots.c.send_id == send_id)
    if phase is not None:
        of_phase = of_phase.where(snapshots.c.phase == phase)
    unsettled &= shards.c.snapshot_id.in_(of_phase)
    rows = connection.scalar(select(func.sum(shards.c.rows)).where(unsettled)) or 0
    done = sum((leases.c[outcome.value] for outcome in Outcome), start=literal(0))
    settled = connection.scalar(
        select(func.sum(done)).select_from(leases.join(shards, leases.c.shard_id == shards.c.id)).where(unsettled)
    )
    return int(rows) - int(settled or 0)


def has_unsettled_shards(engine: Engine, send_id: int) -> bool:
    with read(engine) as connection:
        query = select(shards.c.id).where(shards.c.send_id == send_id, shards.c.state != ShardState.SETTLED).limit(1)
        return connection.execute(query).first() is not None
