"""A send: one edition of a campaign, and the claim that lets one execution at a time work on it.

The claim is a row's column, compared and set in one transaction (docs/decisions/0601). An execution names itself
(``airflow:<run id>``, ``process:<host>:<pid>:…``), keeps the claim fresh while it lives, and frees it at its end.
"""

import hashlib
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, leases, sends, shards, snapshots
from mailer_lib.dispatch.digest import present_digest, still_valid
from mailer_lib.dispatch.states import FINAL, PhaseFacts, Reopening, check_transition, reopen
from mailer_lib.message.campaign import get_campaign
from mailer_lib.message.send_window import SendWindow
from mailer_lib.settings import Settings
from mailer_lib.terms import Control, OverQuota, SendMode, SendState, ShardState, SnapshotState

CLAIM_CHARS = 64
HEARTBEAT_S = 5.0  # how often a live execution refreshes its claim while slots run
CLAIM_STALE_S = 60.0  # a claim not refreshed for so long may be taken over, when the operator says so


class SendError(ValueError):
    """A send can't be opened, found or changed; the sentence says why and what to do."""


class ClaimedError(SendError):
    """Another live execution holds the send."""


class ClaimLostError(RuntimeError):
    """Another execution took the send over, so this one must stop."""


@dataclass(frozen=True)
class SendRecord:
    """A row of ``sends``, with what every step needs of its campaign."""

    id: int
    campaign: str
    campaign_id: int
    list_id: int
    pool_id: int
    edition: str
    mode: SendMode
    state: SendState
    control: Control
    pace_per_s: float | None
    send_window: SendWindow | None
    over_quota: OverQuota
    forecast: dict[str, Any] | None
    content_hash: str | None
    expires_at: datetime | None
    launched_by: str | None
    approved_by: str | None
    approved_at: datetime | None
    approval_digest: str | None
    decide_by: datetime | None
    decided_variant: int | None  # what the rest of a test slice gets
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None
    claim: str | None
    claimed_at: datetime | None
    first_injected_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ref(self) -> str:
        """As operators write it: ``spring-sale#1``."""
        return f"{self.campaign}#{self.edition}"


@dataclass(frozen=True)
class OpenedSend:
    send: SendRecord
    phase: int  # to be frozen, or to be continued
    resuming: bool  # rows of this phase were granted before: message and snapshot stay
    superseded: bool  # the newest phase was frozen, but nobody began it: its rows are to be cancelled


def _select_send() -> Any:
    columns = [c for c in sends.c if c.name not in ("created_at",)]
    return select(*columns, campaigns.c.name.label("campaign"), campaigns.c.list_id, campaigns.c.pool_id).join_from(
        sends, campaigns
    )


def _record(row: Row[Any]) -> SendRecord:
    values = {**row._mapping}
    values["mode"] = SendMode(values["mode"])
    values["state"] = SendState(values["state"])
    values["control"] = Control(values["control"])
    values["over_quota"] = OverQuota(values["over_quota"])
    if values["send_window"] is not None:
        values["send_window"] = SendWindow.model_validate(values["send_window"])
    return SendRecord(**values)


def get_send(connection: Connection, send_id: int) -> SendRecord:
    """Raises:
    SendError: there is no such send.
    """
    row = connection.execute(_select_send().where(sends.c.id == send_id)).one_or_none()
    if row is None:
        raise SendError(f"there is no send with the id {send_id}")
    return _record(row)


def parse_ref(ref: str) -> tuple[str, str]:
    """``campaign#edition`` in two. Without an edition it is "1"."""
    campaign, _, edition = ref.partition("#")
    if not campaign or "#" in edition:
        raise SendError(f"{ref!r} isn't a send: write CAMPAIGN#EDITION, such as spring-sale#1")
    return campaign, edition or "1"


def find_send(connection: Connection, ref: str) -> SendRecord:
    """The send called ``ref``.

    Raises:
        SendError: unknown; names the editions that there are.
    """
    campaign, edition = parse_ref(ref)
    found = connection.execute(
        _select_send().where(campaigns.c.name == campaign, sends.c.edition == edition)
    ).one_or_none()
    if found is not None:
        return _record(found)
    get_campaign(connection, campaign)  # raises with near matches
    editions = connection.scalars(
        select(sends.c.edition)
        .join_from(sends, campaigns)
        .where(campaigns.c.name == campaign)
        .order_by(sends.c.id.desc())
        .limit(5)
    ).all()
    known = "it has none yet" if not editions else "it has " + ", ".join(f"{campaign}#{e}" for e in editions)
    raise SendError(f"campaign {campaign} has no send with the edition {edition!r}; {known}")


