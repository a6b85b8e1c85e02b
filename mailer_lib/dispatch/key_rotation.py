"""A new DKIM key for a dispatch server, in steps that wait for the world: made, published, signing, the old one gone.

Each call does what can be done at this moment, and says what is waited for; call it again. The key signs only once DNS
shows it. The old one stays published until no send that began with it runs and the server's queue is empty.
"""

from dataclasses import dataclass
from enum import StrEnum

import dns.resolver
from sqlalchemy import Connection, Engine, func, select

from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import campaigns, sends
from mailer_lib.dispatch import retiring
from mailer_lib.dispatch.server_verification import domains_of_pool
from mailer_lib.dispatch.states import FINAL
from mailer_lib.fleet import dkim_keys, servers
from mailer_lib.fleet.dkim_keys import DkimKey
from mailer_lib.fleet.dns import dkim_record
from mailer_lib.fleet.domain_dns import publishes_key
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.resolver import ask, open_resolver
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.fleet.verification_facts import RunScript
from mailer_lib.settings import Settings
from mailer_lib.terms import DkimKeyState, ServerState


class Step(StrEnum):
    PUBLISH = "publish"  # its record is to be published
    SIGNS = "signs"  # the new key signs from now on
    STAYS = "stays"  # the old one is still needed
    GONE = "gone"  # its record may be taken out of DNS


@dataclass(frozen=True)
class Rotated:
    """What was done about one key."""

    domain: str
    selector: str
    step: Step
    sentence: str
    zone_line: str = ""  # to publish


def rotate(engine: Engine, settings: Settings, name: str, *, actor: str, run: RunScript | None = None) -> list[Rotated]:
    """The next step for each sending domain of the server's sending pool. A rotation that is under way is finished
    before another one begins.

    Raises:
        FleetError: there is no such server, it is retired, or there is no sending domain.
        NoResolverError: no resolver answers.
        SecretRefError: a key that is waiting is gone.
    """
    with read(engine) as connection:
        server = servers.get(connection, name)
        sending = domains_of_pool(connection, server.pool_id)
    if server.state is ServerState.RETIRED:
        raise FleetError(f"{name} is retired: it signs nothing")
    if not sending:
        raise FleetError(f"no sending domain is stored for the sending pool {server.pool}: mailfleet domain add")
    resolver = open_resolver(settings.dns_server)
    place = _Place(engine, settings, server, actor, resolver, run)
    return [done for domain in sending for done in place.step(domain)]


@dataclass(frozen=True)
class _Place:
    engine: Engine
    settings: Settings
    server: DispatchServer
    actor: str
    resolver: dns.resolver.Resolver
    run: RunScript | None

    def step(self, domain: SendingDomain) -> list[Rotated]:
        with write(self.engine) as connection:
            keys = dkim_keys.keys_of(connection, domain_id=domain.id, server_id=self.server.id)
            leaving = [key for key in keys if key.state is DkimKeyState.LEAVING]
            waiting = [key for key in keys if key.state is DkimKeyState.WAITING]
            if not leaving and not waiting:
                waiting = [
                    dkim_keys.make(
                        connection, self.settings, domain, self.server.id, self.server.name, actor=self.actor
                    )
                ]
        return [*(self._publish(domain, key) for key in waiting), *(self._leave(domain, key) for key in leaving)]

    def _publish(self, domain: SendingDomain, key: DkimKey) -> Rotated:
        public = key.public(self.settings)
        record = dkim_record(key.of(domain), public)
        if not any(publishes_key(text, public) for text in ask(self.resolver, record.name, "TXT")):
            waits = f"{record.name} isn't published yet: publish it, then run this again"
            return Rotated(domain.name, key.selector, Step.PUBLISH, waits, record.zone_line())
        with write(self.engine) as connection:
            dkim_keys.let_sign(connection, domain, key, actor=self.actor)
        signs = f"{record.name} is published: jobs that begin from now on are signed with it"
        return Rotated(domain.name, key.selector, Step.SIGNS, signs)

    def _leave(self, domain: SendingDomain, key: DkimKey) -> Rotated:
        name = f"{key.selector}._domainkey.{domain.name}"
        left = retiring.look(self.engine, self.settings, self.server, self.run)
        with write(self.engine) as connection:
            running = _began_before(connection, self.server, key)
            if running:
                waits = f"{running} of its sends began before the new key signed"
            elif left.problem is not None:
                waits = f"whether its queue is empty can't be told ({left.problem})"
            elif left.queued:
                waits = f"its MTA holds {left.queued:,} messages"
            else:
                dkim_keys.let_go(connection, key, actor=self.actor)
                waits = ""
        if waits:
            return Rotated(domain.name, key.selector, Step.STAYS, f"{name} must stay published: {waits}")
        dkim_keys.remove_file(self.settings, key)
        return Rotated(domain.name, key.selector, Step.GONE, f"{name} may be taken out of DNS")


def _began_before(connection: Connection, server: DispatchServer, key: DkimKey) -> int:
    """Sends that may still be signed with the old key: an agent keeps the key that it began with."""
    query = (
        select(func.count())
        .select_from(sends.join(campaigns, campaigns.c.id == sends.c.campaign_id))
        .where(
            campaigns.c.pool_id == server.pool_id,
            sends.c.state.not_in(FINAL),
            sends.c.started_at < key.changed_at,
        )
    )
    return int(connection.scalar(query) or 0)
