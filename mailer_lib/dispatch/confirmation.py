"""Double opt-in: send the one confirmation mail to everybody who waits for it, on a path of its own.

A row is claimed by setting ``confirmation_sent_at`` in one UPDATE that also looks at state and suppressions, and
committed before the mail is handed over. So whatever is killed, and however many run at once: nobody gets two, and
nobody suppressed gets one. The price: who was claimed at the moment of a kill gets none, at most one a process; they
can sign up again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Engine, exists, select, update

from mailer_lib.contacts import consent
from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.contacts.lists import all_lists, list_id
from mailer_lib.contacts.precedence import EVERYWHERE
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, contacts, domain_suppressions, subscriptions, suppressions
from mailer_lib.dispatch.confirmation_mail import ConfirmationSender, build_confirmation
from mailer_lib.dispatch.one_off import Answer, HandOver, NoServerError, OneOffRelay, reachable
from mailer_lib.fleet import domains, pools, servers
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.message.bundle import Mailbox
from mailer_lib.message.campaign import Campaign
from mailer_lib.message.dkim import sign_message
from mailer_lib.settings import Settings
from mailer_lib.terms import ContactState, ServerState, SubscriptionState, SuppressionReason
from mailer_lib.tokens import Token, TokenKind, sign, signing_key

PAGE = 200

ProgressCall = Callable[[int, int | None], None]


class ConfirmationError(ValueError):
    """Confirmation mails can't be sent; the sentence says what is missing."""


@dataclass(frozen=True)
class ConfirmationOptions:
    """What can't be told from the list's campaigns, or should be otherwise."""

    pool: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class ConfirmationReport:
    sent: int = 0
    refused: int = 0  # for good; no second try
    postponed: int = 0  # not handed over: the next run tries again
    unknown: int = 0  # perhaps handed over; not repeated
    reasons: Mapping[str, int] = field(default_factory=dict)  # why not, in the MTA's words without addresses


@dataclass(frozen=True)
class _Person:
    id: int
    address_given: str
    address_hash: bytes
    given_name: str | None
    locale: str | None


@dataclass(frozen=True)
class _SetUp:
    list_id: int
    sender: ConfirmationSender
    domain: SendingDomain
    dkim_key_pem: str
    servers: list[DispatchServer]
    base_url: str
    token_key: bytes  # of this list


def send_confirmations(
    engine: Engine,
    settings: Settings,
    list_name: str,
    options: ConfirmationOptions | None = None,
    progress: ProgressCall | None = None,
    *,
    actor: str = "confirmation",
) -> ConfirmationReport:
    """Send what is due for one list. ``progress`` gets mails done and due.

    Raises:
        ListError, FleetError, ConfirmationError: list, sending domain or sending pool can't be told; nothing was sent.
        NoServerError: no dispatch server answers (any more); what was sent stays sent, the rest is due.
    """
    with read(engine) as connection:
        set_up = _set_up(connection, settings, list_name, options or ConfirmationOptions())
        due = len(connection.execute(select(subscriptions.c.contact_id).where(*_due(set_up.list_id))).all())
    counts: Counter[HandOver] = Counter()
    reasons: Counter[str] = Counter()
    try:
        with OneOffRelay(settings, set_up.servers) as relay:
            for person in _waiting(engine, set_up.list_id):
                relay.connect()  # before the claim: a server that is away must cost nobody their mail
                answer = _ask(engine, set_up, relay, person)
                if answer is None:
                    continue
                counts[answer.hand_over] += 1
                if answer.text:
                    reasons[answer.text] += 1
                if progress is not None:
                    progress(sum(counts.values()), due)
    finally:
        if counts:
            with write(engine) as connection:
                detail = {outcome.value: count for outcome, count in counts.items()}
                audit.record(connection, actor, "contacts.confirm-pending", f"list:{list_name}", detail)
    return ConfirmationReport(
        counts[HandOver.TAKEN],
        counts[HandOver.REFUSED],
        counts[HandOver.POSTPONED],
        counts[HandOver.UNKNOWN],
        dict(reasons),
    )


def confirmation_url(
    base_url: str, list_token_key: bytes, *, list_id: int, contact_id: int, address_hash: bytes
) -> str:
    """The link ``/k/<token>``; ``list_token_key`` is ``tokens.signing_key`` of the list."""
    token = Token(TokenKind.CONFIRM, list_id, contact_id, address_hash)
    return f"{base_url.rstrip('/')}/k/{sign(list_token_key, token)}"


def _ask(engine: Engine, set_up: _SetUp, relay: OneOffRelay, person: _Person) -> Answer | None:
    """Claim, build, hand over; None when somebody else has claimed this person, or they may not be asked any more."""
    claimed_at = now()
    with write(engine) as connection:
        if not _claim(connection, set_up.list_id, person.id, claimed_at):
            return None
    try:
        to = normalise(person.address_given).deliverable
    except AddressError as error:  # stored by something other than an import
        return Answer(HandOver.REFUSED, None, str(error))
    url = confirmation_url(
        set_up.base_url, set_up.token_key,
        list_id=set_up.list_id, contact_id=person.id, address_hash=person.address_hash,
    )  # fmt: skip
    mail = build_confirmation(set_up.sender, to=to, name=person.given_name, locale=person.locale, url=url)
    signed = sign_message(mail, set_up.domain.name, set_up.domain.dkim_selector, set_up.dkim_key_pem)
    answer = relay.submit(f"bounces@{set_up.domain.return_path_domain}", to, signed)
    if answer.hand_over is HandOver.POSTPONED:
        with write(engine) as connection:
            _give_back(connection, set_up.list_id, person.id, claimed_at)
    elif answer.hand_over is HandOver.REFUSED and answer.reply is not None:
        with write(engine) as connection:
            consent.suppress(
                connection,
                address_hash=person.address_hash,
                reason=SuppressionReason.HARD_BOUNCE,
                source="confirmation mail",
                at=now(),
            )
    return answer


