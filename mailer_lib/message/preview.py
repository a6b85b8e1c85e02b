"""What one recipient would read. Links and pixel carry tokens that nobody signed: a click in a preview does nothing."""

import secrets
from dataclasses import dataclass

from sqlalchemy import Connection, Row, select

from mailer_lib.contacts.address import normalise
from mailer_lib.database.schema import contacts, lists
from mailer_lib.fleet import domains
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import Campaign, CampaignError, get_campaign
from mailer_lib.message.compile import make_bundle
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import Recipient


@dataclass(frozen=True)
class Preview:
    subject: str
    html: str
    text: str


def render_preview(bundle: Bundle, recipient: Recipient) -> Preview:
    """
    Raises:
        RenderError: this recipient's message can't be built.
    """
    builder = MessageBuilder(bundle, dkim_key_pem=None, token_key=secrets.token_bytes(32))
    rendered = builder.render(recipient)
    return Preview(rendered.subject, rendered.html, rendered.text)


def draft_bundle(connection: Connection, settings: Settings, name: str) -> tuple[Campaign, Bundle]:
    """A campaign as it would be frozen now, for previews: send number 0, edition ``preview``.

    Raises:
        CampaignError, FleetError, TemplateProblemError: a sentence that says what to mend.
    """
    campaign = get_campaign(connection, name)
    domain = domains.get(connection, campaign.sending_domain)
    title = connection.scalar(select(lists.c.title).where(lists.c.name == campaign.list_name)) or campaign.list_name
    bundle = make_bundle(settings, campaign, domain, list_title=title, edition="preview", send_id=0)
    return campaign, bundle


def recipient_of(connection: Connection, settings: Settings, address: str, variant: int = 0) -> Recipient:
    """A contact as a recipient, with its values of this moment; the message key is nobody's.

    Raises:
        AddressError: not an address.
        CampaignError: there is no such contact.
    """
    address_hash = settings.identity().address_hash(normalise(address).normalised)
    row = connection.execute(select(contacts).where(contacts.c.address_hash == address_hash)).one_or_none()
    if row is None:
        raise CampaignError("there is no contact with that address; `mailfleet contacts import` brings them in")
    return as_recipient(row, variant)


def as_recipient(row: Row[tuple[object, ...]], variant: int = 0) -> Recipient:
    """A row of ``contacts``."""
    return Recipient(
        contact_id=row.id,
        message_key=bytes(16),
        address_hash=row.address_hash,
        address=normalise(row.address_given).deliverable,
        domain=row.domain,
        provider=row.provider,
        variant=variant,
        given_name=row.given_name,
        family_name=row.family_name,
        locale=row.locale,
        timezone=row.timezone,
        attributes={key: value for key, value in (row.attributes or {}).items() if value is not None},
    )
