"""A message taken apart for people: decoded headers, the HTML and the text part, attachments' names."""

from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage

from mailer_lib.sink.store import decoded, header_fields


@dataclass(frozen=True)
class Content:
    headers: tuple[tuple[str, str], ...]  # as written, decoded, top to bottom
    html: str | None
    text: str | None
    attachments: tuple[str, ...]

    def header(self, name: str) -> str:
        """The first of that name (any case); empty when there is none."""
        return next((value for field, value in self.headers if field.lower() == name.lower()), "")


def read_content(raw: bytes) -> Content:
    """Take a message apart; parts that can't be decoded are shown as far as they can."""
    message = message_from_bytes(raw, policy=policy.default)
    assert isinstance(message, EmailMessage)
    headers = tuple((_title(name), decoded(value)) for name, value in header_fields(raw))
    return Content(
        headers,
        html=_part(message, "html"),
        text=_part(message, "plain"),
        attachments=tuple(part.get_filename() or "without a name" for part in message.iter_attachments())
        if message.is_multipart()
        else (),
    )


def _part(message: EmailMessage, kind: str) -> str | None:
    try:
        part = message.get_body((kind,))
        if part is None:
            return None
        content = part.get_payload(decode=True)
        charset = part.get_content_charset() or "utf-8"
    except (KeyError, ValueError, AttributeError):
        return None
    if not isinstance(content, bytes):
        return None
    try:
        return content.decode(charset, "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def _title(name: str) -> str:
    special = {"dkim": "DKIM", "id": "ID", "mime": "MIME", "arc": "ARC"}
    return "-".join(special.get(part, part.capitalize()) for part in name.split("-"))
