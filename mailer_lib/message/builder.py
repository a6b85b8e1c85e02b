"""One recipient's message, built and signed: the hot path (docs/decisions/0401).

What a recipient costs: one pass of the compiled template's islands, a token for each link, encoding of the values, one
SHA-256 over the body, one RSA signature. Everything else was encoded and canonicalised when the builder was made.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError

from mailer_lib import tokens
from mailer_lib.message import mime
from mailer_lib.message.body import Body, TokenName
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.dkim import OVER_SIGNED, DkimSigner
from mailer_lib.message.headers import HeaderBlock
from mailer_lib.message.islands import TemplateProblemError, UrlForm
from mailer_lib.message.language import Fields, TemplateLanguage
from mailer_lib.shard.recipient import Recipient
from mailer_lib.tokens import TokenKind

MAX_BODY_BYTES = 1_000_000

_ADDRESS = re.compile(
    '[^\x00-\x20\x7f-\xa0<>()\\[\\]\\\\,;:"@\u2028\u2029\ud800-\udfff]{1,64}'
    "@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
)
_KINDS: Mapping[str, TokenKind] = {
    "unsubscribe_url": TokenKind.UNSUBSCRIBE,
    "open_pixel_url": TokenKind.OPEN,
    "view_url": TokenKind.VIEW,
    "link": TokenKind.CLICK,
}
_UNSUBSCRIBE: TokenName = ("unsubscribe_url", 0)


class RenderError(ValueError):
    """This recipient's message can't be built; the sentence holds no personal data."""


@dataclass(frozen=True, slots=True)
class BuiltMessage:
    """Ready for ``DATA``: CRLF line ends, no line begins with a dot, the last one is complete."""

    envelope_from: str
    envelope_to: str
    data: bytes
    message_id: str  # with its angle brackets


@dataclass(frozen=True)
class Rendered:
    """What a recipient reads, before encoding."""

    subject: str
    html: str
    text: str


def url_forms(base: str) -> dict[str, UrlForm]:
    """Where tokens stand in the URLs below the tracking host (web/app.py answers them)."""
    return {
        "unsubscribe_url": UrlForm(f"{base}/u/"),
        "view_url": UrlForm(f"{base}/v/"),
        "open_pixel_url": UrlForm(f"{base}/o/", ".gif"),
        "link": UrlForm(f"{base}/c/"),
    }


class MessageBuilder:
    """Builds the messages of one send. One for each process; not to be shared between threads."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        dkim_key_pem: str | None,
        token_key: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``dkim_key_pem`` None leaves messages unsigned (previews, benchmarks); ``token_key`` is the send's.

        Raises:
            DkimKeyError: the key can't be used.
            jinja2.TemplateSyntaxError, TemplateProblemError: a template can't.
        """
        self._bundle = bundle
        self._clock = clock
        self._urls = url_forms(bundle.tracking_url)
        self._tokens = tokens.Signer(token_key, bundle.send_id)
        self._html_language = TemplateLanguage(autoescape=True)
        self._text_language = TemplateLanguage(autoescape=False)
        constants = constant_variables(bundle)
        self._base = dict(self._html_language.globals) | constants
        self._defaults = {key: _value(value) for key, value in bundle.defaults.items() if value is not None}
        boundary = f"=_mf_{bundle.send_id:x}_{hashlib.sha256(bundle.campaign.encode()).hexdigest()[:12]}"
        self._bodies = tuple(
            Body(
                variant,
                html_language=self._html_language,
                text_language=self._text_language,
                constants=constants,
                urls=self._urls,
                boundary=boundary,
            )
            for variant in bundle.variants
        )
        self._wanted = tuple(tuple(dict.fromkeys((_UNSUBSCRIBE, *body.token_names))) for body in self._bodies)
        self._heads = tuple(
            self._tokens.heads((_KINDS[name], number) for name, number in wanted) for wanted in self._wanted
        )
        self._headers = HeaderBlock(bundle, boundary)
        self._signer = None
        if dkim_key_pem is not None:
            self._signer = DkimSigner(bundle.dkim_domain, bundle.dkim_selector, dkim_key_pem)
            self._plan = self._signer.prepare(self._headers.signed + OVER_SIGNED)
        self._second, self._date = -1, ""
        self._plain: dict[int, tuple[Template, ...]] = {}

    def build(self, recipient: Recipient) -> BuiltMessage:
        """
        Raises:
            RenderError: a merge field is missing, the template fails or leaves the sandbox, the message is too large,
                or the address or the variant can't be used.
        """
        subject, body, signed = self._render_body(recipient)
        address = recipient.address
        if _ADDRESS.fullmatch(address) is None:
            raise RenderError("the address can't stand in a header")
        now = int(self._clock())
        if now != self._second:
            self._second, self._date = now, formatdate(now).replace("-0000", "+0000")  # we know our zone
        key = recipient.message_key.hex()
        message_id = f"<{key}.{self._bundle.send_id}@{self._bundle.dkim_domain}>"
        raw, canonical = self._headers.make(
            date=self._date,
            to=mime.mailbox(_display_name(recipient), address, len("To: ")),
            subject=_subject_header(subject),
            message_id=message_id,
            unsubscribe_url=self._urls["unsubscribe_url"].before + signed[_UNSUBSCRIBE][:-3].decode(),
            message_key=key,
        )
        head = raw.encode()
        if self._signer is not None:
            digest = hashlib.sha256(body).digest()
            head = self._signer.sign_canonical(self._plan, canonical.encode(), digest, now) + head
        return BuiltMessage(
            envelope_from=f"{self._tokens.verp_local_part(recipient.message_key)}@{self._bundle.return_path_domain}",
            envelope_to=address,
            data=b"%b\r\n%b" % (head, body),
            message_id=message_id,
        )

    def render(self, recipient: Recipient) -> Rendered:
        """The same content by the plain road, the whole template rendered: previews, and what tests compare with.

        Raises:
            RenderError: as ``build``.
        """
        self._body_of(recipient)
        if recipient.variant not in self._plain:
            source = self._bundle.variants[recipient.variant]
            self._plain[recipient.variant] = (
                self._text_language.from_string(source.subject),
                self._html_language.from_string(source.html),
                self._text_language.from_string(source.text),
            )
        variables = self._variables(recipient, frozenset(_KINDS))
        try:
            subject, html, text = (template.render(variables) for template in self._plain[recipient.variant])
            return Rendered(mime.clean(subject), html, text)
        except Exception as error:  # whatever the template does wrong is this recipient's failure
            raise _render_error(error) from error

    def dynamic_share(self, recipient: Recipient) -> float:
        """Which part of the body's bytes is made for each recipient: 0 … 1."""
        _, body, _ = self._render_body(recipient)
        return 1 - self._body_of(recipient).static_bytes / len(body)

    def _render_body(self, recipient: Recipient) -> tuple[str, bytes, dict[TokenName, bytes]]:
        content = self._body_of(recipient)
        heads = self._heads[recipient.variant]
        made = self._tokens.sign_all(heads, recipient.contact_id, recipient.message_key)
        signed = {
            name: token + mime.SOFT_BREAK for name, token in zip(self._wanted[recipient.variant], made, strict=True)
        }
        try:
            subject, body = content.build(self._variables(recipient, content.variables), signed)
        except Exception as error:
            raise _render_error(error) from error
        if len(body) > MAX_BODY_BYTES:
            raise RenderError(f"the message has {len(body)} bytes; at most {MAX_BODY_BYTES} are sent")
        return subject, body, signed

    def _body_of(self, recipient: Recipient) -> Body:
        if not 0 <= recipient.variant < len(self._bodies):
            raise RenderError(f"the send has no variant number {recipient.variant}")
        return self._bodies[recipient.variant]

    def _variables(self, recipient: Recipient, used: frozenset[str]) -> dict[str, Any]:
        """The template's variables; URLs only where an island uses them beyond a bare ``{{ … }}``."""
        attributes = self._defaults.copy()
        for name, value in recipient.attributes.items():
            if value is not None and (value != "" or name not in attributes):
                attributes[name] = _value(value)
        contact = attributes.copy()
        for name, text in (
            ("given_name", recipient.given_name),
            ("family_name", recipient.family_name),
            ("locale", recipient.locale),
            ("timezone", recipient.timezone),
        ):
            if text:
                contact[name] = _value(text)
        contact["address"] = recipient.address
        contact["attributes"] = Fields(attributes, "contact.attributes")
        variables = self._base.copy()
        variables["contact"] = Fields(contact, "contact")
        for name in used & _KINDS.keys():
            url = self._url_maker(recipient, name)
            variables[name] = url if name == "link" else url(0)
        return variables

    def _url_maker(self, recipient: Recipient, name: str) -> Callable[[int], str]:
        form, kind = self._urls[name], _KINDS[name]

        def url(number: int) -> str:
            token = self._tokens.sign(kind, recipient.contact_id, recipient.message_key, number)
            return f"{form.before}{token.decode()}{form.after}"

        return url


