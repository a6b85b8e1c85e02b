"""A campaign: what a person writes in ``campaign.yaml``, and what the database keeps of it.

Templates are files beside the YAML; ``load_campaign`` reads them in, ``save_campaign`` stores them as rows of
``templates`` and the rest as ``campaigns.definition``, ``get_campaign`` puts both together again.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from sqlalchemy import Connection, Engine, insert, select, update

from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.contacts.lists import list_id
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import campaigns, templates
from mailer_lib.fleet import domains, pools
from mailer_lib.message.bundle import Mailbox
from mailer_lib.message.send_window import SendWindow
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import AttributeValue
from mailer_lib.terms import OverQuota, TemplateKind

STOP = "stop"  # of `otherwise`
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(m|h|d)")
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


class CampaignError(ValueError):
    """A campaign can't be used or found; a sentence for each problem, with file and line where there is one."""


def _duration(value: Any) -> Any:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        return timedelta(seconds=float(match[1]) * _UNITS_S[match[2]])
    if isinstance(value, str) and value.startswith("P"):
        return value  # ISO 8601, as the database has it
    if value is None or isinstance(value, timedelta):
        return value
    raise ValueError("write a duration such as 90m, 24h or 3d")


def _mailbox(value: Mailbox) -> Mailbox:
    try:
        return Mailbox(name=value.name, address=normalise(value.address).deliverable)
    except AddressError as error:
        raise ValueError(f"the address can't be used: {error}") from None


def _variant_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", value):
        raise ValueError("use letters, digits, dot, hyphen and underscore, at most 32")
    return value


CheckedMailbox = Annotated[Mailbox, AfterValidator(_mailbox)]
Duration = Annotated[timedelta, BeforeValidator(_duration)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class TemplateSource(_Part):
    """A template as written. The sources are kept in the table ``templates``, under ``name``."""

    kind: TemplateKind
    name: str = ""
    file: str = ""  # for messages about it
    text_file: str = ""
    source: str = Field(default="", exclude=True)
    text: str | None = Field(default=None, exclude=True)  # the written text part; derived when None


class VariantSpec(_Part):
    """One of the contents that recipients are split over; what it leaves out is the campaign's."""

    name: Annotated[str, AfterValidator(_variant_name)]
    weight: int = Field(default=1, ge=0, le=1_000_000)
    subject: str | None = None
    preheader: str | None = None
    template: TemplateSource | None = None


class SliceSpec(_Part):
    """Who gets the variants at once, while the rest waits for a person's decision on which of them it gets."""

    percent: float | None = Field(default=None, gt=0, lt=100)
    people: int | None = Field(default=None, ge=1)
    decide_within: Duration | None = None  # from when the slice was sent
    otherwise: str | None = None  # STOP, or the variant that the rest gets then

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.percent is None) == (self.people is None):
            raise ValueError("give either `percent` or `people`")
        if (self.decide_within is None) != (self.otherwise is None):
            raise ValueError(
                f"`decide_within` and `otherwise` ({STOP}, or a variant) belong together; without them the send waits "
                "until it expires"
            )
        if self.decide_within is not None and self.decide_within <= timedelta(0):
            raise ValueError("`decide_within` must be longer than nothing")
        return self


class Tracking(_Part):
    links: bool = True
    opens: bool = True


class Schedule(_Part):
    """``at`` alone: once. ``cron`` with ``timezone``: an edition for each slot, not before ``at``."""

    at: datetime | None = None
    cron: str | None = None
    timezone: str = "UTC"

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.at is None and self.cron is None:
            raise ValueError("give `at` (once) or `cron` (recurring)")
        if self.cron is not None:
            from croniter import croniter

            if not croniter.is_valid(self.cron):
                raise ValueError(f"{self.cron!r} isn't a cron rule such as '0 9 * * 1'")
        try:
            zone = ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"there is no time zone {self.timezone!r}; write one such as Europe/Oslo") from None
        if self.at is not None and self.at.tzinfo is None:
            object.__setattr__(self, "at", self.at.replace(tzinfo=zone))
        return self


class Approval(_Part):
    required: bool = True
    approvers: tuple[str, ...] = ()  # Airflow user names; empty: whoever may


class Excluded(_Part):
    """Who is left out though the criteria match: subscribers of ``lists``, and whoever matches one of ``criteria``."""

    lists: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()


