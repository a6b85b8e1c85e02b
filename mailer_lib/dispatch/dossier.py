"""Everything that is known of one person, as plain data: the answer to a request under GDPR Art. 15 and 20.

Tables, the frozen rows of every published snapshot with what became of them by the ledgers, the snapshots that left
them out and why, and what web doors noted of their messages.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine, select

from mailer_lib.agent.ledger import Deferral, Final
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.manifest import Manifest
from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.lists import all_lists
from mailer_lib.contacts.person import look_up
from mailer_lib.contacts.precedence import EVERYWHERE
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import leases, shards, suppressions
from mailer_lib.dispatch.erasure import SnapshotRef, published_snapshots
from mailer_lib.dispatch.kept_ledger import KeptLedger
from mailer_lib.dispatch.lease import get_lease
from mailer_lib.identity import message_key
from mailer_lib.settings import Settings
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.recipient import Recipient
from mailer_lib.shard.store import arrow_source, store

_INTERNAL = frozenset({"address_hash"})


def dossier(engine: Engine, settings: Settings, address: str, *, actor: str) -> dict[str, Any]:
    """JSON-able; audited without the address. For an unknown address everything is empty.

    Raises:
        AddressError: it isn't an address.
        SnapshotError, ShardError: the files of a snapshot can't be read; an answer with gaps would be a wrong one.
    """
    person = normalise(address)
    address_hash = settings.identity().address_hash(person.normalised)
    with read(engine) as connection:
        known = look_up(connection, address_hash=address_hash, domain=person.domain)
        frozen = published_snapshots(connection)
        messages = [m for s in frozen if (m := _message(connection, settings, s, address_hash)) is not None]
        found = {
            "asked_at": now(),
            "address": person.normalised,
            "contact": {k: v for k, v in known.contact.items() if k not in _INTERNAL} if known.contact else None,
            "subscriptions": [asdict(one) for one in known.subscriptions],
            "consent": [asdict(one) for one in known.evidence],
            "suppressions": _suppressions(connection, address_hash),
            "domain_suppressed": known.domain_barred,
            "messages": messages,
            "left_out": [e for s in frozen if (e := _left_out(settings, s, address_hash)) is not None],
        }
    keys = {settings.identity().send_key(*snapshot.send.split("#", 1)): snapshot.send for snapshot in frozen}
    found["events"] = list(_events(settings, {message_key(k, address_hash).hex(): send for k, send in keys.items()}))
    with write(engine) as connection:
        audit.record(connection, actor, "contacts.export", f"address:{address_hash.hex()}")
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_plain))
    return plain


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} in a dossier")


def _suppressions(connection: Connection, address_hash: bytes) -> list[dict[str, Any]]:
    """Lifted ones too."""
    names = {one.id: one.name for one in all_lists(connection)} | {EVERYWHERE: "every list"}
    rows = connection.execute(
        select(suppressions).where(suppressions.c.address_hash == address_hash).order_by(suppressions.c.id)
    )
    return [
        {
            "list": names.get(row.list_id, str(row.list_id)),
            "reason": row.reason,
            "source": row.source,
            "refused_at": row.refused_at,
            "recorded_at": row.created_at,
            "lifted_at": row.lifted_at,
        }
        for row in rows
    ]


def _message(
    connection: Connection, settings: Settings, snapshot: SnapshotRef, address_hash: bytes
) -> dict[str, Any] | None:
    folder = store(settings) / snapshot.path
    number = _shard_number(manifests.load(folder), address_hash)
    shard = connection.execute(
        select(shards.c.id, shards.c.path).where(shards.c.snapshot_id == snapshot.id, shards.c.number == number)
    ).first()
    if shard is None:
        return None
    for row, recipient in read_shard(folder / shard.path):
        if recipient.address_hash == address_hash:
            return {
                "send": snapshot.send,
                "phase": snapshot.phase,
                "frozen_at": snapshot.frozen_at,
                "frozen": _frozen(recipient),
                **_outcome(connection, settings, shard.id, row),
            }
    return None


def _frozen(recipient: Recipient) -> dict[str, Any] | None:
    """What the message was made of; None when it was erased or has expired."""
    if not recipient.address:
        return None
    fields = ("address", "given_name", "family_name", "locale", "timezone", "provider", "variant")
    return {name: getattr(recipient, name) for name in fields} | {"attributes": dict(recipient.attributes)}


def _outcome(connection: Connection, settings: Settings, shard_id: int, row: int) -> dict[str, Any]:
    """By the ledgers, as far as they were accounted for; outcome None: not settled yet."""
    given = (leases.c.shard_id == shard_id, leases.c.first_row <= row, leases.c.granted_through > row)
    said: dict[str, Any] = {"outcome": None, "at": None, "reply": None, "deferrals": 0}
    for lease_id in connection.scalars(select(leases.c.id).where(*given).order_by(leases.c.epoch)).all():
        lease = get_lease(connection, lease_id)
        for record in KeptLedger(store(settings), lease).records():
            if isinstance(record, Final) and record.row == row:
                at = datetime.fromtimestamp(record.t_ms / 1000, now().tzinfo)
                reply = " ".join(filter(None, (str(record.code or ""), record.enhanced, record.text)))
                said |= {"outcome": record.outcome.value, "at": at, "reply": reply or None}
            elif isinstance(record, Deferral) and record.row == row:
                said["deferrals"] += 1
    return said


def _left_out(settings: Settings, snapshot: SnapshotRef, address_hash: bytes) -> dict[str, Any] | None:
    """They matched the criteria and weren't mailed: why."""
    folder, mask = store(settings) / snapshot.path, 0
    wanted = pa.scalar(address_hash, pa.binary(16))
    for entry in manifests.load(folder).excluded:
        table = pq.read_table(arrow_source(folder / entry.path), columns=["address_hash", "reasons"])
        for reasons in table.filter(pc.equal(table.column("address_hash"), wanted)).column("reasons").to_pylist():
            mask |= int(reasons or 0)
    if not mask:
        return None
    return {"send": snapshot.send, "phase": snapshot.phase, "reasons": list(reason_names(mask))}


def _events(settings: Settings, sends: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Opens, clicks, views and leavings of their messages, day by day; ``sends`` by message key (hex)."""
    for path in sorted(settings.storage.glob("events/raw/*/*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a torn line
                send = sends.get(event.get("message_key", "")) if isinstance(event, dict) else None
                if send is not None:
                    at = datetime.fromtimestamp(event["t"], now().tzinfo)
                    yield {"send": send, "at": at, **{k: event[k] for k in ("kind", "link", "agent") if k in event}}


def _shard_number(manifest: Manifest, address_hash: bytes) -> int:
    return int.from_bytes(address_hash[:4], "big") % manifest.shard_count
