"""Which variant the rest of a test slice gets: a person's decision, bound to the send once and for ever.

The rest's rows say ``REST`` in their shards, and are granted to nobody before ``sends.decided_variant`` is set
(``lease.extend_grant``). So nothing frozen is written anew, and whoever reads the decision reads the same one
(docs/decisions/0604).
"""

from datetime import timedelta
from enum import StrEnum

from sqlalchemy import Connection, Engine, exists, func, select, update

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.plan import Slice
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import sends, shards
from mailer_lib.dispatch import control
from mailer_lib.dispatch.figures import figures_of, figures_text
from mailer_lib.dispatch.lease import parked
from mailer_lib.dispatch.sends import SendError, SendRecord, change_state, current_send, find_send, get_send
from mailer_lib.dispatch.states import FINAL
from mailer_lib.dispatch.summary import newest_snapshot
from mailer_lib.message.campaign import STOP
from mailer_lib.message.compile import load_bundle
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, SendState, ShardState

_BY_TIME = "mailfleet (nobody decided in time)"
_BEGUN = frozenset({SendState.RUNNING, SendState.JUDGING})


class Verdict(StrEnum):
    """What a look after the slots finds."""

    NOTHING = "nothing"  # no row waits for a decision
    WAITING = "waiting"
    DECIDED = "decided"  # and rows are there to be sent
    OVER = "over"  # stopped, expired, or ended


def decide(engine: Engine, settings: Settings, send_ref: str, variant: str, actor: str) -> SendRecord:
    """Give ``variant`` to the rest. The same again changes nothing.

    Raises:
        SendError: no such send or variant, no test slice, nothing of it was sent yet, the send is over, or it was
            decided otherwise before.
    """
    with read(engine) as connection:
        send = find_send(connection, send_ref)
        has_slice = _has_slice(connection, send.id)
    if send.content_hash is None or not has_slice:
        raise SendError(f"{send.ref} has no test slice, so there is nothing to decide")
    frozen = load_bundle(settings, send.content_hash).variants
    names = [one.name for one in frozen]
    tested = [one.name for one in frozen if one.weight]
    if variant not in tested:
        raise SendError(f"{send.ref} tested the variants {', '.join(tested)}; there is none called {variant!r}")
    number = names.index(variant)
    with write(engine) as connection:
        connection.execute(select(sends.c.id).where(sends.c.id == send.id).with_for_update())
        present = get_send(connection, send.id)
        if present.decided_variant is not None:
            _same(present, number, names)
        else:
            _may_decide(present)
            _bind(connection, present, number, variant, actor)
        return get_send(connection, send.id)


def _same(send: SendRecord, number: int, names: list[str]) -> None:
    assert send.decided_variant is not None
    if send.decided_variant != number:
        raise SendError(
            f"{send.decided_by} decided on variant {names[send.decided_variant]} for {send.ref} at "
            f"{send.decided_at:%Y-%m-%d %H:%M} UTC, and a decision stands; stop the send to keep it from the others"
        )


def _may_decide(send: SendRecord) -> None:
    if send.control == Control.STOP or send.state in FINAL:
        how = "is being stopped" if send.state not in FINAL else f"is {send.state}"
        raise SendError(f"{send.ref} {how}; trigger it again, then decide")
    if send.state not in _BEGUN:
        raise SendError(f"{send.ref} is {send.state}; decide when its test slice is being sent, or was")


def _bind(connection: Connection, send: SendRecord, number: int, variant: str, actor: str) -> None:
    values = {"decided_variant": number, "decided_by": actor[:200], "decided_at": now(), "decide_by": None}
    undecided = update(sends).where(sends.c.id == send.id, sends.c.decided_variant.is_(None))
    if connection.execute(undecided.values(values)).rowcount != 1:
        raise SendError(f"{send.ref} was decided on at this very moment; look with `mailfleet send status {send.ref}`")
    detail = {"variant": variant, "number": number, "state": send.state}
    audit.record(connection, actor, "send.decided", f"send:{send.ref}", detail)
    if send.state == SendState.JUDGING:
        change_state(connection, send, SendState.RUNNING, actor=actor)


# --- waiting for it ---------------------------------------------------------------------------------------------------