class FrequencyCap(_Part):
    """At most ``messages`` of campaigns of the same class to a person in ``days``, this one included."""

    messages: int = Field(ge=1, le=1000)
    days: int = Field(ge=1, le=366)


class ControlGroup(_Part):
    """``percent`` of all people get nothing, to compare with. The same ``seed`` holds the same people back."""

    percent: float = Field(gt=0, lt=100)
    seed: str = Field(default="", max_length=64)  # the campaign's name without


class Campaign(_Part):
    """Everything about a campaign but who gets which edition when."""

    name: str
    title: str = ""  # for operators
    list_name: str = Field(alias="list")
    criteria: str
    campaign_class: str = Field(default="marketing", alias="class", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    exclude: Excluded = Excluded()
    frequency_cap: FrequencyCap | None = None
    control_group: ControlGroup | None = None
    sender: CheckedMailbox = Field(alias="from")
    reply_to: CheckedMailbox | None = None
    subject: str = Field(min_length=1)  # Jinja2
    preheader: str = ""  # Jinja2
    template: TemplateSource
    sending_domain: str
    sending_pool: str = "main"
    tracking: Tracking = Tracking()
    variants: tuple[VariantSpec, ...] = ()
    test_slice: SliceSpec | None = None
    postal_address: str = ""
    values: dict[str, JsonValue] = {}
    defaults: dict[str, AttributeValue] = {}
    seed_list: str | None = None
    expires_after: Duration | None = None
    schedule: Schedule | None = None
    send_window: SendWindow | None = None
    over_quota: OverQuota = OverQuota.MOVES
    approval: Approval = Approval()
    pace_per_s: float | None = Field(default=None, gt=0)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if NAME.fullmatch(value) is None:
            raise ValueError("use lower-case letters, digits, dot, hyphen and underscore, at most 100")
        return value

    @field_validator("expires_after")
    @classmethod
    def _takes_time(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value <= timedelta(0):
            raise ValueError("must be longer than nothing")
        return value

    @field_validator("variants")
    @classmethod
    def _can_be_split(cls, value: tuple[VariantSpec, ...]) -> tuple[VariantSpec, ...]:
        names = [variant.name for variant in value]
        if len(set(names)) != len(names):
            raise ValueError("two variants have the same name")
        if value and not any(variant.weight for variant in value):
            raise ValueError("one variant at least needs a weight above 0")
        if len(value) > 100:
            raise ValueError("at most 100 variants")
        return value

    @field_validator("test_slice")
    @classmethod
    def _has_something_to_test(cls, value: SliceSpec | None, info: ValidationInfo) -> SliceSpec | None:
        variants: tuple[VariantSpec, ...] = info.data.get("variants", ())
        if value is None or "variants" not in info.data:  # those have a mistake of their own
            return value
        tested = [variant.name for variant in variants if variant.weight]
        if len(tested) < 2:
            raise ValueError("needs two `variants` with a weight above 0 at least: there is nothing to decide on")
        if value.otherwise is not None and value.otherwise not in (STOP, *tested):
            known = ", ".join(tested)
            raise ValueError(f"`otherwise` is {STOP} or one of the variants {known}, not {value.otherwise!r}")
        if STOP in tested and value.otherwise == STOP:
            raise ValueError(f"`otherwise: {STOP}` could mean the variant of that name; give it another name")
        return value

    @property
    def effective_variants(self) -> tuple[VariantSpec, ...]:
        """At least one."""
        return self.variants or (VariantSpec(name="A"),)

    @property
    def effective_send_window(self) -> SendWindow | None:
        """In its own time zone, else the schedule's, else UTC."""
        if self.send_window is None or self.send_window.timezone is not None:
            return self.send_window
        zone = self.schedule.timezone if self.schedule else "UTC"
        return self.send_window.model_copy(update={"timezone": zone})

    @property
    def expires_after_h(self) -> float | None:
        return None if self.expires_after is None else self.expires_after / timedelta(hours=1)

    def template_sources(self) -> list[TemplateSource]:
        """Every template, the campaign's own first."""
        return [self.template, *(v.template for v in self.variants if v.template is not None)]

    def definition(self) -> dict[str, Any]:
        """What ``campaigns.definition`` holds: JSON, without the templates' sources."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def save_campaign(engine: Engine, settings: Settings, campaign: Campaign, actor: str) -> bool:
    """Store a campaign and its templates, audited. Returns whether anything changed; the same twice changes nothing.

    Raises:
        TemplateProblemError: a template can't be compiled.
        ListError, FleetError: there is no such list, sending pool or sending domain (with near matches).
    """
    from mailer_lib.message.templates import compile_campaign

    compile_campaign(campaign)
    campaign = _with_template_names(campaign)
    at = now()
    with write(engine) as connection:
        schedule = campaign.schedule
        domains.get(connection, campaign.sending_domain)
        values: dict[str, Any] = {
            "definition": campaign.definition(),
            "list_id": list_id(connection, campaign.list_name),
            "pool_id": pools.get(connection, campaign.sending_pool).id,
            "starts_at": schedule.at.astimezone(UTC) if schedule and schedule.at else None,
            "cron": schedule.cron if schedule else None,
            "timezone": schedule.timezone if schedule else None,
        }
        changed = [_save_template(connection, source, actor, at) for source in campaign.template_sources()]
        known = connection.execute(select(campaigns).where(campaigns.c.name == campaign.name)).one_or_none()
        if known is None:
            row = {**values, "name": campaign.name, "created_at": at, "updated_at": at, "updated_by": actor}
            connection.execute(insert(campaigns).values(row))
        elif any(changed) or any(getattr(known, key) != value for key, value in values.items()):
            changing = update(campaigns).where(campaigns.c.id == known.id)
            connection.execute(changing.values({**values, "updated_at": at, "updated_by": actor}))
        else:
            return False
        record(connection, actor, "campaign.saved", f"campaign:{campaign.name}", {"new": known is None})
    return True


def get_campaign(connection: Connection, name: str) -> Campaign:
    """A campaign with its templates.

    Raises:
        CampaignError: there is none of that name; the sentence offers near matches.
    """
    definition = connection.scalar(select(campaigns.c.definition).where(campaigns.c.name == name))
    if definition is None:
        raise CampaignError(_unknown(name, campaign_names(connection)))
    campaign = Campaign.model_validate(definition)
    wanted = [source.name for source in campaign.template_sources()]
    rows = {row.name: row for row in connection.execute(select(templates).where(templates.c.name.in_(wanted))).all()}

    def whole(source: TemplateSource) -> TemplateSource:
        row = rows.get(source.name)
        if row is None:
            raise CampaignError(f"campaign {name} lost its template {source.name!r}: create it again from its file")
        return source.model_copy(update={"source": row.source, "text": row.text_source})

    return _map_templates(campaign, whole)


def campaign_names(connection: Connection) -> list[str]:
    return list(connection.scalars(select(campaigns.c.name).order_by(campaigns.c.name)))


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=3) or [other for other in known if name and name in other][:3]
    if near:
        return f"there is no campaign {name!r}; did you mean {' or '.join(near)}?"
    if known:
        return f"there is no campaign {name!r}; there are: {', '.join(known[:10])}"
    return f"there is no campaign {name!r}; make it with: mailfleet campaign create FILE.yaml"


def _with_template_names(campaign: Campaign) -> Campaign:
    named = campaign.template.model_copy(update={"name": campaign.name})
    variants = tuple(
        variant.model_copy(
            update={"template": variant.template.model_copy(update={"name": f"{campaign.name}:{variant.name}"[:128]})}
        )
        if variant.template is not None
        else variant
        for variant in campaign.variants
    )
    return campaign.model_copy(update={"template": named, "variants": variants})


def _map_templates(campaign: Campaign, change: Callable[[TemplateSource], TemplateSource]) -> Campaign:
    variants = tuple(
        variant.model_copy(update={"template": change(variant.template)}) if variant.template is not None else variant
        for variant in campaign.variants
    )
    return campaign.model_copy(update={"template": change(campaign.template), "variants": variants})


def _save_template(connection: Connection, source: TemplateSource, actor: str, at: datetime) -> bool:
    known = connection.execute(select(templates).where(templates.c.name == source.name)).one_or_none()
    values = {"kind": str(source.kind), "source": source.source, "text_source": source.text}
    if known is None:
        row = {**values, "name": source.name, "updated_at": at, "updated_by": actor}
        connection.execute(insert(templates).values(row))
        return True
    if all(getattr(known, key) == value for key, value in values.items()):
        return False
    changing = update(templates).where(templates.c.id == known.id)
    connection.execute(changing.values({**values, "updated_at": at, "updated_by": actor}))
    return True


def load_campaign(path: Path) -> Campaign:
    """``campaign_file.load_campaign``."""
    from mailer_lib.message import campaign_file

    return campaign_file.load_campaign(path)
