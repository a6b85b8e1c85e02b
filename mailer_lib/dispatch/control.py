"""What an operator says to a running send. Slots look about once a second, agents twice as often: in force within 2 s.

A send is named ``campaign#edition``. Every change is audited; saying the same twice changes nothing.
"""

from sqlalchemy import Engine, update

from mailer_lib.database import audit
from mailer_lib.database.engine import write
from mailer_lib.database.schema import sends
from mailer_lib.dispatch.sends import SendError, SendRecord, find_send
from mailer_lib.dispatch.states import FINAL
from mailer_lib.terms import Control


def pause(engine: Engine, send_ref: str, actor: str) -> SendRecord:
    """Hand nothing more over until ``resume``; what is in flight is finished. The send's ``expires_at`` goes on."""
    return _set(engine, send_ref, Control.PAUSE, actor)


def resume(engine: Engine, send_ref: str, actor: str) -> SendRecord:
    """Go on, with the suppressions of now.

    Raises:
        SendError: it was stopped (trigger it again instead) or is over.
    """
    return _set(engine, send_ref, Control.RUN, actor)


def stop(engine: Engine, send_ref: str, actor: str) -> SendRecord:
    """End it: what is in flight is finished, all else is cancelled. Triggered again, the rest is frozen anew."""
    return _set(engine, send_ref, Control.STOP, actor)


def set_pace(engine: Engine, send_ref: str, per_s: float | None, actor: str) -> SendRecord:
    """Messages a second of the whole send, shared by its working slots; None: as fast as the other limits allow.

    Raises:
        SendError: not above 0 (pause instead), or the send is over.
    """
    if per_s is not None and not 0 < per_s < float("inf"):
        raise SendError(f"a pace of {per_s} a second can't be; pause the send to hand nothing over")
    with write(engine) as connection:
        send = _changeable(find_send(connection, send_ref))
        if send.pace_per_s != per_s:
            connection.execute(update(sends).where(sends.c.id == send.id).values(pace_per_s=per_s))
            audit.record(connection, actor, "send.pace", f"send:{send.ref}", {"was": send.pace_per_s, "per_s": per_s})
        return find_send(connection, send_ref)


def _set(engine: Engine, send_ref: str, control: Control, actor: str) -> SendRecord:
    with write(engine) as connection:
        send = _changeable(find_send(connection, send_ref))
        if send.control == Control.STOP and control != Control.STOP:
            raise SendError(f"{send.ref} was stopped; trigger it again to send the rest")
        if send.control != control:
            connection.execute(update(sends).where(sends.c.id == send.id).values(control=control))
            audit.record(connection, actor, f"send.{control}", f"send:{send.ref}", {"was": send.control})
        return find_send(connection, send_ref)


def _changeable(send: SendRecord) -> SendRecord:
    if send.state in FINAL:
        raise SendError(f"{send.ref} is {send.state}; there is nothing to control")
    return send
