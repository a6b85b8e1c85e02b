"""``mailfleet contacts``: import with consent, look up, take off, ask for confirmation."""

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import CommandContext, console, open_context, progress
from mailer_lib.commands.errors import FAILED, WRONG_USAGE, CommandError
from mailer_lib.commands.import_report import print_report

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from mailer_lib.contacts.person import Person

app = typer.Typer(help="Import and look up contacts.", no_args_is_help=True)

Pool = Annotated[str | None, typer.Option(help="Sending pool whose servers send confirmation mails.  [the only one]")]
Domain = Annotated[
    str | None, typer.Option(help="Sending domain of confirmation mails.  [the list's, or the only one]")
]


class Format(StrEnum):
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


class Consent(StrEnum):
    CONFIRMED = "confirmed"
    PENDING = "pending"


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV with a header line, JSON Lines (both may be .gz), or Parquet.")],
    *,
    list_name: Annotated[
        str | None, typer.Option("--list", help="The list that they gave their consent for.  [required]")
    ] = None,
    consent: Annotated[
        Consent | None,
        typer.Option(
            help="confirmed: the consent is proven. pending: double opt-in, one confirmation mail is sent.  [required]"
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="A YAML file that says columns, formats, consent and lists (docs/contacts.md), instead."),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="COLUMN=FIELD", help="address, given_name, family_name, locale, timezone, …; repeat it."
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=KEY", help="A column that is a declared attribute; repeat it.")
    ] = None,
    consent_at: Annotated[
        str | None, typer.Option(metavar="COLUMN|DATE", help="When they agreed. Without it no refusal is ever lifted.")
    ] = None,
    consent_source: Annotated[
        str | None, typer.Option(metavar="COLUMN|TEXT", help="Where they signed up.  [the file's name]")
    ] = None,
    consent_wording: Annotated[
        str | None, typer.Option(metavar="COLUMN|TEXT", help="What they agreed to, in the words they read.")
    ] = None,
    consent_ip: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The IP address they signed up from.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="utf-8 (with or without BOM), latin-1, windows-1252, utf-16, …  [utf-8]")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="One character; found by itself as a rule. \\t is a tab.")
    ] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="When the file's name doesn't tell it.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read, validate and weigh everything; write nothing."),
    ] = False,
    no_send: Annotated[bool, typer.Option("--no-send", help="Pending: don't send the confirmation mails now.")] = False,
    pool: Pool = None,
    domain: Domain = None,
) -> None:
    """Import contacts with their consent. Running it twice gives the same; a killed import goes on when run again.

    Well-known headers (E-Mail, First name, Language, …) and declared attributes are matched by themselves. Rows that
    can't be imported go to a rejects file with line, column and reason: mend it and import it. Who is suppressed or
    has unsubscribed stays so, unless the consent is newer.
    """
    from mailer_lib.contacts.formats import FileFormat
    from mailer_lib.contacts.import_options import ImportOptions
    from mailer_lib.contacts.import_plan import ImportRequest
    from mailer_lib.contacts.importer import import_contacts
    from mailer_lib.contacts.profile_file import load_profile
    from mailer_lib.contacts.profile_plan import ProfileRequest
    from mailer_lib.terms import SubscriptionState

    said = {
        "--list": list_name, "--consent": consent, "--map": map_, "--attribute": attribute, "--consent-at": consent_at,
        "--consent-source": consent_source, "--consent-wording": consent_wording, "--consent-ip": consent_ip,
        "--encoding": encoding, "--delimiter": delimiter,
    }  # fmt: skip
    known_format = FileFormat(format_.value) if format_ is not None else None
    request: ImportRequest
    if profile is not None:
        if both := [name for name, value in said.items() if value]:
            raise CommandError(f"{both[0]} and --profile: say it in {profile}", WRONG_USAGE)
        request = ProfileRequest(load_profile(profile), known_format, dry_run=dry_run)
    elif list_name is None or consent is None:
        raise CommandError("say --list NAME and --consent confirmed or pending, or --profile FILE", WRONG_USAGE)
    else:
        request = ImportOptions(
            list_name=list_name,
            consent=SubscriptionState(consent.value),
            columns=_pairs("--map", map_),
            attributes=_pairs("--attribute", attribute),
            consent_at=consent_at,
            consent_source=consent_source,
            consent_wording=consent_wording,
            consent_ip=consent_ip,
            encoding=encoding or "utf-8",
            delimiter="\t" if delimiter == "\\t" else delimiter,
            format=known_format,
            dry_run=dry_run,
        )
    with open_context() as context:
        with progress(f"{'trying' if dry_run else 'importing'} {file.name}") as report:
            done = import_contacts(context.engine, context.settings, file, request, report, actor=context.actor)
        print_report(done, dry_run=dry_run)
        for one in done.lists:
            if one.requested and not no_send and not dry_run:
                _confirm_pending(context, one.name, pool, domain)


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or []:
        column, equals, target = text.rpartition("=")
        if not equals or not column.strip() or not target.strip():
            raise CommandError(f"{option} {text!r}: write COLUMN=NAME, like {option} 'E-Mail=address'", WRONG_USAGE)
        pairs[column.strip()] = target.strip()
    return pairs


