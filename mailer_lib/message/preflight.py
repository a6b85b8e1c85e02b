"""Pre-flight: everything that can be known to be wrong before anybody gets a mail.

Each check is a small function over plain data; ``preflight`` gathers what they need. A message is really built and
signed for a few contacts, and read back as a receiver would.
"""

import email
import email.policy
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from email.message import EmailMessage
from urllib.parse import urlsplit

from jinja2 import TemplateSyntaxError
from sqlalchemy import Engine, select

from mailer_lib import tokens
from mailer_lib.audience import criteria
from mailer_lib.contacts import attributes
from mailer_lib.contacts.lists import ListError, list_id
from mailer_lib.database.engine import read
from mailer_lib.database.schema import contacts, lists, seed_addresses, subscriptions
from mailer_lib.fleet import domains
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.fleet.names import FleetError
from mailer_lib.message import preflight_net
from mailer_lib.message.builder import BuiltMessage, MessageBuilder, RenderError
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import Campaign, get_campaign
from mailer_lib.message.compile import make_bundle
from mailer_lib.message.dkim import DkimKeyError, load_key
from mailer_lib.message.findings import Finding, error, info, warning
from mailer_lib.message.islands import TemplateProblemError
from mailer_lib.message.merge import MergeFields, merge_fields
from mailer_lib.message.preview import as_recipient
from mailer_lib.message.templates import compile_campaign
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import Recipient
from mailer_lib.terms import AttributeType, FindingLevel, SendMode, SubscriptionState

GMAIL_CLIPS_BYTES = 102 * 1024
NEAR_CLIP_BYTES = 90 * 1024
SAMPLES = 5
_BARE = Recipient(0, bytes(16), bytes(16), "someone@example.com", "example.com", "other")
_WANTED_HEADERS = (
    "From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "List-Unsubscribe", "List-Unsubscribe-Post",
    "List-ID", "Feedback-ID",
)  # fmt: skip


@dataclass(frozen=True)
class _Facts:
    campaign: Campaign
    domain: SendingDomain
    list_title: str
    declared: Mapping[str, AttributeType]
    samples: list[Recipient]


def preflight(
    engine: Engine, settings: Settings, campaign_name: str, *, mode: SendMode = SendMode.SEND
) -> list[Finding]:
    """All findings, errors first.

    Raises:
        CampaignError: there is no such campaign.
    """
    findings: list[Finding] = []
    with read(engine) as connection:
        campaign = get_campaign(connection, campaign_name)
        try:
            domain = domains.get(connection, campaign.sending_domain)
        except FleetError as problem:
            return [error("sending-domain", str(problem))]
        try:
            for name in (campaign.criteria, *campaign.exclude.criteria):
                criteria.load(connection, name)
        except criteria.UnknownCriteriaError as problem:
            findings.append(error("criteria", str(problem)))
        try:
            for name in campaign.exclude.lists:
                list_id(connection, name)
        except ListError as problem:
            findings.append(error("exclude", str(problem)))
        found = connection.execute(select(lists.c.id, lists.c.title).where(lists.c.name == campaign.list_name)).one()
        rows = connection.execute(
            select(contacts)
            .join(subscriptions, subscriptions.c.contact_id == contacts.c.id)
            .where(subscriptions.c.list_id == found.id, subscriptions.c.state == SubscriptionState.CONFIRMED)
            .limit(SAMPLES)
        ).all()
        facts = _Facts(campaign, domain, found.title, attributes.declared(connection), [as_recipient(r) for r in rows])
        seeds = campaign.seed_list and connection.scalar(
            select(seed_addresses.c.address).where(seed_addresses.c.list_name == campaign.seed_list).limit(1)
        )
    if campaign.seed_list and not seeds:
        findings.append(
            warning("seed-list", f"the seed list {campaign.seed_list!r} is empty: a test has no recipients")
        )
    try:
        bundle = make_bundle(settings, campaign, domain, list_title=facts.list_title, edition="preflight", send_id=0)
    except (TemplateProblemError, TemplateSyntaxError) as problem:
        return _sorted([*findings, error("template", str(problem))])
    findings += check_fields(campaign, merge_fields(campaign), facts.declared)
    findings += check_alignment(campaign, domain)
    findings += check_links(bundle)
    findings += check_compiled(campaign)
    findings += check_postal_address(campaign)
    pem, key_findings = _dkim_key(settings, domain)
    findings += key_findings
    findings += check_messages(bundle, pem, facts.samples, tokens.send_token_key(settings.tokens(), 0))
    probe = _unsubscribe_url(settings, bundle, facts.samples[0] if facts.samples else _BARE)
    findings += preflight_net.check_unsubscribe(probe, needed=mode is SendMode.SEND)
    findings += preflight_net.check_dns(domain, domains.public_key_of(pem) if pem else None, settings.dns_server)
    return _sorted(findings)