def list_sends(connection: Connection, limit: int = 20) -> list[SendRecord]:
    """The newest sends, newest first."""
    return [_record(row) for row in connection.execute(_select_send().order_by(sends.c.id.desc()).limit(limit))]


# --- opening ----------------------------------------------------------------------------------------------------------


def open_send(
    engine: Engine,
    settings: Settings,
    campaign: str,
    edition: str,
    mode: SendMode,
    *,
    launched_by: str,
    claim: str,
    take_over: bool = False,
) -> OpenedSend:
    """Create a send, or open it again, and take its claim, in one transaction.

    The same ``claim`` may call this any number of times. Another claim is refused while the holder lives; a holder
    that freed its claim or whose process is gone is no obstacle; one that only fell silent (``CLAIM_STALE_S``) is
    overridden with ``take_over``.

    Raises:
        SendError: unknown campaign (with near matches), an edition or mode that doesn't fit.
        ClaimedError: another execution is at work; the sentence names it.
    """
    trigger = _Trigger(campaign, edition, mode, launched_by, fit_claim(claim), take_over)
    try:
        return _open(engine, trigger)
    except IntegrityError:  # another trigger inserted the same send just now; the second look finds it
        return _open(engine, trigger)


@dataclass(frozen=True)
class _Trigger:
    campaign: str
    edition: str
    mode: SendMode
    launched_by: str
    claim: str
    take_over: bool


def _open(engine: Engine, trigger: _Trigger) -> OpenedSend:
    campaign, mode, launched_by, claim = trigger.campaign, trigger.mode, trigger.launched_by, trigger.claim
    at = now()
    with write(engine) as connection:
        definition = get_campaign(connection, campaign)
        campaign_id = connection.scalar(select(campaigns.c.id).where(campaigns.c.name == campaign))
        assert campaign_id is not None
        edition = effective_edition(connection, campaign_id, trigger.edition, mode)
        window = definition.effective_send_window if mode == SendMode.SEND else None  # a test is for now
        expires_at = at + expires_after if (expires_after := definition.expires_after) else None
        found = connection.execute(
            _select_send().where(sends.c.campaign_id == campaign_id, sends.c.edition == edition)
        ).one_or_none()
        if found is None:
            send_id = connection.execute(
                insert(sends).values(
                    campaign_id=campaign_id,
                    edition=edition,
                    mode=mode,
                    state=SendState.PLANNED,
                    control=Control.RUN,
                    expires_at=expires_at,
                    launched_by=launched_by,
                    claim=claim,
                    claimed_at=at,
                    created_at=at,
                    pace_per_s=getattr(definition, "pace_per_s", None),
                    send_window=window.dump() if window else None,
                    over_quota=definition.over_quota,
                )
            ).inserted_primary_key[0]  # type: ignore[index]
            detail = {"mode": mode, "claim": claim}
            audit.record(connection, launched_by, "send.open", f"send:{campaign}#{edition}", detail)
            return OpenedSend(get_send(connection, send_id), phase=1, resuming=False, superseded=False)
        send = _record(found)
        if send.mode != mode:
            raise SendError(f"{send.ref} is a send of the mode {send.mode}; choose another edition for the mode {mode}")
        facts = phase_facts(connection, send.id)
        if send.claim == claim and send.state not in FINAL:  # a retry of the same execution
            connection.execute(update(sends).where(sends.c.id == send.id).values(claimed_at=at))
            freezing = send.state in (SendState.PLANNED, SendState.FREEZING) and not facts.unsettled_shards
            resuming = facts.began and facts.unsettled_shards > 0
            return OpenedSend(send, facts.phase + freezing or 1, resuming, superseded=False)
        _take_claim(connection, send, claim, at, take_over=trigger.take_over)
        valid = still_valid(send.approval_digest, send.approved_at, present_digest(connection, send.id), at)
        again = reopen(facts, approval_valid=valid)
        check_transition(send.ref, send.state, again.state)
        _reopen_row(connection, send, again, expires_at, launched_by)
        audit.record(
            connection,
            launched_by,
            "send.reopen",
            f"send:{send.ref}",
            {"was": send.state, "phase": again.phase, "resuming": again.resuming, "claim": claim},
        )
        return OpenedSend(get_send(connection, send.id), again.phase, again.resuming, again.superseded)