@app.command()
def show(address: Annotated[str, typer.Argument(help="The address, in any spelling.")]) -> None:
    """All that is known of one address: contact, subscriptions, evidence of consent, suppressions."""
    from mailer_lib.contacts.address import normalise
    from mailer_lib.contacts.lists import all_lists
    from mailer_lib.contacts.person import look_up
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    wanted = normalise(address)
    with open_context() as context, write(context.engine) as connection:
        key = context.settings.identity().address_hash(wanted.normalised)
        person = look_up(connection, address_hash=key, domain=wanted.domain)
        names = {one.id: f"list {one.name}" for one in all_lists(connection)}
        audit.record(connection, context.actor, "contacts.show", f"address:{key.hex()}")
    if not person.known and not person.domain_barred:
        raise CommandError("nothing is known of this address")
    _print_person(person, names)


def _print_person(person: "Person", names: dict[int, str]) -> None:
    output = console()
    if person.contact is None:
        output.print("no contact has this address")
    else:
        facts = Table(show_header=False, box=None, pad_edge=False)
        for name in ("id", "address_given", "given_name", "family_name", "locale", "timezone", "provider", "state"):
            facts.add_row(name, str(person.contact[name] if person.contact[name] is not None else ""))
        for key, value in sorted(person.contact["attributes"].items()):
            facts.add_row(f"attribute {key}", str(value))
        output.print(facts)
    if person.subscriptions:
        table = Table("list", "state", "source", "confirmed", "unsubscribed", "confirmation mail")
        for one in person.subscriptions:
            times = (one.confirmed_at, one.unsubscribed_at, one.confirmation_sent_at)
            table.add_row(
                one.list_name, one.state, one.source or "", *(f"{t:%Y-%m-%d %H:%M}" if t else "" for t in times)
            )
        output.print(table)
    if person.evidence:
        table = Table("evidence", "list", "when (UTC)", "how", "where", "IP", "wording")
        for event in person.evidence:
            table.add_row(
                event.action, event.list_name or "every list", f"{event.occurred_at:%Y-%m-%d %H:%M}", event.method,
                event.source or "", event.ip or "", event.wording or "",
            )  # fmt: skip
        output.print(table)
    for barrier in person.barriers:
        where = names.get(barrier.list_id, "everywhere")
        output.print(f"suppressed, {where}: {barrier.reason}, since {barrier.refused_at:%Y-%m-%d %H:%M} UTC")
    if person.domain_barred:
        output.print("the whole domain is suppressed")


@app.command()
def unsubscribe(
    address: Annotated[str | None, typer.Argument(help="The address, in any spelling.")] = None,
    *,
    file: Annotated[Path | None, typer.Option(help="CSV with an address column, or an address a line.")] = None,
    list_name: Annotated[str | None, typer.Option("--list", help="One list; every list by default.")] = None,
    source: Annotated[str | None, typer.Option(help="Where they said so, for the evidence.")] = None,
    encoding: Annotated[str, typer.Option(help="Of the file.")] = "utf-8",
) -> None:
    """Take a person, or all in a file, off one list or every list. Counts as of now; running sends drop them too."""
    from mailer_lib.contacts.address import normalise
    from mailer_lib.contacts.address_file import Entry, read_addresses
    from mailer_lib.contacts.lists import list_id
    from mailer_lib.contacts.refusals import unsubscribe_many
    from mailer_lib.database import audit
    from mailer_lib.database.engine import read, write

    if (address is None) == (file is None):
        raise CommandError("give one address, or --file FILE", WRONG_USAGE)
    with open_context() as context:
        with read(context.engine) as connection:
            target = list_id(connection, list_name) if list_name else None
        identity = context.settings.identity()
        if file is not None:
            entries, label = read_addresses(file, encoding), file.name
        else:
            entries, label = iter([Entry(1, address=normalise(address or ""))]), context.actor
        with progress("unsubscribing", unit="addresses") as report:
            done = unsubscribe_many(
                context.engine, identity, entries, list_id=target, source=source or label, progress=report
            )
        with write(context.engine) as connection:
            detail = {"from": label, "left": done.new, "known": done.known, "problems": len(done.problems)}
            obj = f"list:{list_name}" if list_name else "list:*"
            audit.record(connection, context.actor, "contacts.unsubscribe", obj, detail)
    for line, sentence in done.problems:
        console().print(f"{file}, line {line}: {sentence}", markup=False)
    console().print(
        f"{done.new:,} unsubscribed, {done.known:,} were already, {len(done.problems):,} lines can't be read"
    )


