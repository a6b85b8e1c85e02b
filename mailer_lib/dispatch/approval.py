"""Approval: a person's yes to exactly one message for exactly one audience, for 24 hours (``digest.py``)."""

from sqlalchemy import Engine

from mailer_lib.database.engine import now, write
from mailer_lib.dispatch.digest import APPROVAL_HOLDS, approval_digest, present_digest, still_valid
from mailer_lib.dispatch.sends import change_state, get_send
from mailer_lib.settings import Settings
from mailer_lib.terms import SendState

__all__ = ["APPROVAL_HOLDS", "ApprovalError", "approval_digest", "approve", "reject", "require_valid", "waive"]


class ApprovalError(ValueError):
    """An approval that can't be accepted; the sentence says why."""


def approve(engine: Engine, settings: Settings, send_id: int, *, digest: str, approver: str) -> None:
    """Approve what ``digest`` stands for. Doing it twice is the same as once.

    Raises:
        ApprovalError: message or snapshot changed since the digest was shown, or the approver launched the send and
            ``settings.approver_must_differ`` is set.
        StateError: the send isn't waiting for an approval.
    """
    if not approver:
        raise ApprovalError("an approval needs the approver's name")
    with write(engine) as connection:
        send = get_send(connection, send_id)
        if settings.approver_must_differ and approver == send.launched_by:
            raise ApprovalError(f"{approver} launched {send.ref} and so can't approve it; somebody else must")
    _store(engine, send_id, digest, approver)


def waive(engine: Engine, send_id: int, *, digest: str) -> str:
    """Go on without asking anybody, because the launcher said so; returns what is noted as the approver.

    Raises:
        ApprovalError: message or snapshot changed since the digest was made.
    """
    with write(engine) as connection:
        noted = f"nobody asked (launched by {get_send(connection, send_id).launched_by})"
    _store(engine, send_id, digest, noted)
    return noted


def _store(engine: Engine, send_id: int, digest: str, approver: str) -> None:
    at = now()
    with write(engine) as connection:
        send = get_send(connection, send_id)
        if digest != present_digest(connection, send_id):
            raise ApprovalError(
                f"the message or the recipients of {send.ref} changed after this approval was asked for, so it is "
                "void; look at the new summary and approve that"
            )
        given = still_valid(send.approval_digest, send.approved_at, digest, at)
        if given and send.state in (SendState.APPROVED, SendState.RUNNING):
            return
        change_state(
            connection,
            send,
            SendState.APPROVED,
            actor=approver,
            approved_by=approver[:200],
            approved_at=at,
            approval_digest=digest,
        )


def require_valid(engine: Engine, send_id: int) -> None:
    """Raises:
    ApprovalError: there is no approval, or it is void (something changed), or older than 24 h.
    """
    with write(engine) as connection:
        send = get_send(connection, send_id)
        present = present_digest(connection, send_id)
    if send.approval_digest is None or send.approved_at is None:
        raise ApprovalError(f"{send.ref} isn't approved")
    if send.approval_digest != present:
        raise ApprovalError(
            f"the message or the recipients of {send.ref} changed after {send.approved_by} approved it; ask again"
        )
    if not still_valid(send.approval_digest, send.approved_at, present, now()):
        raise ApprovalError(f"the approval of {send.ref} by {send.approved_by} is older than 24 h; ask again")


def reject(engine: Engine, send_id: int, *, by: str) -> None:
    """Refuse it: the send ends REJECTED, with the name as its reason; closing it cancels its rows."""
    with write(engine) as connection:
        send = get_send(connection, send_id)
        if send.state != SendState.REJECTED:
            change_state(connection, send, SendState.REJECTED, actor=by, reason=f"rejected by {by}")
