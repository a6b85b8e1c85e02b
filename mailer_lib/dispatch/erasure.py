"""A person is erased everywhere we reach, and told where we don't (GDPR Art. 17; docs/decisions/0303).

First the central rows and the suppression, in one transaction: from then on nothing is sent to them. Then each
published snapshot. A shard that a dispatch server works on at this moment is left and named; the send blanks it when it
is closed, or ``finish`` does. All can be killed and called again.
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, exists, func, select

from mailer_lib.agent.job import replace_file
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.amending import ERASED, EXPIRED, Amended, amend
from mailer_lib.audience.plan import SnapshotError
from mailer_lib.audience.whereabouts import may_hold
from mailer_lib.contacts.address import Address, normalise
from mailer_lib.contacts.erasing import ErasedRows, erase_rows, without_person
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.retry import write_again
from mailer_lib.database.schema import campaigns, dispatch_servers, leases, sends, shards, snapshots, suppressions
from mailer_lib.dispatch.job_folders import expires_at
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.dispatch.states import FINAL
from mailer_lib.settings import Settings
from mailer_lib.shard.files import ShardError
from mailer_lib.shard.store import store
from mailer_lib.terms import ChannelKind, ServerState, ShardState, SnapshotState, SuppressionReason


@dataclass(frozen=True)
class SnapshotRef:
    id: int
    send: str  # campaign#edition
    phase: int
    frozen_at: datetime
    path: str  # below the snapshot store
    published_at: datetime | None = None
    finished_at: datetime | None = None  # of the send

    def __str__(self) -> str:
        return f"{self.send} phase {self.phase}"


@dataclass(frozen=True)
class ErasureReport:
    """``waiting``: what a running send still needs. ``elsewhere``: where a copy may lie that isn't ours to rewrite."""

    rows: ErasedRows | None = None
    amended: tuple[tuple[SnapshotRef, Amended], ...] = ()
    rejects: int = 0
    waiting: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def erase(engine: Engine, settings: Settings, address: str, *, actor: str) -> ErasureReport:
    """Erase the person of this address, in any spelling. For an unknown address too: then only the suppression is new.

    What can't be read is a problem in the report, and the rest goes on.

    Raises:
        AddressError: it isn't an address; the sentence doesn't contain it.
    """
    person = normalise(address)
    address_hash = settings.identity().address_hash(person.normalised)
    rows = write_again(engine, lambda c: _erase_central(c, person, address_hash, actor))
    with read(engine) as connection:
        frozen = published_snapshots(connection)
        building = _being_frozen(connection)
    work = _Work(engine, settings)
    for snapshot in frozen:
        work.amend(snapshot, [address_hash])
    dropped, unread = _clear_rejects(settings.storage / "rejects", person)
    with read(engine) as connection:
        elsewhere = _elsewhere(connection, settings, address_hash, frozen)
    report = ErasureReport(
        rows, tuple(work.amended), dropped, (*work.waiting, *building), elsewhere, (*work.problems, *unread)
    )
    _note(engine, actor, "contacts.erase.files", f"address:{address_hash.hex()}", report)
    return report


def finish(engine: Engine, settings: Settings, *, actor: str, send_id: int | None = None) -> ErasureReport:
    """Blank what waited for a running send (this one, or all), of everybody who was ever erased."""
    s = suppressions.c
    with read(engine) as connection:
        erased = connection.execute(
            select(s.address_hash, func.coalesce(s.refused_at, s.created_at).label("at")).where(
                s.reason == SuppressionReason.ERASED
            )
        ).all()
        frozen = published_snapshots(connection, send_id=send_id) if erased else []
    work = _Work(engine, settings)
    for snapshot in frozen:
        # who came back after the erasure is in later snapshots by a consent of their own
        people = {bytes(row.address_hash) for row in erased if row.at >= snapshot.frozen_at}
        if people:
            work.amend(snapshot, people)
    report = ErasureReport(None, tuple(work.amended), waiting=tuple(work.waiting), problems=tuple(work.problems))
    if report.amended:
        _note(engine, actor, "contacts.erase.finish", "address:*", report)
    return report


