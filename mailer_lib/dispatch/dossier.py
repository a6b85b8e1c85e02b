"""Everything that is known of one person, as plain data: the answer to a request under GDPR Art. 15 and 20.

Tables, the frozen rows of every published snapshot with what became of them by the ledgers, the snapshots that left
them out and why, and what web doors noted of their messages.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.whereabouts import find_exclusion, find_row, may_hold
from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.hash_lists import lists_naming
from mailer_lib.contacts.person import look_up, suppressions_of
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import sends, shards
from mailer_lib.dispatch.erasure import SnapshotRef, published_snapshots
from mailer_lib.dispatch.row_outcome import row_outcome
from mailer_lib.identity import message_key
from mailer_lib.settings import Settings
from mailer_lib.shard.files import read_shard
from mailer_lib.shard.recipient import Recipient, bound_variant
from mailer_lib.shard.store import store

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
            "hash_lists": lists_naming(connection, person),
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
    found = [asdict(one) for one in suppressions_of(connection, address_hash)]
    return [{"list": one.pop("list_name") or "every list", **one} for one in found]


def _message(
    connection: Connection, settings: Settings, snapshot: SnapshotRef, address_hash: bytes
) -> dict[str, Any] | None:
    folder = store(settings) / snapshot.path
    held = may_hold(manifests.load(folder), address_hash)
    rows = connection.execute(
        select(shards.c.id, shards.c.path, sends.c.decided_variant)
        .join_from(shards, sends, shards.c.send_id == sends.c.id)
        .where(shards.c.snapshot_id == snapshot.id, held)
    )
    places = ((shard, find_row(folder / shard.path, address_hash)) for shard in rows)
    shard, found = next(((shard, row) for shard, row in places if row is not None), (None, None))
    if shard is None or found is None:
        return None
    _, recipient = next(read_shard(folder / shard.path, found.row))
    recipient = replace(recipient, variant=bound_variant(recipient.variant, shard.decided_variant))
    said = row_outcome(connection, store(settings), shard.id, found.row)
    return {
        "send": snapshot.send,
        "phase": snapshot.phase,
        "frozen_at": snapshot.frozen_at,
        "frozen": _frozen(recipient),
        "outcome": said.outcome,
        "at": said.at,
        "reply": said.reply,
        "deferrals": said.deferrals,
    }


def _frozen(recipient: Recipient) -> dict[str, Any] | None:
    """What the message was made of; None when it was erased or has expired."""
    if not recipient.address:
        return None
    fields = ("address", "given_name", "family_name", "locale", "timezone", "provider", "variant")
    return {name: getattr(recipient, name) for name in fields} | {"attributes": dict(recipient.attributes)}


def _left_out(settings: Settings, snapshot: SnapshotRef, address_hash: bytes) -> dict[str, Any] | None:
    """They matched the criteria and weren't mailed: why."""
    folder = store(settings) / snapshot.path
    mask = find_exclusion(folder, manifests.load(folder), address_hash)
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