def look(engine: Engine, settings: Settings, send: SendRecord) -> Verdict:
    """Where the decision stands, for the execution that holds the send. The first look that finds the test slice sent
    makes the send JUDGING; a look after the campaign's ``decide_within`` does what its ``otherwise`` says.
    """
    if _is_over(send):
        return Verdict.OVER
    with read(engine) as connection:
        if send.decided_variant is not None:
            return Verdict.DECIDED if _has_open_shard(connection, send.id) else Verdict.NOTHING
        waiting, at_work = _waiting(connection, send.id)
    if not waiting or at_work or send.state not in _BEGUN:
        return Verdict.NOTHING
    rule = _rule(engine, settings, send.id)
    if send.state != SendState.JUDGING:
        _begin(engine, send.id, rule)
    elif send.decide_by is not None and send.decide_by <= now():
        _lapse(engine, settings, send, rule)
    else:
        return Verdict.WAITING
    return look(engine, settings, current_send(engine, send.id))


def worth_judging(engine: Engine, send_id: int) -> bool:
    """Whether ``look`` would say something other than WAITING. Only reads."""
    send = current_send(engine, send_id)
    due = send.decide_by is not None and send.decide_by <= now()
    return due or _is_over(send) or send.state != SendState.JUDGING


def _is_over(send: SendRecord) -> bool:
    expired = send.expires_at is not None and send.expires_at <= now()
    return send.control == Control.STOP or send.state in FINAL or expired


def _has_slice(connection: Connection, send_id: int) -> bool:
    sliced = exists().where(shards.c.send_id == send_id, shards.c.slice_rows.is_not(None))
    return bool(connection.scalar(select(sliced)))


def _has_open_shard(connection: Connection, send_id: int) -> bool:
    free = exists().where(shards.c.send_id == send_id, shards.c.state == ShardState.OPEN)
    return bool(connection.scalar(select(free)))


def _waiting(connection: Connection, send_id: int) -> tuple[int, int]:
    """Shards of which only the rest is left; shards of whose test slice rows are left."""
    unsettled = select(func.count()).where(shards.c.send_id == send_id, shards.c.state != ShardState.SETTLED)
    waiting = connection.scalar(unsettled.where(shards.c.state == ShardState.OPEN, parked(None))) or 0
    return waiting, (connection.scalar(unsettled) or 0) - waiting


def _rule(engine: Engine, settings: Settings, send_id: int) -> Slice | None:
    with read(engine) as connection:
        newest = newest_snapshot(connection, send_id)
    return None if newest is None else manifests.load(store(settings) / newest.path).test_slice


def _begin(engine: Engine, send_id: int, rule: Slice | None) -> None:
    within_s = rule.decide_within_s if rule is not None else None
    with write(engine) as connection:
        connection.execute(select(sends.c.id).where(sends.c.id == send_id).with_for_update())
        send = get_send(connection, send_id)
        if send.state == SendState.RUNNING and send.decided_variant is None:
            decide_by = None if within_s is None else send.decide_by or now() + timedelta(seconds=within_s)
            actor = send.launched_by or "mailfleet"
            change_state(connection, send, SendState.JUDGING, actor=actor, decide_by=decide_by)


def _lapse(engine: Engine, settings: Settings, send: SendRecord, rule: Slice | None) -> None:
    """Nobody decided in time: do what was approved for that case."""
    if rule is None or rule.otherwise is None or rule.otherwise == STOP:
        control.stop(engine, send.ref, _BY_TIME)
        return
    try:
        decide(engine, settings, send.ref, rule.otherwise, _BY_TIME)
    except SendError:
        if current_send(engine, send.id).decided_variant is None:
            raise


# --- what it is decided on --------------------------------------------------------------------------------------------


def question(engine: Engine, settings: Settings, send: SendRecord) -> str:
    """The figures at hand and how to answer, as markdown.

    Raises:
        SendError: it has no test slice.
    """
    with read(engine) as connection:
        has_slice = _has_slice(connection, send.id)
    if send.content_hash is None or not has_slice:
        raise SendError(f"{send.ref} has no test slice, so there is nothing to decide")
    found = figures_of(engine, settings, send)
    lines = [f"## {send.ref}: which variant does the rest get?", "", *figures_text(found)]
    names = "|".join(one.name for one in found.variants if one.weight)
    command = f"mailfleet send decide {send.ref}"
    lines += [
        "",
        f"Decide with `{command} --variant {names}` or `{command} --stop`, or with the DAG *campaign_control*. A "
        "decision stands: it can't be changed.",
    ]
    if send.decide_by is not None:
        rule = _rule(engine, settings, send.id)
        otherwise = rule.otherwise if rule is not None else STOP
        what = "the send is stopped" if otherwise == STOP else f"the rest gets variant {otherwise}"
        lines += [f"Without an answer by {send.decide_by:%Y-%m-%d %H:%M} UTC {what}."]
    elif send.expires_at is not None:
        lines += [f"Without an answer by {send.expires_at:%Y-%m-%d %H:%M} UTC the send expires."]
    return "\n".join(lines)
