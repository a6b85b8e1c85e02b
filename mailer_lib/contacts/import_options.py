"""An import as the command's options say it: one list, and columns that match by name or are mapped one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from mailer_lib.contacts.attributes import ValueProblemError
from mailer_lib.contacts.columns import ColumnMap, Field, MappingError, map_columns
from mailer_lib.contacts.formats import FileFormat
from mailer_lib.contacts.import_plan import BATCH_ROWS, ConsentOptionError, Declared, ImportPlan, Target
from mailer_lib.contacts.lists import list_id
from mailer_lib.contacts.rows import ConsentDefaults, parse_moment
from mailer_lib.database.engine import now
from mailer_lib.terms import AttributeType, SubscriptionState


@dataclass(frozen=True)
class ImportOptions:
    """What the operator says about a file."""

    list_name: str
    consent: SubscriptionState  # CONFIRMED, or PENDING: double opt-in, a confirmation mail is due
    columns: Mapping[str, str] = field(default_factory=dict)  # column → columns.Field
    attributes: Mapping[str, str] = field(default_factory=dict)  # column → attribute key
    consent_at: str | None = None  # a column, or one date and time for all
    consent_source: str | None = None  # where they signed up; a column, or a text; the file's name by default
    consent_wording: str | None = None  # a column, or a text
    consent_ip: str | None = None  # a column
    encoding: str = "utf-8"
    delimiter: str | None = None
    batch_rows: int = BATCH_ROWS
    format: FileFormat | None = None  # by the file's name when None
    dry_run: bool = False  # everything is read, validated and weighed, nothing is written

    def check(self, connection: Connection) -> None:
        if self.consent is SubscriptionState.UNSUBSCRIBED:
            raise ConsentOptionError(
                "an import brings confirmed or pending consent; to take people off: contacts unsubscribe"
            )
        list_id(connection, self.list_name)

    def plan(self, connection: Connection, path: Path, header: list[str], known: Declared) -> ImportPlan:
        columns, defaults = _columns_and_defaults(path, header, self, known.types)
        pending = self.consent is SubscriptionState.PENDING
        target = Target(self.list_name, list_id(connection, self.list_name), pending)
        return ImportPlan((target,), columns, defaults, (self.list_name, self.consent, columns, defaults))


def _columns_and_defaults(
    path: Path, header: list[str], options: ImportOptions, types: dict[str, AttributeType]
) -> tuple[ColumnMap, ConsentDefaults]:
    mapped = dict(options.columns)
    at: datetime | None = None
    texts: dict[Field, str | None] = {Field.CONSENT_SOURCE: None, Field.CONSENT_WORDING: None}
    if options.consent_at is not None:
        if options.consent_at in header:
            mapped[options.consent_at] = Field.CONSENT_AT.value
        else:
            at = _fixed_moment(path, options.consent_at)
    for wanted, said in (
        (Field.CONSENT_SOURCE, options.consent_source),
        (Field.CONSENT_WORDING, options.consent_wording),
    ):
        if said is not None and said in header:
            mapped[said] = wanted.value
        else:
            texts[wanted] = said
    if options.consent_ip is not None:
        mapped[options.consent_ip] = Field.CONSENT_IP.value
    columns = map_columns(str(path), header, types, mapped, options.attributes)
    if at is not None and Field.CONSENT_AT in columns.fields and Field.CONSENT_AT.value not in mapped.values():
        columns = _without(columns, Field.CONSENT_AT)  # one date for all was said: a look-alike column doesn't count
    source_text = texts[Field.CONSENT_SOURCE] or path.name
    return columns, ConsentDefaults(at, source_text[:200], texts[Field.CONSENT_WORDING])


def _without(columns: ColumnMap, dropped: Field) -> ColumnMap:
    fields = {f: index for f, index in columns.fields.items() if f is not dropped}
    ignored = (*columns.ignored, columns.header[columns.fields[dropped]])
    return ColumnMap(columns.header, fields, columns.attributes, ignored)


def _fixed_moment(path: Path, text: str) -> datetime:
    try:
        moment = parse_moment(text)
    except ValueProblemError:
        raise MappingError(
            f"--consent-at {text!r} is neither a column of {path} nor a date and time like 2024-12-31 18:00"
        ) from None
    if moment > now():
        raise ConsentOptionError(f"--consent-at {text!r} lies in the future")
    return moment
