"""``mailfleet suppress``: addresses and domains that never get mail."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import CommandContext, console, open_context, progress
from mailer_lib.commands.errors import WRONG_USAGE, CommandError
from mailer_lib.terms import HashAlgorithm, SuppressionReason

if TYPE_CHECKING:
    from mailer_lib.contacts.refusals import RefusalReport
    from mailer_lib.contacts.rejects import RejectsWriter

SHOWN_PROBLEMS = 20

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
    *,
    encoding: Annotated[str, typer.Option(help="utf-8, latin-1, windows-1252, …")] = "utf-8",
    hashes: Annotated[
        HashAlgorithm | None,
        typer.Option(help="The file holds hashes of addresses (trimmed, lower case) in hexadecimal digits."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --hashes: the list's name.  [the file's]")] = None,
) -> None:
    """Bar every address and domain in a file, everywhere; with --hashes whoever has, or will have, such an address.

    Lines that can't be read go to a rejects file: mend it and import it.
    """
    from mailer_lib.contacts.address_file import read_addresses
    from mailer_lib.contacts.refusals import suppress_many
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    if name is not None and hashes is None:
        raise CommandError("--name is of a list of hashes; say --hashes sha256 or md5 too", WRONG_USAGE)
    with open_context() as context, _rejects(context, file, "email" if hashes is None else "hash") as rejects:
        if hashes is not None:
            _import_hashes(context, file, hashes, name=name or file.name, encoding=encoding, rejects=rejects)
            return
        with progress(f"suppressing {file.name}") as report:
            done = suppress_many(
                context.engine,
                context.settings.identity(),
                read_addresses(file, encoding, domains=True),
                source=file.name,
                progress=report,
                rejects=rejects,
            )
        with write(context.engine) as connection:
            detail = {"file": file.name, "new": done.new, "known": done.known, "problems": len(done.problems)}
            audit.record(connection, context.actor, "suppress.import", f"file:{file.name}"[:200], detail)
        _say_problems(file, done, rejects)
    console().print(f"{done.new:,} suppressed, {done.known:,} were already, {len(done.problems):,} lines can't be read")


def _import_hashes(
    context: CommandContext, file: Path, algorithm: HashAlgorithm, *, name: str, encoding: str, rejects: "RejectsWriter"
) -> None:
    from mailer_lib.contacts.address_file import read_hashes
    from mailer_lib.contacts.refusals import suppress_hashes
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with progress(f"matching {file.name}") as report:
        done = suppress_hashes(
            context.engine, context.settings.identity(), read_hashes(file, algorithm, encoding), name=name,
            algorithm=algorithm, progress=report, rejects=rejects,
        )  # fmt: skip
    read = done.hashes
    with write(context.engine) as connection:
        detail = {
            "file": file.name, "algorithm": algorithm.value, "new": read.new, "known": read.known,
            "problems": len(read.problems), "barred": done.barred,
        }  # fmt: skip
        audit.record(connection, context.actor, "suppress.import", f"hashes:{name}"[:200], detail)
    _say_problems(file, read, rejects)
    console().print(
        f"list {name}: {read.new:,} hashes new, {read.known:,} were there, {len(read.problems):,} lines can't be read; "
        f"{done.barred:,} contacts suppressed by it now",
        markup=False,
    )


@contextmanager
def _rejects(context: CommandContext, file: Path, column: str) -> "Iterator[RejectsWriter]":
    from mailer_lib.contacts.rejects import RejectsWriter, rejects_path
    from mailer_lib.database.engine import now

    path = rejects_path(context.settings.storage, file, now())
    with RejectsWriter(path, [column], "utf-8-sig", ",") as rejects:
        yield rejects


def _say_problems(file: Path, done: "RefusalReport", rejects: "RejectsWriter") -> None:
    rejects.flush()
    for line, sentence in done.problems[:SHOWN_PROBLEMS]:
        console().print(f"{file}, line {line}: {sentence}", markup=False)
    if done.problems:
        console().print(f"lines that can't be read, with the reason: {rejects.path}", markup=False, soft_wrap=True)


@app.command()
def lists() -> None:
    """The lists of hashes that others handed out."""
    from mailer_lib.contacts.hash_lists import all_hash_lists, sizes
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        table = Table("list", "hash", "hashes", "read (UTC)")
        counts = sizes(connection)
        for one in all_hash_lists(connection):
            table.add_row(one.name, one.algorithm, f"{counts.get(one.id, 0):,}", f"{one.read_at:%Y-%m-%d %H:%M}")
    console().print(table)


@app.command("drop-list")
def drop_list(name: Annotated[str, typer.Argument(help="As `suppress lists` shows it.")]) -> None:
    """Forget a list of hashes and lift what came of it. Who is barred for another reason too stays barred."""
    from mailer_lib.contacts import hash_lists
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context:
        hashes, lifted = hash_lists.drop_list(context.engine, name, by=context.actor)
        with write(context.engine) as connection:
            detail = {"hashes": hashes, "lifted": lifted}
            audit.record(connection, context.actor, "suppress.drop-list", f"hashes:{name}"[:200], detail)
    console().print(f"{hashes:,} hashes forgotten, {lifted:,} suppressions lifted")


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
    from mailer_lib.contacts.hash_lists import lists_naming
    from mailer_lib.contacts.precedence import EVERYWHERE
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        lines: list[str] = []
        if not target.startswith("@"):
            address = normalise(target)
            key = context.settings.identity().address_hash(address.normalised)
            names = {one.id: f"list {one.name}" for one in lists.all_lists(connection)} | {EVERYWHERE: "everywhere"}
            lines += [f"on the hash list {name}" for name in lists_naming(connection, address)]
            for barrier in consent.active_barriers(connection, key):
                where = names.get(barrier.list_id, str(barrier.list_id))
                lines.append(f"suppressed, {where}: {barrier.reason}, since {barrier.refused_at:%Y-%m-%d %H:%M} UTC")
        domain = normalise_domain(target) if target.startswith("@") else address.domain
        if consent.domain_barred(connection, domain):
            lines.append(f"the domain {domain} is suppressed, everywhere")
    console().print("\n".join(lines) or "not suppressed", markup=False)
    if not lines:
        raise typer.Exit(1)
