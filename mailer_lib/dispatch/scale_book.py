"""``scale_decisions``: what was decided about each sending pool, who allowed it, and what came of it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, update

from mailer_lib.database.audit import record
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import scale_decisions, sending_pools
from mailer_lib.dispatch.backlog import Rent, policy_of, pool_view
from mailer_lib.dispatch.scaling import Decision, decide
from mailer_lib.fleet.hosts import HostsError, source_of
from mailer_lib.fleet.pools import list_pools
from mailer_lib.settings import Settings
from mailer_lib.terms import HostProvider, ScaleAction, ScaleFinding, ScaleState

log = logging.getLogger(__name__)

AUTOMATIC = "automatic"
ASK_FOR = timedelta(hours=1)  # an older question is about a backlog that is another one by now
APPLY_FOR = timedelta(hours=3)  # who applies a decision for longer has died
_OPEN = (ScaleState.PROPOSED, ScaleState.APPROVED, ScaleState.APPLYING)


class ScaleError(ValueError):
    """A decision can't be changed like that; the sentence says why."""


@dataclass(frozen=True)
class StoredDecision:
    id: int
    at: datetime
    pool: str
    action: ScaleAction
    finding: ScaleFinding
    server: str | None
    machine_from: HostProvider | None
    reason: str
    numbers: Mapping[str, Any]
    state: ScaleState
    decided_by: str | None
    changed_at: datetime
    outcome: str | None

    @property
    def title(self) -> str:
        """What is to be done, in a few words."""
        what = self.server or (f"a machine of {self.machine_from}" if self.machine_from else "")
        return f"{self.action} {what} in the sending pool {self.pool}".replace("  ", " ")

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a task of Airflow."""
        return {
            "id": self.id, "pool": self.pool, "action": self.action.value, "server": self.server,
            "title": self.title, "reason": self.reason, "state": self.state.value,
        }  # fmt: skip


def look(engine: Engine, settings: Settings, *, actor: str) -> list[StoredDecision]:
    """Decide about every sending pool and store it; returns what was decided, pool by pool.

    An action is PROPOSED, or APPROVED at once when ``scale_automatic`` is set. Looks that change nothing are one note
    for each spell of the same finding.
    """
    expire(engine)
    at = now()
    rent = _rent(settings)
    made: list[Decision] = []
    with read(engine) as connection:
        for pool in list_pools(connection):
            made.append(decide(pool_view(connection, settings, pool, at, rent=rent), policy_of(settings), at))
    ids = [store_decision(engine, one, automatic=settings.scale_automatic, actor=actor) for one in made]
    with read(engine) as connection:
        return [get(connection, decision_id) for decision_id in ids]


def plan(
    engine: Engine, settings: Settings, *, at: datetime | None = None, ignore: int | None = None
) -> list[Decision]:
    """The same without storing anything. ``ignore``: a decision that counts as not made, and no spell is waited for."""
    at = at or now()
    rent = _rent(settings)
    policy = policy_of(settings)
    made = []
    with read(engine) as connection:
        for pool in list_pools(connection):
            view = pool_view(connection, settings, pool, at, rent=rent)
            if ignore is not None:
                view = replace(view, history=tuple(past for past in view.history if past.id != ignore))
            made.append(decide(view, policy if ignore is None else replace(policy, confirm=timedelta(0)), at))
    return made


def _rent(settings: Settings) -> Rent | None:
    """Who rents machines out, and for how much; nobody when they don't answer, for one's own machines are left."""
    source = source_of(settings)
    if source is None:
        return None
    try:
        return Rent(source, source.terms().cost_per_day)
    except HostsError as error:
        log.warning("no machine can be rented at the moment: %s", error)
        return None


def store_decision(engine: Engine, made: Decision, *, automatic: bool, actor: str) -> int:
    """Store a decision; returns its id. One that is open already for this pool stays the only one."""
    at = now()
    with write(engine) as connection:
        pool_id = connection.scalar(
            select(sending_pools.c.id).where(sending_pools.c.name == made.pool).with_for_update()
        )
        newest = connection.execute(
            select(scale_decisions)
            .where(scale_decisions.c.pool_id == pool_id)
            .order_by(scale_decisions.c.id.desc())
            .limit(1)
        ).one_or_none()
        if made.action is ScaleAction.NONE:
            if newest is not None and newest.state == ScaleState.NOTED and newest.finding == made.finding:
                seen = {"changed_at": at, "reason": made.reason, "numbers": dict(made.numbers)}
                _change(connection, newest.id, seen)
                return int(newest.id)
            return _insert(connection, pool_id, made, ScaleState.NOTED, at)
        open_ = connection.scalar(
            select(scale_decisions.c.id).where(scale_decisions.c.pool_id == pool_id, scale_decisions.c.state.in_(_OPEN))
        )
        if open_ is not None:  # another look was faster
            return int(open_)
        state = ScaleState.APPROVED if automatic else ScaleState.PROPOSED
        made_id = _insert(connection, pool_id, made, state, at, decided_by=AUTOMATIC if automatic else None)
        detail = {"pool": made.pool, "action": made.action, "server": made.server, "reason": made.reason}
        record(connection, actor, f"scale.{state}", f"scale:{made_id}", detail)
        return made_id


def _insert(
    connection: Connection,
    pool_id: Any,
    made: Decision,
    state: ScaleState,
    at: datetime,
    *,
    decided_by: str | None = None,
) -> int:
    done = connection.execute(
        insert(scale_decisions).values(
            at=at,
            pool_id=pool_id,
            action=made.action,
            finding=made.finding,
            server=made.server,
            machine_from=made.machine_from,
            reason=made.reason,
            numbers=dict(made.numbers),
            state=state,
            decided_by=decided_by,
            changed_at=at,
        )
    )
    key = done.inserted_primary_key
    assert key is not None
    return int(key[0])


def _change(connection: Connection, decision_id: int, values: Mapping[str, Any]) -> None:
    connection.execute(update(scale_decisions).where(scale_decisions.c.id == decision_id).values(**values))


# --- its life ---------------------------------------------------------------------------------------------------------


def approve(engine: Engine, decision_id: int, *, by: str) -> StoredDecision:
    """
    Raises:
        ScaleError: it isn't waiting for an answer.
    """
    return _move(engine, decision_id, (ScaleState.PROPOSED,), ScaleState.APPROVED, by=by)


def reject(engine: Engine, decision_id: int, *, by: str) -> StoredDecision:
    """
    Raises:
        ScaleError: it isn't waiting for an answer.
    """
    return _move(engine, decision_id, (ScaleState.PROPOSED,), ScaleState.REJECTED, by=by)


def begin(engine: Engine, decision_id: int, *, by: str) -> tuple[StoredDecision, bool]:
    """It is APPLYING from here on. Also whether it was before: then somebody died over it, and what they did is there.

    Raises:
        ScaleError: nobody approved it, or it is over.
    """
    with read(engine) as connection:
        again = get(connection, decision_id).state is ScaleState.APPLYING
    if again:
        return _move(engine, decision_id, (ScaleState.APPLYING,), ScaleState.APPLYING, by=by), True
    return _move(engine, decision_id, (ScaleState.APPROVED,), ScaleState.APPLYING, by=by), False


def finish(engine: Engine, decision_id: int, state: ScaleState, outcome: str, *, by: str) -> StoredDecision:
    """Note what came of applying it."""
    return _move(engine, decision_id, (ScaleState.APPLYING,), state, by=by, outcome=outcome)


def expire(engine: Engine) -> None:
    """Questions that nobody answered lapse, and so does what was allowed and never begun; who died over one failed."""
    at = now()
    with read(engine) as connection:
        rows = connection.execute(
            select(scale_decisions.c.id, scale_decisions.c.state, scale_decisions.c.changed_at).where(
                scale_decisions.c.state.in_(_OPEN)
            )
        ).all()
    for row in rows:
        applying = row.state == ScaleState.APPLYING
        if at - row.changed_at <= (APPLY_FOR if applying else ASK_FOR):
            continue
        state = ScaleState.FAILED if applying else ScaleState.LAPSED
        why = "whoever applied it has ended" if applying else "nobody answered, or began it, within an hour"
        try:
            _move(engine, row.id, (ScaleState(row.state),), state, by="clock", outcome=why)
        except ScaleError as error:  # somebody moved it meanwhile
            log.info("%s", error)


def _move(
    engine: Engine,
    decision_id: int,
    before: tuple[ScaleState, ...],
    after: ScaleState,
    *,
    by: str,
    outcome: str | None = None,
) -> StoredDecision:
    with write(engine) as connection:
        present = get(connection, decision_id)
        values: dict[str, Any] = {"state": after, "changed_at": now()}
        if after in (ScaleState.APPROVED, ScaleState.REJECTED):
            values["decided_by"] = by
        if outcome is not None:
            values["outcome"] = outcome
        guard = (scale_decisions.c.id == decision_id) & scale_decisions.c.state.in_(before)
        if connection.execute(update(scale_decisions).where(guard).values(**values)).rowcount != 1:
            raise ScaleError(f"decision {decision_id} is {present.state}, so it can't become {after}")
        detail = {"pool": present.pool, "action": present.action, "server": present.server}
        if outcome is not None:
            detail["outcome"] = outcome
        record(connection, by, f"scale.{after}", f"scale:{decision_id}", detail)
        return get(connection, decision_id)


def get(connection: Connection, decision_id: int) -> StoredDecision:
    """
    Raises:
        ScaleError: there is no such decision.
    """
    row = connection.execute(_select().where(scale_decisions.c.id == decision_id)).one_or_none()
    if row is None:
        raise ScaleError(f"there is no decision {decision_id}; `mailfleet fleet show` lists them")
    return _stored(row)


def newest(connection: Connection, *, pool: str | None = None, count: int = 20) -> list[StoredDecision]:
    query = _select().order_by(scale_decisions.c.id.desc()).limit(count)
    if pool is not None:
        query = query.where(sending_pools.c.name == pool)
    return [_stored(row) for row in connection.execute(query)]


def _select() -> Any:
    return select(scale_decisions, sending_pools.c.name.label("pool")).join(
        sending_pools, scale_decisions.c.pool_id == sending_pools.c.id
    )


def _stored(row: Row[Any]) -> StoredDecision:
    return StoredDecision(
        id=row.id,
        at=row.at,
        pool=row.pool,
        action=ScaleAction(row.action),
        finding=ScaleFinding(row.finding),
        server=row.server,
        machine_from=None if row.machine_from is None else HostProvider(row.machine_from),
        reason=row.reason,
        numbers=row.numbers,
        state=ScaleState(row.state),
        decided_by=row.decided_by,
        changed_at=row.changed_at,
        outcome=row.outcome,
    )
