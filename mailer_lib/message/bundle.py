"""``message.json``: everything an agent needs to build the messages of one send, frozen, with its content hash.

Templates in here are final Jinja2 sources: MJML compiled, CSS inlined, tracked links and pixel in place (see
``message/compile.py``). What approval covers is ``content_hash``.
"""

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from mailer_lib.shard.recipient import AttributeValue
from mailer_lib.shard.store import StorePath

FORMAT = 1


class Mailbox(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    address: str


class BundleVariant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    weight: int = Field(ge=0)
    subject: str  # Jinja2
    preheader: str = ""  # Jinja2; already in the HTML
    html: str  # Jinja2
    text: str  # Jinja2


class Bundle(BaseModel):
    """One send's message. Times in seconds, addresses with ASCII (IDNA) domains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    campaign: str
    edition: str
    send_id: int
    list_name: str
    list_title: str
    sender: Mailbox  # From
    reply_to: Mailbox | None = None
    dkim_domain: str
    dkim_selector: str
    return_path_domain: str
    tracking_url: str  # base URL of /u/ /c/ /o/ /v/, no trailing slash
    track_links: bool = True
    track_opens: bool = True
    variants: tuple[BundleVariant, ...] = Field(min_length=1)
    links: tuple[str, ...] = ()  # targets of tracked links by number
    defaults: dict[str, AttributeValue] = {}  # values of merge fields that a recipient lacks
    values: dict[str, JsonValue] = {}  # the campaign's own: {{ campaign.… }}; lists and objects for loops
    postal_address: str = ""

    def dump(self) -> bytes:
        """Canonical JSON, UTF-8: the same bundle gives the same bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, indent=1).encode()

    @property
    def content_hash(self) -> str:
        """SHA-256 of ``dump()``, hex."""
        return hashlib.sha256(self.dump()).hexdigest()

    @classmethod
    def load(cls, path: StorePath) -> "Bundle":
        return cls.model_validate_json(path.read_bytes())