def _reopen_row(
    connection: Connection, send: SendRecord, again: Reopening, expires_at: datetime | None, launched_by: str
) -> None:
    values: dict[str, Any] = {"state": again.state, "reason": None, "finished_at": None, "launched_by": launched_by}
    if send.control == Control.STOP or send.state in FINAL:
        values["control"] = Control.RUN
    if not again.resuming:  # a new phase has its own time; what is being resumed keeps the time it was promised
        values |= {"expires_at": expires_at, "approved_by": None, "approved_at": None, "approval_digest": None}
        values |= {"decide_by": None}
    connection.execute(update(sends).where(sends.c.id == send.id).values(**values))


def effective_edition(connection: Connection, campaign_id: int, edition: str, mode: SendMode) -> str:
    """The edition as it is stored: tests and dry runs have their own, so that they never use up a real one.

    A test is ``test-<edition>.<n>``: a new number each time, or the one that is still under way.
    """
    if not edition or len(edition) > 40 or any(c.isspace() or c in "#/\\" or not c.isprintable() for c in edition):
        raise SendError(f"the edition {edition!r} must be 1 to 40 characters without spaces, '#', '/' and '\\'")
    if edition.startswith("."):
        raise SendError(f"the edition {edition!r} begins with a dot; it names a folder, so choose another")
    if mode == SendMode.SEND:
        if edition.startswith(("test-", "dry-")):
            raise SendError(f"the edition {edition!r} is kept for tests and dry runs; choose another for a real send")
        return edition
    if mode == SendMode.DRY_RUN:
        return edition if edition.startswith("dry-") else f"dry-{edition}"
    stem = edition if edition.startswith("test-") else f"test-{edition}"
    rows = connection.execute(
        select(sends.c.edition, sends.c.state).where(
            sends.c.campaign_id == campaign_id, sends.c.edition.startswith(f"{stem}.", autoescape=True)
        )
    )
    numbered = {int(e[len(stem) + 1 :]): state for e, state in rows if e[len(stem) + 1 :].isdigit()}
    last = max(numbered, default=0)
    return f"{stem}.{last if last and numbered[last] not in FINAL else last + 1}"


def phase_facts(connection: Connection, send_id: int) -> PhaseFacts:
    """What is known of the newest published phase."""
    newest = connection.execute(
        select(snapshots.c.id, snapshots.c.phase)
        .where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.PUBLISHED)
        .order_by(snapshots.c.phase.desc())
        .limit(1)
    ).one_or_none()
    if newest is None:
        return PhaseFacts()
    unsettled = connection.scalar(
        select(func.count()).where(shards.c.snapshot_id == newest.id, shards.c.state != ShardState.SETTLED)
    )
    began = connection.scalar(
        select(func.count())
        .select_from(leases.join(shards, leases.c.shard_id == shards.c.id))
        .where(shards.c.snapshot_id == newest.id, leases.c.server_id.is_not(None))
    )
    return PhaseFacts(newest.phase, unsettled or 0, bool(began))


# --- the claim --------------------------------------------------------------------------------------------------------


def fit_claim(claim: str) -> str:
    """``claim`` in at most 64 characters: a longer one keeps its head and gets a hash for the rest."""
    if not claim:
        raise SendError("an execution needs a name for its claim")
    if len(claim) <= CLAIM_CHARS:
        return claim
    return f"{claim[: CLAIM_CHARS - 17]}…{hashlib.sha256(claim.encode()).hexdigest()[:16]}"


def process_claim() -> str:
    """A claim for this process. It is known to be dead as soon as the process is gone from this machine."""
    return f"process:{_host()}:{os.getpid()}:{secrets.token_hex(4)}"


def _host() -> str:
    return socket.gethostname().replace(":", "_")[:28]


