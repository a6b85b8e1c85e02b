"""The one mail of double opt-in: a question and a link, in the person's language, and no word of advertising.

Anything more would be unsolicited advertising in itself if somebody else typed the address (so German courts: BGH,
I ZR 164/09). No pixel, no tracked link.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from html import escape

from mailer_lib.message.bundle import Mailbox

DEFAULT_LANGUAGE = "en"


@dataclass(frozen=True)
class Words:
    """Sentences with ``{list}``."""

    subject: str
    greeting: str
    greeting_name: str  # {name}
    request: str
    button: str
    link: str
    otherwise: str


WORDS = {
    "en": Words(
        "Please confirm: {list}",
        "Hello,",
        "Hello {name},",
        "somebody, you we hope, signed up for {list} with this address. Is that right? Then please confirm it:",
        "Yes, I want to get {list}",
        "Does the button not work? Open this page:",
        "If it wasn't you, do nothing: without your confirmation we won't write to you again.",
    ),
    "de": Words(
        "Bitte bestätigen: {list}",
        "Guten Tag,",
        "Guten Tag {name},",
        "jemand, hoffentlich Sie selbst, hat sich mit dieser Adresse für {list} angemeldet. Ist das richtig? "
        "Dann bestätigen Sie es bitte:",
        "Ja, ich möchte {list} bekommen",
        "Der Knopf geht nicht? Öffnen Sie diese Seite:",
        "Wenn Sie es nicht waren, tun Sie nichts: Ohne Ihre Bestätigung schreiben wir Ihnen nicht noch einmal.",
    ),
    "fr": Words(
        "Merci de confirmer : {list}",
        "Bonjour,",
        "Bonjour {name},",
        "quelqu'un, vous-même nous l'espérons, s'est inscrit à {list} avec cette adresse. Est-ce exact ? "
        "Alors merci de le confirmer :",
        "Oui, je veux recevoir {list}",
        "Le bouton ne marche pas ? Ouvrez cette page :",
        "Si ce n'était pas vous, ne faites rien : sans votre confirmation, nous ne vous écrirons plus.",
    ),
}

_HTML = """\
<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{subject}</title></head>
<body style="margin:0;padding:24px;background:#ffffff;color:#1f2421;font:16px/24px Segoe UI,Arial,sans-serif">
<div style="max-width:560px;margin:0 auto">
<p>{greeting}</p>
<p>{request}</p>
<p style="margin:28px 0"><a href="{url}" style="background:#1f4d39;color:#ffffff;padding:12px 20px;border-radius:4px;\
text-decoration:none;display:inline-block">{button}</a></p>
<p>{otherwise}</p>
<p style="font-size:13px;line-height:20px;color:#555c57">{link}<br><a href="{url}" style="color:#555c57;\
word-break:break-all">{url}</a></p>
<p style="font-size:13px;line-height:20px;color:#555c57">{imprint}</p>
</div></body></html>
"""


@dataclass(frozen=True)
class ConfirmationSender:
    """On whose behalf, the same for all mails of a list."""

    sender: Mailbox
    list_title: str
    postal_address: str = ""


def words_for(locale: str | None) -> tuple[str, Words]:
    """Language and sentences for a BCP 47 tag; English where there is no translation."""
    language = (locale or DEFAULT_LANGUAGE).split("-")[0].lower()
    return (language, WORDS[language]) if language in WORDS else (DEFAULT_LANGUAGE, WORDS[DEFAULT_LANGUAGE])


def build_confirmation(
    by: ConfirmationSender, *, to: str, name: str | None, locale: str | None, url: str, at: datetime | None = None
) -> bytes:
    """The message, unsigned, with CRLF line ends. ``to`` is deliverable; ``url`` is the signed link."""
    language, words = words_for(locale)

    def say(text: str) -> str:
        return text.replace("{list}", by.list_title)

    greeting = words.greeting_name.replace("{name}", name) if name else words.greeting
    imprint = "\n".join(part for part in (by.sender.name, by.postal_address) if part)
    text = [greeting, say(words.request), url, words.otherwise, imprint]
    fields = {
        "greeting": greeting, "request": say(words.request), "button": say(words.button), "link": words.link,
        "otherwise": words.otherwise, "imprint": imprint, "url": url, "subject": say(words.subject),
    }  # fmt: skip
    html = _HTML.format(language=language, **{key: escape(value) for key, value in fields.items()})

    message = EmailMessage(policy=SMTP.clone(utf8=not to.isascii()))
    local, _, domain = by.sender.address.rpartition("@")
    message["From"] = Address(by.sender.name, local, domain)
    local, _, domain = to.rpartition("@")
    message["To"] = Address("", local, domain)
    message["Subject"] = say(words.subject)
    message["Date"] = format_datetime(at or datetime.now(UTC))
    message["Message-ID"] = make_msgid(domain=by.sender.address.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834 §5: no vacation notices, please
    message.set_content("\n\n".join(part for part in text if part) + "\n", cte="quoted-printable")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message.as_bytes()
