"""How far a send is: read from the central database, as ``mailfleet send watch`` does."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, func, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import dispatch_servers, leases, sends, shards, slot_reports, snapshots
from mailer_lib.dispatch.sends import find_send
from mailer_lib.identity import IdentityKey
from mailer_lib.terms import Outcome, ShardState


@dataclass(frozen=True)
class Progress:
    frozen: int
    outcomes: dict[Outcome, int]
    deferrals: int
    slots: tuple[str, ...]  # "local-1 sending 120/s", by server
    first_injected_at: datetime | None

    @property
    def settled(self) -> int:
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {outcome}" for outcome, number in self.outcomes.items() if number)
        again = f", {self.deferrals:,} deferrals" if self.deferrals else ""
        return f"{self.settled:,} of {self.frozen:,}: {counts or 'nothing yet'}{again}  |  {' · '.join(self.slots)}"


def progress(engine: Engine, send_ref: str) -> Progress:
    with read(engine) as connection:
        send = find_send(connection, send_ref)
        frozen = connection.scalar(select(func.sum(snapshots.c.frozen)).where(snapshots.c.send_id == send.id)) or 0
        sums = connection.execute(
            select(
                *[func.sum(leases.c[outcome]).label(outcome) for outcome in Outcome], func.sum(leases.c.deferrals)
            ).where(leases.c.send_id == send.id)
        ).one()
        slots = connection.execute(
            select(dispatch_servers.c.name, slot_reports.c.state, slot_reports.c.per_s)
            .join_from(slot_reports, dispatch_servers)
            .where(slot_reports.c.send_id == send.id)
            .order_by(dispatch_servers.c.name)
        ).all()
    return Progress(
        frozen=frozen,
        outcomes={outcome: int(number or 0) for outcome, number in zip(Outcome, sums, strict=False)},
        deferrals=int(sums[-1] or 0),
        slots=tuple(f"{slot.name} {slot.state} {slot.per_s:.0f}/s" for slot in slots),
        first_injected_at=send.first_injected_at,
    )


def far_from_their_turn(engine: Engine, identity: IdentityKey, send_ref: str, addresses: list[str]) -> list[str]:
    """Of ``addresses`` (normalised), those whose shard nobody has leased yet; the last shards first."""
    with read(engine) as connection:
        send = find_send(connection, send_ref)
        rows = connection.execute(
            select(shards.c.number, shards.c.state, shards.c.next_row, sends.c.id)
            .join_from(shards, sends)
            .where(sends.c.id == send.id)
            .order_by(shards.c.number)
        ).all()
    untouched = {row.number for row in rows if row.state == ShardState.OPEN and row.next_row == 0}

    def shard(address: str) -> int:  # docs/architecture.md, "Files"
        return int.from_bytes(identity.address_hash(address)[:4], "big") % len(rows)

    return sorted((a for a in addresses if rows and shard(a) in untouched), key=shard, reverse=True)
