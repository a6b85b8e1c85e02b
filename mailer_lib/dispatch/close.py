"""The end of a send: what nobody may send any more is written off, the books are balanced, the state is decided."""

from sqlalchemy import Connection, Engine

from mailer_lib.database.engine import now, read, write
from mailer_lib.dispatch.books import Books, BooksError, balance
from mailer_lib.dispatch.central_ledger import write_off
from mailer_lib.dispatch.lease import leases_of_send, unsettled_rows
from mailer_lib.dispatch.loss import finish_losses
from mailer_lib.dispatch.sends import SendRecord, change_state, current_send, get_send
from mailer_lib.dispatch.slot_report import slot_rows
from mailer_lib.dispatch.states import FINAL, final_state
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, LeaseState, Outcome, SendMode, SendState

_UNSTARTED = {
    SendState.PLANNED: "it didn't get as far as freezing its recipients",
    SendState.FREEZING: "its recipients weren't frozen to the end",
    SendState.AWAITING_APPROVAL: "nobody approved it",
    SendState.APPROVED: "it was approved, but sending didn't begin",
}


def close_send(engine: Engine, settings: Settings, send_id: int, *, actor: str = "mailfleet") -> Books:
    """Write off, balance, decide. May be called again at any time, and after any crash.

    Rows are written off as *cancelled* (stopped, rejected, dry run) or *expired*, never because servers are missing: a
    send with unsent rows ends FAILED, and a later trigger goes on with it.

    Raises:
        BooksError: the books don't balance; the send is FAILED with that reason.
    """
    send = current_send(engine, send_id)
    finish_losses(engine, settings, send_id)
    why = _write_off_why(send)
    if why is not None:
        write_off(engine, store(settings), send_id, *why)
    try:
        books = balance(engine, settings, send_id)
    except BooksError as error:
        _conclude(engine, send_id, error.books, str(error), actor)
        raise
    with read(engine) as connection:
        reason = _failure(connection, get_send(connection, send_id), books)
    _conclude(engine, send_id, books, reason, actor)
    return books


def _write_off_why(send: SendRecord) -> tuple[Outcome, str] | None:
    if send.state == SendState.REJECTED:
        return Outcome.CANCELLED, send.reason or "rejected"
    if send.mode == SendMode.DRY_RUN:
        return Outcome.CANCELLED, "dry run"
    if send.control == Control.STOP:
        return Outcome.CANCELLED, "stopped"
    if send.expires_at is not None and send.expires_at <= now():
        return Outcome.EXPIRED, "the send has expired"
    return None


def cancel_phase(engine: Engine, settings: Settings, send_id: int) -> int:
    """Cancel the rows of a phase that was frozen and that nobody began, because it is planned anew."""
    return write_off(engine, store(settings), send_id, Outcome.CANCELLED, "planned anew")


def _failure(connection: Connection, send: SendRecord, books: Books) -> str | None:
    """Why the send failed, as a sentence; None when it didn't."""
    if not books.unsettled:
        # nothing to send needs no approval; a phase that is missing altogether does
        unfrozen = send.state in (SendState.PLANNED, SendState.FREEZING) and send.control != Control.STOP
        return f"{send.ref}: {_UNSTARTED[send.state]}" if unfrozen else None
    left = unsettled_rows(connection, send.id)
    if send.state in _UNSTARTED:
        return f"{send.ref}: {_UNSTARTED[send.state]}; {left} rows are unsent"
    if send.state == SendState.JUDGING:
        return f"{send.ref}: the test slice was sent, and {left} rows wait for a decision; trigger it again to go on"
    held = sorted({(x.server_id, x.slot) for x in leases_of_send(connection, send.id, LeaseState.ACTIVE)} - {(None, 0)})
    words = {(row.server_id, row.slot): row for row in slot_rows(connection, send.id)}
    who = ", ".join(f"{words[key].server}.{words[key].slot} ({words[key].state})" for key in held if key in words)
    holding = f", rows are still with {who}" if who else ""
    return f"{send.ref}: {left} rows have no outcome{holding}; trigger it again to go on"


def _conclude(engine: Engine, send_id: int, books: Books, reason: str | None, actor: str) -> None:
    with write(engine) as connection:
        send = get_send(connection, send_id)
        if send.state in FINAL and not (send.state == SendState.FAILED and reason):
            return
        if send.state == SendState.FAILED:
            reason = send.reason or reason
        state = final_state(
            send.mode,
            unsettled_rows=books.unsettled,
            stopped=send.control == Control.STOP and (books[Outcome.CANCELLED] > 0 or not books.frozen),
            expired_rows=books[Outcome.EXPIRED] if send.expires_at is not None and send.expires_at <= now() else 0,
            reason=reason,
        )
        said = reason or ("stopped by an operator" if state == SendState.STOPPED else None)
        change_state(connection, send, state, actor=actor, reason=said)