class _Work:
    """One snapshot after the other; a damaged one doesn't keep the others from being amended."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self.amended: list[tuple[SnapshotRef, Amended]] = []
        self.waiting: list[str] = []
        self.problems: list[str] = []

    def amend(self, snapshot: SnapshotRef, people: Collection[bytes] | None, why: str = ERASED) -> None:
        try:
            done = amend(self._engine, self._settings, snapshot.id, people, why)
        except (SnapshotError, ShardError, OSError) as error:
            self.problems.append(f"{snapshot}: {error}")
            return
        if done.rows:
            self.amended.append((snapshot, done))
        self.waiting += [
            f"{snapshot}, shard {number}: a dispatch server works on it; nothing is sent to them meanwhile"
            for number in done.waiting
        ]


@dataclass(frozen=True)
class Expiry:
    """``expired``: what was blanked, or in a dry run would be (then rows are 0)."""

    expired: tuple[tuple[SnapshotRef, Amended], ...]
    running: tuple[SnapshotRef, ...]  # old enough, but their send isn't over
    problems: tuple[str, ...] = ()


def expire(engine: Engine, settings: Settings, *, older_than: timedelta, actor: str, dry_run: bool = True) -> Expiry:
    """Blank everybody in snapshots published longer ago than ``older_than`` whose send is over.

    Keys, providers, variants and ledgers stay: books still balance, and links in old mails still unsubscribe.
    """
    with read(engine) as connection:
        old = published_snapshots(connection, published_before=now() - older_than)
        over = {snapshot.id for snapshot in old if _is_over(connection, snapshot.id)}
    due = [snapshot for snapshot in old if snapshot.id in over and not _has_expired(settings, snapshot)]
    running = tuple(snapshot for snapshot in old if snapshot.id not in over)
    if dry_run:
        return Expiry(tuple((snapshot, Amended()) for snapshot in due), running)
    work = _Work(engine, settings)
    for snapshot in due:
        work.amend(snapshot, None, EXPIRED)
    for snapshot, amended in work.amended:
        with write(engine) as connection:
            detail = {"phase": snapshot.phase, "rows": amended.rows, "files": amended.files}
            audit.record(connection, actor, "snapshot.expire", f"send:{snapshot.send}", detail)
    return Expiry(tuple(work.amended), running, tuple(work.problems))


def published_snapshots(
    connection: Connection, *, send_id: int | None = None, published_before: datetime | None = None
) -> list[SnapshotRef]:
    """Oldest first: all, those of one send, those published before a time."""
    query = (
        select(snapshots, campaigns.c.name, sends.c.edition, sends.c.finished_at)
        .join_from(snapshots, sends, snapshots.c.send_id == sends.c.id)
        .join(campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(snapshots.c.state == SnapshotState.PUBLISHED)
        .order_by(snapshots.c.id)
    )
    if send_id is not None:
        query = query.where(snapshots.c.send_id == send_id)
    if published_before is not None:
        query = query.where(snapshots.c.published_at < published_before)
    return [
        SnapshotRef(
            row.id, f"{row.name}#{row.edition}", row.phase, row.as_of, row.path, row.published_at, row.finished_at
        )
        for row in connection.execute(query)
    ]


def _erase_central(connection: Connection, person: Address, address_hash: bytes, actor: str) -> ErasedRows:
    rows = erase_rows(connection, person, address_hash, by=actor, at=now())
    detail = {
        "contacts": rows.contacts, "subscriptions": rows.subscriptions, "ip_addresses": rows.ip_addresses,
        "seeds": rows.seeds,
    }  # fmt: skip
    audit.record(connection, actor, "contacts.erase", f"address:{address_hash.hex()}", detail)
    return rows


def _is_over(connection: Connection, snapshot_id: int) -> bool:
    unsettled = exists().where(shards.c.snapshot_id == snapshots.c.id, shards.c.state != ShardState.SETTLED)
    query = (
        select(sends.c.id)
        .join_from(snapshots, sends, snapshots.c.send_id == sends.c.id)
        .where(snapshots.c.id == snapshot_id, sends.c.claim.is_(None), sends.c.state.in_(FINAL), ~unsettled)
    )
    return connection.scalar(query) is not None


def _has_expired(settings: Settings, snapshot: SnapshotRef) -> bool:
    try:
        amendments = manifests.load(store(settings) / snapshot.path).amendments
    except SnapshotError:
        return False  # let the amendment say what is wrong
    return any(amendment.why == EXPIRED for amendment in amendments)


def _being_frozen(connection: Connection) -> tuple[str, ...]:
    query = (
        select(campaigns.c.name, sends.c.edition, snapshots.c.phase)
        .join_from(snapshots, sends, snapshots.c.send_id == sends.c.id)
        .join(campaigns, sends.c.campaign_id == campaigns.c.id)
        .where(snapshots.c.state == SnapshotState.BUILDING)
        .order_by(snapshots.c.id)
    )
    return tuple(
        f"{row.name}#{row.edition} phase {row.phase} is being frozen now; nothing of it is sent to them"
        for row in connection.execute(query)
    )


def _elsewhere(
    connection: Connection, settings: Settings, address_hash: bytes, frozen: Collection[SnapshotRef]
) -> tuple[str, ...]:
    """Job folders with a copy, here and on dispatch servers; mail queues and logs that may name the person; backups."""
    found = []
    for path in sorted(settings.jobs_dir.glob("*/*/*/shards/*.parquet")):
        if address_hash in load_columns(path).address_hash:
            found.append(
                f"job folder {path.parent.parent.relative_to(settings.home)}: emptied when its slot is through"
            )
    servers: dict[str, set[str]] = {}
    remote: set[str] = set()
    for snapshot in frozen:
        try:
            holders = held_by(connection, settings, snapshot, address_hash)
        except (SnapshotError, OSError):
            continue  # named among the problems already
        for holder in holders:
            if holder.granted:
                servers.setdefault(holder.server, set()).add(snapshot.send)
            if holder.jobs_dir is not None:
                remote.add(_folder_there(settings, snapshot, holder))
    found += sorted(remote)
    for server, refs in sorted(servers.items()):
        found.append(f"dispatch server {server}: mail queue and log of its MTA ({', '.join(sorted(refs))})")
    if not isinstance(root := store(settings), Path):
        found.append(f"snapshot store {root}: earlier versions of objects, when its bucket keeps versions")
    return (*found, "backups made until now: they hold the person until they expire; erase again after a restore")


@dataclass(frozen=True)
class Holder:
    """A slot that had the person's shard."""

    server: str
    slot: int
    granted: bool  # their row, too: the server's MTA may know them
    jobs_dir: str | None  # of a server behind SSH; None: its job folder is on this machine
    lost: bool  # given up, and its ledgers not read since


