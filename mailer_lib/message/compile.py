"""A send's content, frozen: the bundle on disk, its links in the database, its hash on the send."""

from pathlib import Path

from sqlalchemy import Engine, delete, insert, select, update

from mailer_lib.audience.files import replace_file
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import campaigns, lists, send_links, sends
from mailer_lib.fleet import domains
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import Campaign, CampaignError, get_campaign
from mailer_lib.message.templates import compile_campaign
from mailer_lib.settings import Settings
from mailer_lib.shard.store import StorePath, store
from mailer_lib.terms import SendState

_CONTENT_STANDS = frozenset({SendState.APPROVED, SendState.RUNNING})


def freeze_bundle(engine: Engine, settings: Settings, send_id: int) -> Bundle:
    """Compile the send's campaign and keep the result; idempotent.

    Content that was approved, or of which a message has left, stands: a later edit of the campaign is for the next
    edition, and the links of mails already sent must keep their numbers.

    Raises:
        CampaignError: no such send, or its frozen bundle is lost.
        TemplateProblemError: a template can't be compiled.
    """
    with read(engine) as connection:
        row = connection.execute(
            select(sends, campaigns.c.name.label("campaign"), lists.c.title.label("list_title"))
            .join(campaigns, campaigns.c.id == sends.c.campaign_id)
            .join(lists, lists.c.id == campaigns.c.list_id)
            .where(sends.c.id == send_id)
        ).one_or_none()
        if row is None:
            raise CampaignError(f"there is no send number {send_id}")
        if row.content_hash and (row.started_at is not None or row.state in _CONTENT_STANDS):
            return load_bundle(settings, row.content_hash)
        campaign = get_campaign(connection, row.campaign)
        domain = domains.get(connection, campaign.sending_domain)
    bundle = make_bundle(settings, campaign, domain, list_title=row.list_title, edition=row.edition, send_id=send_id)
    store_bundle(settings, bundle)
    with write(engine) as connection:
        connection.execute(delete(send_links).where(send_links.c.send_id == send_id))
        if bundle.links:
            links = [{"send_id": send_id, "number": n, "url": url} for n, url in enumerate(bundle.links)]
            connection.execute(insert(send_links), links)
        connection.execute(update(sends).where(sends.c.id == send_id).values(content_hash=bundle.content_hash))
    return bundle


def make_bundle(
    settings: Settings, campaign: Campaign, domain: SendingDomain, *, list_title: str, edition: str, send_id: int
) -> Bundle:
    """Compile and assemble, writing nothing: previews and pre-flight use ``send_id`` 0.

    Raises:
        TemplateProblemError: a template can't be compiled.
    """
    compiled = compile_campaign(campaign)
    return Bundle(
        campaign=campaign.name,
        edition=edition,
        send_id=send_id,
        list_name=campaign.list_name,
        list_title=list_title,
        sender=campaign.sender,
        reply_to=campaign.reply_to,
        dkim_domain=domain.name,
        dkim_selector=domain.dkim_selector,
        return_path_domain=domain.return_path_domain,
        tracking_url=(domain.tracking_url or str(settings.public_url)).rstrip("/"),
        track_links=campaign.tracking.links,
        track_opens=campaign.tracking.opens,
        variants=compiled.variants,
        links=compiled.links,
        defaults=campaign.defaults,
        values=campaign.values,
        postal_address=" ".join(campaign.postal_address.split()),
    )


def bundle_path(settings: Settings, content_hash: str) -> StorePath:
    return store(settings) / "bundles" / content_hash / "message.json"


def load_bundle(settings: Settings, content_hash: str) -> Bundle:
    """
    Raises:
        CampaignError: it is gone or was changed.
    """
    path = bundle_path(settings, content_hash)
    try:
        bundle = Bundle.load(path)
    except FileNotFoundError:
        raise CampaignError(f"the frozen message {path} is gone; restore it from the backup") from None
    if bundle.content_hash != content_hash:
        raise CampaignError(f"{path} was changed after it was frozen; restore it from the backup")
    return bundle


def store_bundle(settings: Settings, bundle: Bundle) -> StorePath:
    """Write ``message.json`` under its hash, whole or not at all."""
    path = bundle_path(settings, bundle.content_hash)
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, bundle.dump())
    return path
