"""``mailfleet suppress``: addresses and domains that never get mail."""

from pathlib import Path
from typing import Annotated

import typer

from mailer_lib.commands.context import console, open_context, progress
from mailer_lib.terms import SuppressionReason

app = typer.Typer(help="Addresses and domains that never get mail.", no_args_is_help=True)

Target = Annotated[
    str, typer.Argument(metavar="ADDRESS|@DOMAIN", help="An address, or @example.org for a whole domain.")
]
ListName = Annotated[str | None, typer.Option("--list", help="Only of this list; everywhere by default.")]


@app.command()
def add(target: Target, list_name: ListName = None) -> None:
    """Bar an address or a domain, at once and for running sends too. Only `suppress lift` undoes it."""
    from mailer_lib.contacts import consent
    from mailer_lib.contacts.address import normalise, normalise_domain
    from mailer_lib.contacts.lists import list_id
    from mailer_lib.contacts.precedence import EVERYWHERE
    from mailer_lib.database import audit
    from mailer_lib.database.engine import now, write

    with open_context() as context, write(context.engine) as connection:
        if target.startswith("@"):
            new = consent.suppress_domain(connection, domain=normalise_domain(target), source=context.actor)
            obj = f"domain:{normalise_domain(target)}"
        else:
            key = context.settings.identity().address_hash(normalise(target).normalised)
            scope = list_id(connection, list_name) if list_name else EVERYWHERE
            new = consent.suppress(
                connection,
                address_hash=key,
                reason=SuppressionReason.MANUAL,
                source=context.actor,
                list_id=scope,
                at=now(),
            )
            obj = f"address:{key.hex()}"
        if new:
            audit.record(connection, context.actor, "suppress.add", obj, {"list": list_name} if list_name else None)
    console().print("suppressed" if new else "was suppressed already")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="CSV with an address column, or an address or @domain a line.")],
    encoding: Annotated[str, typer.Option(help="utf-8, latin-1, windows-1252, …")] = "utf-8",
) -> None:
    """Bar every address and domain in a file, everywhere."""
    from mailer_lib.contacts.address_file import read_addresses
    from mailer_lib.contacts.refusals import suppress_many
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context:
        with progress(f"suppressing {file.name}") as report:
            done = suppress_many(
                context.engine,
                context.settings.identity(),
                read_addresses(file, encoding, domains=True),
                source=file.name,
                progress=report,
            )
        with write(context.engine) as connection:
            detail = {"file": file.name, "new": done.new, "known": done.known, "problems": len(done.problems)}
            audit.record(connection, context.actor, "suppress.import", f"file:{file.name}"[:200], detail)
    for line, sentence in done.problems:
        console().print(f"{file}, line {line}: {sentence}", markup=False)
    console().print(f"{done.new:,} suppressed, {done.known:,} were already, {len(done.problems):,} lines can't be read")


@app.command()
def lift(target: Target, list_name: ListName = None) -> None:
    """Lift the suppressions of an address (all, or those of one list) or of a domain.

    It gives nobody a consent: who unsubscribed or complained stays unsubscribed until they agree anew.
    """
    from mailer_lib.contacts import consent
    from mailer_lib.contacts.address import normalise, normalise_domain
    from mailer_lib.contacts.lists import list_id
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context, write(context.engine) as connection:
        if target.startswith("@"):
            lifted = int(consent.lift_domain(connection, domain=normalise_domain(target)))
            obj = f"domain:{normalise_domain(target)}"
        else:
            key = context.settings.identity().address_hash(normalise(target).normalised)
            scope = list_id(connection, list_name) if list_name else None
            lifted = consent.lift(connection, address_hash=key, by=context.actor, list_id=scope)
            obj = f"address:{key.hex()}"
        if lifted:
            audit.record(connection, context.actor, "suppress.lift", obj, {"lifted": lifted})
    console().print(f"{lifted} lifted" if lifted else "was not suppressed")


@app.command()
def check(target: Target) -> None:
    """Say whether an address or a domain is suppressed, and why. Exit code 1 when it isn't."""
    from mailer_lib.contacts import consent, lists
    from mailer_lib.contacts.address import normalise, normalise_domain
    from mailer_lib.contacts.precedence import EVERYWHERE
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        lines: list[str] = []
        if not target.startswith("@"):
            address = normalise(target)
            key = context.settings.identity().address_hash(address.normalised)
            names = {one.id: f"list {one.name}" for one in lists.all_lists(connection)} | {EVERYWHERE: "everywhere"}
            for barrier in consent.active_barriers(connection, key):
                where = names.get(barrier.list_id, str(barrier.list_id))
                lines.append(f"suppressed, {where}: {barrier.reason}, since {barrier.refused_at:%Y-%m-%d %H:%M} UTC")
        domain = normalise_domain(target) if target.startswith("@") else address.domain
        if consent.domain_barred(connection, domain):
            lines.append(f"the domain {domain} is suppressed, everywhere")
    console().print("\n".join(lines) or "not suppressed", markup=False)
    if not lines:
        raise typer.Exit(1)