def _due(of_list: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions on ``subscriptions``: waits, wasn't asked yet, and nothing bars the person."""
    barred = exists().where(
        suppressions.c.address_hash == contacts.c.address_hash,
        suppressions.c.lifted_at.is_(None),
        suppressions.c.list_id.in_((EVERYWHERE, of_list)),
    )
    barred_domain = exists().where(domain_suppressions.c.domain == contacts.c.domain)
    may_be_asked = exists().where(
        contacts.c.id == subscriptions.c.contact_id,
        contacts.c.state == ContactState.ACTIVE.value,
        ~barred.correlate(contacts),
        ~barred_domain.correlate(contacts),
    )
    return (
        subscriptions.c.list_id == of_list,
        subscriptions.c.state == SubscriptionState.PENDING.value,
        subscriptions.c.confirmation_sent_at.is_(None),
        may_be_asked.correlate(subscriptions),
    )


def _waiting(engine: Engine, of_list: int) -> Iterator[_Person]:
    """Who is due, page by page; no transaction stays open while mails are handed over."""
    last = 0
    c = contacts.c
    while True:
        page = (
            select(c.id, c.address_given, c.address_hash, c.given_name, c.locale)
            .join_from(subscriptions, contacts, c.id == subscriptions.c.contact_id)
            .where(*_due(of_list), subscriptions.c.contact_id > last)
            .order_by(subscriptions.c.contact_id)
            .limit(PAGE)
        )
        with read(engine) as connection:
            rows = [_Person(*row) for row in connection.execute(page)]
        if not rows:
            return
        yield from rows
        last = rows[-1].id


def _claim(connection: Connection, of_list: int, contact_id: int, at: datetime) -> bool:
    done = connection.execute(
        update(subscriptions)
        .where(subscriptions.c.contact_id == contact_id, *_due(of_list))
        .values(confirmation_sent_at=at, updated_at=at)
    )
    return done.rowcount == 1


def _give_back(connection: Connection, of_list: int, contact_id: int, claimed_at: datetime) -> None:
    connection.execute(
        update(subscriptions)
        .where(
            subscriptions.c.contact_id == contact_id,
            subscriptions.c.list_id == of_list,
            subscriptions.c.confirmation_sent_at == claimed_at,
        )
        .values(confirmation_sent_at=None, updated_at=now())
    )


def _set_up(connection: Connection, settings: Settings, list_name: str, options: ConfirmationOptions) -> _SetUp:
    target = list_id(connection, list_name)
    title = next(one.title for one in all_lists(connection) if one.id == target)
    campaign = _newest_campaign(connection, target)
    domain = _domain(connection, options.domain or (campaign.sending_domain if campaign else None), list_name)
    pool = _pool(connection, options.pool or (campaign.sending_pool if campaign else None), list_name)
    found = servers.list_servers(connection, pool_id=pool.id, states=(ServerState.ACTIVE, ServerState.WARMING))
    usable = reachable(found)
    if not usable:
        raise NoServerError(
            f"sending pool {pool.name!r} has no active dispatch server whose MTA can be reached from here; "
            "see: mailfleet server list"
        )
    same_domain = campaign is not None and campaign.sending_domain == domain.name
    sender = campaign.sender if campaign and same_domain else Mailbox(name=title, address=f"news@{domain.name}")
    return _SetUp(
        list_id=target,
        sender=ConfirmationSender(sender, title, campaign.postal_address if campaign else ""),
        domain=domain,
        dkim_key_pem=domains.dkim_private_key(settings, domain),
        servers=usable,
        base_url=domain.tracking_url or str(settings.public_url),
        token_key=signing_key(settings.tokens(), TokenKind.CONFIRM, target),
    )


def _newest_campaign(connection: Connection, of_list: int) -> Campaign | None:
    """Whose sender the subscribers of the list will know."""
    query = (
        select(campaigns.c.definition)
        .where(campaigns.c.list_id == of_list)
        .order_by(campaigns.c.updated_at.desc(), campaigns.c.id.desc())
        .limit(1)
    )
    definition = connection.scalar(query)
    return None if definition is None else Campaign.model_validate(definition)


def _domain(connection: Connection, name: str | None, list_name: str) -> SendingDomain:
    if name is not None:
        return domains.get(connection, name)
    found = domains.list_domains(connection)
    if len(found) == 1:
        return found[0]
    raise ConfirmationError(_say_which(list_name, "domain", [one.name for one in found]))


def _pool(connection: Connection, name: str | None, list_name: str) -> pools.Pool:
    if name is not None:
        return pools.get(connection, name)
    found = pools.list_pools(connection)
    if len(found) == 1:
        return found[0]
    raise ConfirmationError(_say_which(list_name, "pool", [one.name for one in found]))


def _say_which(list_name: str, kind: str, names: list[str]) -> str:
    if not names:
        return f"confirmation mails need a sending {kind}: mailfleet {kind} add NAME"
    return f"list {list_name!r} has no campaign yet to tell its sending {kind}: say --{kind}, one of {', '.join(names)}"
