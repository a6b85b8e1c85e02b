"""DKIM keys of dispatch servers: a selector for each server and sending domain, so that a key that leaks with one
server is replaced without touching the others. A server without one signs with the sending domain's key.

    waiting (made, to be published) → signing → leaving (the next one signs; mail that it signed is on its way) → gone
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from mailer_lib import secret_refs
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import dispatch_servers, dkim_keys
from mailer_lib.fleet.domains import SendingDomain, make_dkim_key, public_key_of
from mailer_lib.settings import Settings
from mailer_lib.terms import DkimKeyState

_NO_LABEL = re.compile(r"[^a-z0-9]+")
_SLUG_LENGTH = 48  # a DNS label has 63 octets


@dataclass(frozen=True)
class DkimKey:
    """A server's key for one sending domain."""

    id: int
    domain_id: int
    server_id: int
    server: str
    selector: str
    key_ref: str
    state: DkimKeyState
    changed_at: datetime

    def public(self, settings: Settings) -> str:
        """The public half for DNS.

        Raises:
            SecretRefError: the private key isn't there.
        """
        return public_key_of(secret_refs.resolve(settings, self.key_ref))

    def of(self, domain: SendingDomain) -> SendingDomain:
        """The domain as this key signs for it."""
        return dataclasses.replace(domain, dkim_selector=self.selector, dkim_key_ref=self.key_ref)


def signed_by(connection: Connection, domain: SendingDomain, server_id: int) -> SendingDomain:
    """The domain with selector and key that this server signs with."""
    signing = keys_of(connection, domain_id=domain.id, server_id=server_id, states=(DkimKeyState.SIGNING,))
    return signing[0].of(domain) if signing else domain


def keys_of(
    connection: Connection,
    *,
    domain_id: int | None = None,
    server_id: int | None = None,
    states: Sequence[DkimKeyState] = (DkimKeyState.WAITING, DkimKeyState.SIGNING, DkimKeyState.LEAVING),
) -> list[DkimKey]:
    """Those whose record is, or is to be, in DNS; by server, the oldest first."""
    query = select(dkim_keys, dispatch_servers.c.name).join(dispatch_servers).where(dkim_keys.c.state.in_(states))
    if domain_id is not None:
        query = query.where(dkim_keys.c.domain_id == domain_id)
    if server_id is not None:
        query = query.where(dkim_keys.c.server_id == server_id)
    return [_key(row) for row in connection.execute(query.order_by(dispatch_servers.c.name, dkim_keys.c.id))]


def make(
    connection: Connection, settings: Settings, domain: SendingDomain, server_id: int, server: str, *, actor: str
) -> DkimKey:
    """The server's next key for the domain; it signs nothing yet. A selector is never used twice."""
    taken = set(connection.scalars(select(dkim_keys.c.selector).where(dkim_keys.c.domain_id == domain.id)))
    slug = _NO_LABEL.sub("-", server.lower()).strip("-")[:_SLUG_LENGTH].strip("-") or "server"
    mine = (dkim_keys.c.domain_id == domain.id) & (dkim_keys.c.server_id == server_id)
    number = int(connection.scalar(select(func.count()).select_from(dkim_keys).where(mine)) or 0) + 1
    while (selector := f"{slug}-{number}") in {*taken, domain.dkim_selector}:
        number += 1
    path = Path("keys") / "dkim" / f"{domain.name}.{selector}.pem"
    make_dkim_key(settings.home / path)
    values = {"domain_id": domain.id, "server_id": server_id, "selector": selector, "key_ref": f"file:{path}"}
    connection.execute(
        insert(dkim_keys).values(**values, state=DkimKeyState.WAITING, created_at=now(), changed_at=now())
    )
    record(connection, actor, "dkim key made", f"server:{server}", {"domain": domain.name, "selector": selector})
    (key,) = (one for one in keys_of(connection, domain_id=domain.id, server_id=server_id) if one.selector == selector)
    return key


def let_sign(connection: Connection, domain: SendingDomain, key: DkimKey, *, actor: str) -> None:
    """Jobs that begin from now on are signed with it; the one before it leaves."""
    mine = (dkim_keys.c.domain_id == key.domain_id) & (dkim_keys.c.server_id == key.server_id)
    before = mine & (dkim_keys.c.state == DkimKeyState.SIGNING)
    connection.execute(update(dkim_keys).where(before).values(state=DkimKeyState.LEAVING, changed_at=now()))
    _set(connection, key, DkimKeyState.SIGNING)
    detail = {"domain": domain.name, "selector": key.selector}
    record(connection, actor, "dkim key signs", f"server:{key.server}", detail)


def let_go(connection: Connection, key: DkimKey, *, actor: str) -> None:
    """Nothing that it signed is on its way any more: its record may leave DNS."""
    _set(connection, key, DkimKeyState.GONE)
    record(connection, actor, "dkim key gone", f"server:{key.server}", {"selector": key.selector})


def remove_file(settings: Settings, key: DkimKey) -> None:
    """Once it is gone nobody is to sign with it."""
    (settings.home / key.key_ref.removeprefix("file:")).unlink(missing_ok=True)


def _set(connection: Connection, key: DkimKey, state: DkimKeyState) -> None:
    connection.execute(update(dkim_keys).where(dkim_keys.c.id == key.id).values(state=state, changed_at=now()))


def _key(row: Row[Any]) -> DkimKey:
    return DkimKey(
        row.id, row.domain_id, row.server_id, row.name, row.selector, row.key_ref, DkimKeyState(row.state),
        row.changed_at,
    )  # fmt: skip