@app.command()
def export(
    target: Annotated[str, typer.Argument(metavar="ADDRESS|FILE", help="With --list or --criteria a file.")],
    *,
    list_name: Annotated[
        str | None, typer.Option("--list", help="Whoever is confirmed for it and not suppressed, with the consent.")
    ] = None,
    criteria: Annotated[str | None, typer.Option(help="Whoever matches these criteria (and is of the list).")] = None,
) -> None:
    """Everything that is known of a person, as JSON (GDPR Art. 15 and 20); or many contacts as a file.

    The file is what `contacts import` takes: .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet, mode 0600. Importing it into
    another installation gives the same contacts and, with --list, the same consent.
    """
    import json

    from mailer_lib.dispatch.dossier import dossier

    with open_context() as context:
        if list_name is not None or criteria is not None:
            _export_many(context, Path(target), list_name, criteria)
            return
        found = dossier(context.engine, context.settings, target, actor=context.actor)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def _export_many(context: CommandContext, file: Path, list_name: str | None, criteria_name: str | None) -> None:
    from mailer_lib.audience import catalogue, criteria, sampling
    from mailer_lib.contacts.export_files import write_file
    from mailer_lib.contacts.exporter import export_header, export_rows
    from mailer_lib.contacts.lists import list_id
    from mailer_lib.database import audit
    from mailer_lib.database.engine import now, snapshot, write

    detail = {"file": file.name, "criteria": criteria_name}
    obj = f"list:{list_name}" if list_name else "list:*"
    with write(context.engine) as connection:
        audit.record(connection, context.actor, "contacts.export.begin", obj, detail)
    with snapshot(context.engine) as connection, progress(f"exporting to {file.name}") as report:
        target = list_id(connection, list_name) if list_name else None
        condition: AbstractContextManager[ColumnElement[bool] | None] = nullcontext()  # everybody
        if criteria_name is not None:
            tree = criteria.load(connection, criteria_name).rules
            known = catalogue.load(connection)
            condition = sampling.picking(connection, context.settings, tree, known, now=now())
        with condition as picked:
            rows = export_rows(connection, condition=picked, list_id=target, progress=report)
            count = write_file(file, export_header(connection), rows)
    with write(context.engine) as connection:
        audit.record(connection, context.actor, "contacts.export.file", obj, detail | {"rows": count})
    console().print(f"{count:,} contacts in {file}", markup=False, soft_wrap=True)


@app.command()
def erase(
    address: Annotated[str | None, typer.Argument(help="The address, in any spelling.")] = None,
    *,
    finish: Annotated[
        bool, typer.Option("--finish", help="Nobody new: blank what waited for a running send or was damaged.")
    ] = False,
) -> None:
    """Erase a person, for good: tables, snapshots, rejected rows (GDPR Art. 17). They stay suppressed, by keyed hash.

    Exit code 1 when something is left to do; the send that holds it does it at its end, or `--finish` later.
    """
    from mailer_lib.dispatch import erasure

    if (address is None) != finish:
        raise CommandError("give one address, or --finish", WRONG_USAGE)
    with open_context() as context:
        if address is None:
            done = erasure.finish(context.engine, context.settings, actor=context.actor)
        else:
            done = erasure.erase(context.engine, context.settings, address, actor=context.actor)
    output = console()
    if done.rows is not None:
        rows = done.rows
        output.print(
            f"erased: {rows.contacts} contact, {rows.subscriptions} subscriptions, {rows.ip_addresses} IP addresses, "
            f"{rows.seeds} seed addresses, {done.rejects} rejected rows; suppressed everywhere"
        )
    for snapshot, amended in done.amended:
        output.print(f"blanked: {snapshot}, {amended.rows} rows in {amended.files} files", markup=False)
    for sentence in done.elsewhere:
        output.print(f"also there: {sentence}", markup=False)
    for sentence in (*done.waiting, *done.problems):
        typer.echo(f"left: {sentence}", err=True)
    if done.waiting or done.problems:
        raise typer.Exit(FAILED)


@app.command("confirm-pending")
def confirm_pending(
    list_name: Annotated[str, typer.Option("--list", help="The list.")], pool: Pool = None, domain: Domain = None
) -> None:
    """Send the one confirmation mail to whoever waits for it. Nobody ever gets a second one, nor anyone suppressed."""
    with open_context() as context:
        _confirm_pending(context, list_name, pool, domain)


def _confirm_pending(context: CommandContext, list_name: str, pool: str | None, domain: str | None) -> None:
    from mailer_lib.dispatch.confirmation import ConfirmationOptions, send_confirmations

    with progress("confirmation mails", unit="mails") as report:
        done = send_confirmations(
            context.engine,
            context.settings,
            list_name,
            ConfirmationOptions(pool=pool, domain=domain),
            report,
            actor=context.actor,
        )
    console().print(
        f"{done.sent:,} confirmation mails sent, {done.refused:,} refused, {done.postponed:,} wait for the next try"
    )
    for reason, count in sorted(done.reasons.items()):
        console().print(f"  {count:,} × {reason}", markup=False)