def check_fields(campaign: Campaign, fields: MergeFields, declared: Mapping[str, AttributeType]) -> Iterator[Finding]:
    """Every merge field exists, or has a default, and defaults have the declared type."""
    for key in sorted(fields.attributes):
        if key in declared or key in campaign.defaults:
            continue
        near = get_close_matches(key, [*declared, *fields.columns, "given_name", "family_name"], n=1)
        hint = f"; did you mean {near[0]}?" if near else "; declare it, or give it a default"
        yield error("merge-field", f"the template uses contact.{key}, which doesn't exist{hint}")
    if fields.computed:
        yield warning(
            "merge-field-computed",
            "the template computes the name of a merge field, so its column may be missing from the snapshot; "
            "write contact.NAME instead",
        )
    for key, value in campaign.defaults.items():
        wanted = declared.get(key)
        fits = {
            AttributeType.TEXT: isinstance(value, str),
            AttributeType.NUMBER: isinstance(value, int | float) and not isinstance(value, bool),
            AttributeType.BOOLEAN: isinstance(value, bool),
            AttributeType.DATE: isinstance(value, str),
            AttributeType.ENUM: isinstance(value, str),
            AttributeType.TEXT_LIST: isinstance(value, list | tuple),
        }
        if wanted is not None and value is not None and not fits[wanted]:
            yield error("default-type", f"the default of {key} is {value!r}, but {key} is declared as {wanted}")


def check_alignment(campaign: Campaign, domain: SendingDomain) -> Iterator[Finding]:
    """DMARC (RFC 7489 §3.1), relaxed: From and DKIM d=, From and return path share an organisation's domain."""
    sender = campaign.sender.address.rpartition("@")[2].lower()
    if not _aligned(sender, domain.name):
        yield error("alignment", f"From is at {sender}, but DKIM signs for {domain.name}: DMARC fails; use one domain")
    if not _aligned(sender, domain.return_path_domain):
        yield warning("alignment-spf", f"the return path {domain.return_path_domain} isn't aligned with From, {sender}")


def check_links(bundle: Bundle) -> Iterator[Finding]:
    """Targets of tracked links."""
    for url in bundle.links:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or any(character.isspace() for character in url):
            yield error("link", f"the link {url!r} is malformed")
        elif "." not in host and host != "localhost":
            yield error("link", f"the link {url!r} has no complete host name")
        elif parts.scheme == "http":
            yield info("link-http", f"the link {url} isn't https")
    yield info("links", f"{len(bundle.links)} tracked links" if bundle.track_links else "links aren't tracked")


def check_compiled(campaign: Campaign) -> Iterator[Finding]:
    """What compiling had to add or leave."""
    compiled = compile_campaign(campaign)
    for url in compiled.untracked:
        yield info("link-untracked", f"the link {url} holds a merge field, so clicks on it aren't counted")
    if compiled.text_derived:
        yield info("text-derived", "the text part is derived from the HTML; read it in the preview")
    if compiled.footer_added:
        yield warning("footer-added", "a part had no unsubscribe link, so a footer with one was added; write your own")
    if any(not variant.text.strip() for variant in compiled.variants):
        yield error("text-part", "the text part is empty")
    if campaign.expires_after is None:
        yield info("no-expiry", "the campaign has no expires_after: what is deferred is tried for as long as it takes")


def check_postal_address(campaign: Campaign) -> Iterator[Finding]:
    if not campaign.postal_address.strip():
        yield warning("postal-address", "there is no postal_address; many countries' law wants one in every mail")


