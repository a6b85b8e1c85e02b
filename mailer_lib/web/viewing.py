"""``/v/<token>``: a message as its recipient got it. ``/p/<token>``: a send's message for those who approve it.

Both are rendered from the frozen bundle and a frozen row. In previews every link and pixel carries a token that nobody
signed, so that an approver's click unsubscribes and counts nobody.
"""

from dataclasses import replace

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from mailer_lib.database.engine import read
from mailer_lib.database.schema import contacts
from mailer_lib.message.builder import MessageBuilder, RenderError
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import CampaignError
from mailer_lib.message.compile import load_bundle
from mailer_lib.message.preview import Preview, render_preview
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import Recipient, bound_variant
from mailer_lib.tokens import TokenKind, send_token_key
from mailer_lib.web import pages
from mailer_lib.web.doors import doors, texts
from mailer_lib.web.people import find_recipient, sample_recipient, send_facts

# For previews before the snapshot is there: only defaults have values.
SOMEBODY = Recipient(0, bytes(16), bytes(16), "someone@example.com", "example.com", "other", given_name="Alex")


def view(request: Request) -> Response:
    """The message in the browser; a polite page when bundle or snapshot have expired."""
    door = doors(request)
    token = door.token(request, TokenKind.VIEW)
    with read(door.engine) as connection:
        facts = send_facts(connection, token.send_id)
        row = connection.execute(
            select(contacts.c.address_hash, contacts.c.locale).where(contacts.c.id == token.contact_id)
        ).first()
        hash_ = bytes(row.address_hash) if row else None
        recipient = find_recipient(connection, door.settings, token, hash_) if facts else None
    bundle = _bundle(door.settings, facts.content_hash if facts else None)
    words = texts(request, recipient.locale if recipient else row.locale if row else None)
    if bundle is None or recipient is None:
        return pages.note(words, words.expired_title, words.expired, status=410)
    recipient = replace(recipient, variant=bound_variant(recipient.variant, facts.decided_variant if facts else None))
    try:
        builder = MessageBuilder(bundle, dkim_key_pem=None, token_key=send_token_key(door.token_key, token.send_id))
        rendered = builder.render(recipient)
    except RenderError:
        return pages.note(words, words.expired_title, words.expired, status=410)
    if request.method != "HEAD":
        door.note_event("view", token, request)
    return pages.message(rendered.html)


def preview(request: Request) -> Response:
    """For approvers: each variant's subject, HTML (framed: ``?part=html``) and text, with a recipient's values."""
    door = doors(request)
    token = door.token(request, TokenKind.PREVIEW)
    with read(door.engine) as connection:
        facts = send_facts(connection, token.send_id)
        sample = sample_recipient(connection, door.settings, token.send_id, token.contact_id) if facts else None
    bundle = _bundle(door.settings, facts.content_hash if facts else None)
    if bundle is None:
        words = texts(request)
        return pages.note(words, words.expired_title, words.expired, status=410)
    number = _variant(request.query_params.get("variant", ""), bundle, sample)
    recipient = replace(sample or SOMEBODY, variant=number)
    problem = ""
    try:
        rendered = render_preview(bundle, recipient)
    except RenderError as error:
        rendered, problem = Preview("", "", ""), str(error)
    if request.query_params.get("part") == "html":
        return pages.message(rendered.html, framed=True)
    return pages.preview(
        bundle=bundle,
        send=f"{bundle.campaign}#{bundle.edition}",
        variants=[variant.name for variant in bundle.variants],
        number=number,
        rendered=rendered,
        problem=problem,
        sample=sample,
        html_bytes=len(rendered.html.encode()),
    )


def _bundle(settings: Settings, content_hash: str | None) -> Bundle | None:
    """The frozen message; None when there is none (yet, or any more)."""
    try:
        return load_bundle(settings, content_hash) if content_hash else None
    except CampaignError:
        return None


def _variant(asked: str, bundle: Bundle, sample: Recipient | None) -> int:
    number = int(asked) if asked.isdecimal() and len(asked) <= 3 else sample.variant if sample else 0
    return number if 0 <= number < len(bundle.variants) else 0
