"""The header block of a campaign's message, raw and in relaxed canonical form side by side.

What is the same for every recipient is written once. Canonical form (RFC 6376 §3.4.2) is made together with the raw
one, because ours differ only in case and folding.
"""

import re

from mailer_lib.message import mime
from mailer_lib.message.bundle import Bundle

SENDER_ID_CHARS = 15  # of Feedback-ID, as Gmail wants it
SIGNED = (
    "date", "from", "to", "subject", "message-id", "list-unsubscribe", "list-unsubscribe-post", "list-id",
    "feedback-id", "mime-version", "content-type",
)  # fmt: skip
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9._#-]+")


class HeaderBlock:
    """Headers of one send, from top to bottom as in ``SIGNED``, with Reply-To after To where there is one."""

    def __init__(self, bundle: Bundle, boundary: str) -> None:
        sender = mime.mailbox(bundle.sender.name, bundle.sender.address, len("From: "))
        self._from = f"From: {sender}\r\n"
        self._reply_to = ""
        names = list(SIGNED)
        if bundle.reply_to is not None:
            reply_to = mime.mailbox(bundle.reply_to.name, bundle.reply_to.address, len("Reply-To: "))
            self._reply_to = f"Reply-To: {reply_to}\r\n"
            names.insert(names.index("to") + 1, "reply-to")
        self.signed = tuple(names)
        list_id = f"<{_token(bundle.list_name)}.{bundle.dkim_domain}>"  # RFC 2919
        self._list_id = f"List-ID: {mime.phrase(bundle.list_title, len('List-ID: '))}{list_id}\r\n"
        sender_id = re.sub(r"[^a-z0-9]", "", bundle.dkim_domain.lower())[:SENDER_ID_CHARS]
        self._feedback = (
            f":{_token(bundle.campaign)}#{_token(bundle.edition)}:{_token(bundle.list_name)}:{sender_id}\r\n"
        )
        self._mime = f'MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="{boundary}"\r\n'
        self._canonical_from = _canonical(self._from)
        self._canonical_reply_to = _canonical(self._reply_to)
        self._canonical_list_id = _canonical(self._list_id)
        self._canonical_mime = _canonical(self._mime)

    def make(
        self, *, date: str, to: str, subject: str, message_id: str, unsubscribe_url: str, message_key: str
    ) -> tuple[str, str]:
        """(raw block, canonical block), each line with its CRLF; ``to`` and ``subject`` may be folded."""
        raw = (
            f"Date: {date}\r\n{self._from}To: {to}\r\n{self._reply_to}Subject: {subject}\r\n"
            f"Message-ID: {message_id}\r\nList-Unsubscribe: <{unsubscribe_url}>\r\n"
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
            f"{self._list_id}Feedback-ID: {message_key}{self._feedback}{self._mime}"
        )
        canonical = (
            f"date:{date}\r\n{self._canonical_from}to:{_unfold(to)}\r\n{self._canonical_reply_to}"
            f"subject:{_unfold(subject)}\r\nmessage-id:{message_id}\r\n"
            f"list-unsubscribe:<{unsubscribe_url}>\r\nlist-unsubscribe-post:List-Unsubscribe=One-Click\r\n"
            f"{self._canonical_list_id}feedback-id:{message_key}{self._feedback}{self._canonical_mime}"
        )
        return raw, canonical


def _unfold(value: str) -> str:
    return value.replace("\r\n", "")  # ours are folded with CRLF + one space


def _canonical(block: str) -> str:
    lines = _unfold_lines(block)
    return "".join(
        f"{name.lower()}:{value.lstrip(' ')}\r\n" for name, _, value in (line.partition(":") for line in lines)
    )


def _unfold_lines(block: str) -> list[str]:
    return [line for line in block.replace("\r\n ", " ").split("\r\n") if line]


def _token(text: str) -> str:
    """A name as a part of List-ID and Feedback-ID."""
    return _NOT_TOKEN.sub("-", mime.clean(text)).strip("-.") or "none"