def check_messages(bundle: Bundle, pem: str | None, samples: list[Recipient], token_key: bytes) -> Iterator[Finding]:
    """Messages that were really built: for some contacts, and for one about whom nothing is known."""
    try:
        builder = MessageBuilder(bundle, dkim_key_pem=pem, token_key=token_key)
    except (TemplateSyntaxError, TemplateProblemError) as problem:
        yield error("template", str(problem))
        return
    for number, variant in enumerate(bundle.variants):
        try:
            yield from _check_message(bundle, builder.build(_of_variant(_BARE, number)), variant.name, pem)
            yield info(
                "dynamic-share",
                f"variant {variant.name}: {builder.dynamic_share(_of_variant(_BARE, number)):.1%} of the body is "
                "rendered for each recipient",
            )
        except RenderError as problem:
            level = warning if samples else error
            yield level(
                "bare-contact",
                f"variant {variant.name}: a contact without any attribute fails: {problem}; add a default",
            )
    problems = set()
    for sample in samples:
        for number, variant in enumerate(bundle.variants):
            try:
                builder.build(_of_variant(sample, number))
            except RenderError as problem:
                problems.add(f"variant {variant.name}: the message of contact {sample.contact_id} fails: {problem}")
    for text in sorted(problems):
        yield error("render", text)


def _check_message(bundle: Bundle, built: BuiltMessage, variant: str, pem: str | None) -> Iterator[Finding]:
    message = email.message_from_bytes(built.data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    for name in _WANTED_HEADERS:
        if not str(message[name] or "").strip():
            yield error("header", f"variant {variant}: the header {name} is missing or empty")
    html = message.get_body(("html",))
    size = len(html.get_content().encode()) if html is not None else 0
    if size >= GMAIL_CLIPS_BYTES:
        yield warning("size", f"variant {variant}: the HTML has {size / 1024:.0f} KB; Gmail clips it at 102 KB")
    elif size >= NEAR_CLIP_BYTES:
        yield warning("size", f"variant {variant}: the HTML has {size / 1024:.0f} KB, near Gmail's limit of 102 KB")
    else:
        yield info("size", f"variant {variant}: {size / 1024:.0f} KB HTML, {len(built.data) / 1024:.0f} KB in all")
    if len(str(message["Subject"])) > 120:
        yield info("subject", f"variant {variant}: the subject has {len(str(message['Subject']))} characters")
    if pem is not None and importlib.util.find_spec("dkim") is not None:
        import dkim

        record = f"v=DKIM1; k=rsa; p={domains.public_key_of(pem)}".encode()
        if dkim.verify(built.data, dnsfunc=lambda name, timeout=5: record):
            yield info("dkim", f"variant {variant}: signed for {bundle.dkim_domain}; the signature verifies")
        else:
            yield error("dkim", f"variant {variant}: the signature doesn't verify")


def _dkim_key(settings: Settings, domain: SendingDomain) -> tuple[str | None, list[Finding]]:
    try:
        pem = domains.dkim_private_key(settings, domain)
        key = load_key(pem, f"{domain.dkim_selector}._domainkey.{domain.name}")
    except (SecretRefError, FleetError, DkimKeyError, OSError) as problem:
        return None, [error("dkim-key", f"the DKIM key of {domain.name} can't be used: {problem}")]
    if key.key_size < 2048:
        return pem, [warning("dkim-key", f"the DKIM key of {domain.name} has {key.key_size} bits; 2048 are usual")]
    return pem, []


def _unsubscribe_url(settings: Settings, bundle: Bundle, sample: Recipient) -> str:
    """A link that is signed but names no send: looking at it shows a page, and nothing can be done with it."""
    token = tokens.Token(tokens.TokenKind.UNSUBSCRIBE, 0, sample.contact_id, bytes(16))
    return f"{bundle.tracking_url}/u/{tokens.sign(tokens.send_token_key(settings.tokens(), 0), token)}"


def _of_variant(recipient: Recipient, number: int) -> Recipient:
    return replace(recipient, variant=number)


def _aligned(one: str, other: str) -> bool:
    return one == other or one.endswith("." + other) or other.endswith("." + one)


def _sorted(findings: list[Finding]) -> list[Finding]:
    order = list(FindingLevel)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.level))