def held_by(connection: Connection, settings: Settings, snapshot: SnapshotRef, address_hash: bytes) -> list[Holder]:
    """The slots that the person's shard was leased to."""
    folder = store(settings) / snapshot.path
    held = may_hold(manifests.load(folder), address_hash)
    server = dispatch_servers.c
    rows = connection.execute(
        select(
            shards.c.path, leases.c.first_row, leases.c.granted_through, leases.c.slot,
            server.name, server.channel, server.remote_jobs_dir, server.state, server.unreconciled,
        )
        .join_from(leases, shards, leases.c.shard_id == shards.c.id)
        .join(dispatch_servers, leases.c.server_id == server.id)
        .where(shards.c.snapshot_id == snapshot.id, held)
    ).all()  # fmt: skip
    hashes = {path: load_columns(folder / path).address_hash for path in {row.path for row in rows}}
    return [
        Holder(
            row.name,
            row.slot,
            address_hash in hashes[row.path][row.first_row : row.granted_through],
            # retiring a server removes its job folders
            row.remote_jobs_dir if row.channel == ChannelKind.SSH and row.state != ServerState.RETIRED else None,
            row.unreconciled,
        )
        for row in rows
        if address_hash in hashes[row.path]
    ]


def _folder_there(settings: Settings, snapshot: SnapshotRef, holder: Holder) -> str:
    """The job folder of a dispatch server, and until when it is there."""
    path = f"{holder.jobs_dir}/{snapshot.send.replace('#', '/')}/{holder.server}.{holder.slot}"
    where = f"job folder {path} on dispatch server {holder.server} ({snapshot.send})"
    if holder.lost:
        return f"{where}: it was given up; emptied when it is reconciled"
    shard = f"{where}: its shards are removed when its slot is through"
    if snapshot.finished_at is None:
        return f"{shard}, the folder {settings.job_folder_days} days after the send is over"
    return f"{shard}, the folder on {expires_at(settings, snapshot.finished_at):%Y-%m-%d}"


def _clear_rejects(folder: Path, person: Address) -> tuple[int, tuple[str, ...]]:
    dropped, problems = 0, []
    for path in sorted(folder.glob("*.csv")):
        try:
            data, rows = without_person(path.read_bytes(), person)
        except (csv.Error, UnicodeError) as error:
            problems.append(f"{path}: can't be searched ({error}); look into it yourself, or remove it")
            continue
        if rows:
            replace_file(path, data, 0o600)
            dropped += rows
    return dropped, tuple(problems)


def _note(engine: Engine, actor: str, action: str, obj: str, report: ErasureReport) -> None:
    detail = {
        "snapshots": [str(snapshot) for snapshot, _ in report.amended], "rejects": report.rejects,
        "waiting": len(report.waiting),
    }  # fmt: skip
    with write(engine) as connection:
        audit.record(connection, actor, action, obj, detail)
