"""A server that was given up comes back: what its ledgers say mends what was unknown, then it may serve again.

Its agent is started once in each job folder, with the grants that were stored when it was lost and no other: it settles
what it left in doubt from its MTA's records, and gives up what it had been granted and hadn't begun. Then its ledgers
are read to the end, and unknown rows become what they say. Until then the server gets no lease
(``dispatch_servers.unreconciled``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Engine, select

from mailer_lib.agent.job import LeaseGrant
from mailer_lib.agent.ledger import Amended, Final, LedgerError, LedgerState, decode
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import leases
from mailer_lib.dispatch.agent_keeper import AgentKeeper
from mailer_lib.dispatch.amendments import amend
from mailer_lib.dispatch.central_ledger import final_rows
from mailer_lib.dispatch.channel import Channel, ChannelError
from mailer_lib.dispatch.channels import open_channel
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import Lease, leases_of_send
from mailer_lib.dispatch.lease_tracker import LeaseTracker
from mailer_lib.dispatch.loss import finish_losses
from mailer_lib.dispatch.plan import Slot
from mailer_lib.dispatch.reattach import run_once
from mailer_lib.dispatch.recalling import RecallBooks, RecallReader
from mailer_lib.dispatch.sends import SendRecord, get_send
from mailer_lib.dispatch.shard_columns import load_columns
from mailer_lib.fleet import servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.settings import Settings
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, LeaseState, Outcome, ServerState

_READ_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Reconciled:
    """What one job folder of the server knew. ``mended``: unknown rows by what they are now."""

    send: str
    slot: str
    mended: Mapping[Outcome, int] = field(default_factory=dict)
    unknown: int = 0  # rows that stay so
    trouble: str = ""  # why its folder tells nothing


def reconcile_server(
    engine: Engine, settings: Settings, name: str, actor: str, *, gone: bool = False
) -> list[Reconciled]:
    """Read a fenced server's ledgers; afterwards it is ``standby``. Killed half-way it begins again.

    Args:
        gone: its disk is lost or was wiped: nothing can be read, and what is unknown stays so.

    Raises:
        FleetError: there is no such server, it isn't fenced, or a job folder can't be read and ``gone`` isn't given.
        LedgerError: a ledger is damaged, or has rows that weren't granted.
    """
    with read(engine) as connection:
        server = servers.get(connection, name)
        sends_lost = connection.scalars(
            select(leases.c.send_id)
            .where(leases.c.server_id == server.id, leases.c.state == LeaseState.LOST)
            .distinct()
            .order_by(leases.c.send_id)
        ).all()
    if server.state is not ServerState.FENCED:
        raise FleetError(f"{name} is {server.state}: only a fenced server is reconciled")
    place = _Place(engine, settings, server, actor)
    found = []
    for send_id in sends_lost:
        finish_losses(engine, settings, send_id, f"server {name} was lost")
        with read(engine) as connection:
            send = get_send(connection, send_id)
            lost = [x for x in leases_of_send(connection, send_id, LeaseState.LOST) if x.server_id == server.id]
        by_slot: dict[int, list[Lease]] = {}
        for lease in lost:
            by_slot.setdefault(lease.slot, []).append(lease)
        for number, held in by_slot.items():
            slot = Slot(name, server.id, number, f"{name}.{number}")
            if gone:
                found.append(Reconciled(send.ref, slot.folder, unknown=_unknown(engine, held), trouble="it is gone"))
                continue
            found.append(_one_folder(place, send, slot, held))
    unread = [one for one in found if one.trouble and not gone]
    if unread:
        why = "; ".join(f"{one.slot} of {one.send}: {one.trouble}" for one in unread)
        raise FleetError(f"{name} stays fenced: {why}. If its disk is lost for good, say --gone")
    with write(engine) as connection:
        servers.set_reconciled(connection, name, actor=actor)
        detail = {"folders": len(found), "mended": sum(sum(one.mended.values()) for one in found), "gone": gone}
        audit.record(connection, actor, "server.reconcile", f"server:{name}", detail)
    return found


@dataclass(frozen=True)
class _Place:
    """Where it is done, and by whom."""

    engine: Engine
    settings: Settings
    server: DispatchServer
    actor: str


def _one_folder(place: _Place, send: SendRecord, slot: Slot, held: list[Lease]) -> Reconciled:
    engine, settings = place.engine, place.settings
    over = send.control == Control.STOP or (send.expires_at is not None and send.expires_at <= now())
    try:
        with open_channel(place.server, settings, send, slot) as channel:
            AgentKeeper(channel, slot.label).end()  # only cut off, it may have gone on with its grant
            grants = []
            for lease in held:
                tracker = LeaseTracker(store(settings), lease)
                channel.put_shard(tracker.shard_name, tracker.shard_file)
                grants.append(_grant(lease, tracker.shard_name))
            run_once(
                engine,
                settings,
                send,
                slot,
                channel,
                control=Control.STOP,
                grants=grants,
                suppressions=_sent_elsewhere(engine, settings, send.id, held),
                keep_queue=not over,
            )
            mended: Counter[Outcome] = Counter()
            for lease in held:
                told = _ledger(channel, lease)
                mended.update(x.outcome for x in amend(engine, settings, lease.id, partial(_mended, told=told)))
            RecallReader(RecallBooks(engine, settings, send.id, send.ref, place.actor), channel).sync()
            channel.clear()
    except ChannelError as error:
        return Reconciled(send.ref, slot.folder, unknown=_unknown(engine, held), trouble=str(error))
    return Reconciled(send.ref, slot.folder, dict(mended), _unknown(engine, held))


def _grant(lease: Lease, shard_name: str) -> LeaseGrant:
    return LeaseGrant(
        shard=lease.shard,
        phase=lease.phase,
        epoch=lease.epoch,
        rows=lease.shard_rows,
        first_row=lease.first_row,
        granted_through=lease.granted_through,
        shard_file=f"shards/{shard_name}",
        sha256=lease.sha256,
        rest_variant=lease.decided_variant,
    )


def _ledger(channel: Channel, lease: Lease) -> dict[int, Final]:
    """The whole ledger as the server has it.

    Raises:
        LedgerError: it is damaged, or has a row that wasn't granted under its epoch.
    """
    data = b""
    while piece := channel.fetch_ledger(lease.ledger_name, len(data), _READ_BYTES):
        data += piece
    try:
        records = [decode(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    except ValueError as error:
        raise LedgerError(f"{lease.ledger_name} on the server: damaged ledger line ({error})") from None
    LedgerState.of(records, lease.ledger_name)
    told = {record.row: record for record in records if isinstance(record, Final)}
    strange = [row for row in told if not lease.first_row <= row < lease.granted_through]
    if strange:
        raise LedgerError(
            f"{lease.ledger_name} on the server has {len(strange)} rows that weren't granted to it "
            f"(row {min(strange)}); keep it fenced, and compare it with the ledgers of later epochs"
        )
    return told


def _mended(there: Mapping[int, Final], told: Mapping[int, Final]) -> Iterator[Amended]:
    for row, record in told.items():
        if there[row].outcome is Outcome.UNKNOWN and record.outcome is not Outcome.UNKNOWN:
            yield Amended(*record)


def _sent_elsewhere(engine: Engine, settings: Settings, send_id: int, held: Iterable[Lease]) -> list[str]:
    """Lines of suppressions.log for unknown rows that were sent again meanwhile: the old copy is taken out of the
    returned MTA's queue if it still lies there."""
    doubtful: dict[bytes, str] = {}
    lost = {lease.id for lease in held}
    elsewhere: set[bytes] = set()
    with read(engine) as connection:
        every = leases_of_send(connection, send_id)
    for lease in every:
        outcomes = final_rows(KeptLedger(store(settings), lease))
        wanted = Outcome.UNKNOWN if lease.id in lost else Outcome.INJECTED
        rows = [row for row, record in outcomes.items() if record.outcome is wanted]
        if rows:
            key = load_columns(store(settings) / lease.snapshot_path / lease.shard_path).message_key
            if lease.id in lost:
                doubtful.update((key[row], f"={key[row].hex()}") for row in rows)
            else:
                elsewhere.update(key[row] for row in rows)
    return [line for key, line in doubtful.items() if key in elsewhere]


def _unknown(engine: Engine, held: Iterable[Lease]) -> int:
    ids = [lease.id for lease in held]
    with read(engine) as connection:
        return sum(connection.scalars(select(leases.c.unknown).where(leases.c.id.in_(ids))))