def constant_variables(bundle: Bundle) -> dict[str, Any]:
    """The variables that are the same for every recipient of a send."""
    values = {key: _value(value) for key, value in bundle.values.items()}
    campaign = {
        **values,
        "values": Fields(values, "campaign.values"),
        "name": bundle.campaign,
        "edition": bundle.edition,
    }
    return {
        "campaign": Fields(campaign, "campaign"),
        "list_title": bundle.list_title,
        "postal_address": bundle.postal_address,
    }


@lru_cache(maxsize=2048)
def _subject_header(subject: str) -> str:
    return mime.unstructured(subject, len("Subject: "))


def _display_name(recipient: Recipient) -> str:
    given, family = recipient.given_name, recipient.family_name
    return f"{given} {family}" if given and family else given or family or ""


def _value(value: Any) -> Any:
    """A value as templates see it: no NUL, line breaks as "\\n", whole numbers without ".0"."""
    if isinstance(value, str):
        if "\0" in value or "\r" in value:
            return value.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {_value(name): _value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return value


def _render_error(error: Exception) -> RenderError:
    if isinstance(error, RenderError):
        return error
    if isinstance(error, TemplateProblemError):
        return RenderError(f"the template can't be rendered: {error}")
    if isinstance(error, TemplateError):  # missing fields, sandbox: messages name fields, never values
        return RenderError(f"the template can't be rendered: {error.message}")
    return RenderError(f"the template can't be rendered: {type(error).__name__}")
