"""What verifications found, kept in ``server_checks``; and whether the newest one still speaks for the server."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from mailer_lib.database.engine import now
from mailer_lib.database.schema import server_checks
from mailer_lib.fleet.findings import Finding, error, info, is_error, warning
from mailer_lib.fleet.states import MAY_SEND, is_old
from mailer_lib.terms import ChannelKind, FindingLevel

if TYPE_CHECKING:
    from mailer_lib.fleet.servers import DispatchServer

KEEP = timedelta(days=180)
_SUBJECT = ("channel", "host", "ssh_port", "host_key", "helo_name", "smtp_host", "smtp_port", "pool", "sources")


@dataclass(frozen=True)
class Check:
    """One verification."""

    at: datetime
    actor: str
    errors: int
    subject: dict[str, Any]
    findings: tuple[Finding, ...]


def subject_of(server: "DispatchServer") -> dict[str, Any]:
    """What a verification is about: with another host, name or sending pool, the server is another one."""
    return server.model_dump(mode="json", include=set(_SUBJECT))


def store(connection: Connection, server: "DispatchServer", findings: Sequence[Finding], *, actor: str) -> Check:
    check = Check(now(), actor, sum(map(is_error, findings)), subject_of(server), tuple(findings))
    stored = [
        {"level": finding.level, "check": finding.check, "text": finding.text, "publish": list(finding.publish)}
        for finding in findings
    ]
    connection.execute(
        insert(server_checks).values(
            server_id=server.id, at=check.at, actor=actor, errors=check.errors, subject=check.subject, findings=stored
        )
    )
    return check


def forget_old(connection: Connection, at: datetime) -> int:
    """Drop verifications older than ``KEEP``, but for each server's newest and the newest that it passed. Returns how
    many were dropped."""
    newest = select(func.max(server_checks.c.id)).group_by(server_checks.c.server_id)
    kept = {*connection.scalars(newest), *connection.scalars(newest.where(server_checks.c.errors == 0))}
    old = (server_checks.c.at < at - KEEP) & server_checks.c.id.not_in(sorted(kept))
    return connection.execute(delete(server_checks).where(old)).rowcount


def latest(connection: Connection, server_id: int) -> Check | None:
    return latest_of_all(connection, server_id).get(server_id)


def latest_of_all(connection: Connection, server_id: int | None = None) -> dict[int, Check]:
    """The newest verification of each server that has one (or of one server)."""
    newest = select(func.max(server_checks.c.id)).group_by(server_checks.c.server_id)
    if server_id is not None:
        newest = newest.where(server_checks.c.server_id == server_id)
    rows = connection.execute(select(server_checks).where(server_checks.c.id.in_(newest)))
    return {row.server_id: _check(row) for row in rows}


def why_unverified(server: "DispatchServer", check: Check | None) -> str | None:
    """Why this server doesn't count as verified, and what to do; None: it does."""
    verify = f"`mailfleet server verify {server.name}`"
    if check is None:
        return f"{server.name} was never verified: run {verify}"
    if check.errors:
        found = "an error" if check.errors == 1 else f"{check.errors} errors"
        found += f" on {check.at:%Y-%m-%d %H:%M}"
        return f"the verification of {server.name} found {found}: put it right, and run {verify}"
    subject = subject_of(server)
    changed = [name for name in _SUBJECT if subject[name] != check.subject.get(name)]
    if changed:
        return f"{server.name} has had another {', '.join(changed)} since it was verified: run {verify}"
    return None


def overview(server: "DispatchServer", check: Check | None, at: datetime, days: int) -> Finding:
    """One sentence for `mailfleet doctor`: whether the server is verified, and since when."""
    sends, remote = server.state in MAY_SEND, server.channel is ChannelKind.SSH
    why = why_unverified(server, check)
    if why is not None:
        if check is None and not remote:
            return info("verified", f"{server.name} was never verified: `mailfleet server verify {server.name}`")
        return (error if sends and remote else warning)("verified", why)
    assert check is not None
    when = f"{server.name} was verified on {check.at:%Y-%m-%d %H:%M} UTC"
    if is_old(check.at, at, days):
        return warning("verified", f"{when}, more than {days} days ago: `mailfleet server verify {server.name}`")
    return info("verified", when)


def _check(row: Row[Any]) -> Check:
    findings = tuple(
        Finding(FindingLevel(found["level"]), found["check"], found["text"], tuple(found["publish"]))
        for found in row.findings
    )
    return Check(row.at, row.actor, row.errors, row.subject, findings)