def holder_is_gone(claim: str) -> bool:
    """Whether ``claim`` is a process of this machine that no longer lives. False when that can't be known."""
    parts = claim.split(":")
    if len(parts) != 4 or parts[0] != "process" or parts[1] != _host() or not parts[2].isdigit():
        return False
    try:
        os.kill(int(parts[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _take_claim(connection: Connection, send: SendRecord, claim: str, at: datetime, *, take_over: bool) -> None:
    if send.claim is not None and send.claim != claim and not holder_is_gone(send.claim):
        silent_s = (at - send.claimed_at).total_seconds() if send.claimed_at else CLAIM_STALE_S
        if silent_s < CLAIM_STALE_S:
            raise ClaimedError(
                f"{send.ref} is being executed by {send.claim} (last sign {silent_s:.0f} s ago); wait for it, or stop "
                "the send"
            )
        if not take_over:
            raise ClaimedError(
                f"{send.ref} is claimed by {send.claim}, which gave no sign for {silent_s:.0f} s (it may be waiting "
                "for an approval); if it is dead, trigger again with take-over"
            )
    unchanged = and_(
        sends.c.id == send.id,
        sends.c.claim.is_(None) if send.claim is None else sends.c.claim == send.claim,
        sends.c.claimed_at.is_(None) if send.claimed_at is None else sends.c.claimed_at == send.claimed_at,
    )
    if connection.execute(update(sends).where(unchanged).values(claim=claim, claimed_at=at)).rowcount != 1:
        raise ClaimedError(
            f"{send.ref} was claimed by another execution at this very moment; look with "
            f"`mailfleet send status {send.ref}`"
        )


def heartbeat(engine: Engine, send_id: int, claim: str) -> None:
    """Keep the claim fresh.

    Raises:
        ClaimLostError: another execution holds the send now.
    """
    with write(engine) as connection:
        _touch(connection, send_id, fit_claim(claim))


def _touch(connection: Connection, send_id: int, claim: str) -> None:
    done = connection.execute(
        update(sends).where(sends.c.id == send_id, sends.c.claim == claim).values(claimed_at=now())
    ).rowcount
    if done != 1:
        send = get_send(connection, send_id)
        holder = f"is held by {send.claim} now" if send.claim else "was closed"
        raise ClaimLostError(f"{send.ref} {holder}: this execution ({claim}) stops")


def held_send(engine: Engine, send_id: int, claim: str) -> SendRecord:
    """The send, with its claim refreshed: the beginning of every step.

    Raises:
        ClaimLostError: another execution holds the send now.
    """
    with write(engine) as connection:
        _touch(connection, send_id, fit_claim(claim))
        return get_send(connection, send_id)


def release(engine: Engine, send_id: int, claim: str) -> None:
    """Free the claim, if it is still this one's."""
    with write(engine) as connection:
        mine = (sends.c.id == send_id) & (sends.c.claim == fit_claim(claim))
        connection.execute(update(sends).where(mine).values(claim=None, claimed_at=None))


def keep_forecast(engine: Engine, send_id: int, forecast: Mapping[str, Any]) -> None:
    """Note the forecast that is shown for approval; the report compares it with what came of it."""
    with write(engine) as connection:
        connection.execute(update(sends).where(sends.c.id == send_id).values(forecast=dict(forecast)))


# --- states -----------------------------------------------------------------------------------------------------------


def set_state(
    engine: Engine, send_id: int, state: SendState, *, actor: str, reason: str | None = None, claim: str | None = None
) -> SendRecord:
    """Move the send on, audited. With ``claim`` it must still hold.

    Raises:
        StateError: the state can't follow the present one.
        ClaimLostError: the claim is another's.
    """
    with write(engine) as connection:
        if claim is not None:
            _touch(connection, send_id, fit_claim(claim))
        send = get_send(connection, send_id)
        change_state(connection, send, state, actor=actor, reason=reason)
        return get_send(connection, send_id)


def change_state(
    connection: Connection, send: SendRecord, state: SendState, *, actor: str, reason: str | None = None, **values: Any
) -> None:
    """``set_state`` inside a transaction; ``values`` are other columns that change with it."""
    check_transition(send.ref, send.state, state)
    at = now()
    if state == SendState.RUNNING and send.started_at is None:
        values["started_at"] = at
    if state in FINAL:
        values["finished_at"] = at
    unchanged = (sends.c.id == send.id) & (sends.c.state == send.state)
    if connection.execute(update(sends).where(unchanged).values(state=state, reason=reason, **values)).rowcount != 1:
        raise SendError(
            f"the state of {send.ref} changed at this very moment; look again with `mailfleet send status {send.ref}`"
        )
    if state != send.state:
        audit.record(connection, actor, f"send.{state}", f"send:{send.ref}", {"was": send.state, "reason": reason})


def send_age(send: SendRecord) -> timedelta | None:
    """How long it has been running, or ran."""
    if send.started_at is None:
        return None
    return (send.finished_at or now()) - send.started_at


def current_send(engine: Engine, send_id: int) -> SendRecord:
    with read(engine) as connection:
        return get_send(connection, send_id)
