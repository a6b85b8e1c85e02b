"""``mailfleet criteria``: stored sample criteria."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from mailer_lib.commands.context import console, open_context
from mailer_lib.commands.errors import CommandError

app = typer.Typer(help="Stored sample criteria: who is to be picked.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the criteria.")]
Source = Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of stored criteria, or a rule tree's file.")]
ListName = Annotated[str | None, typer.Option("--list", help="Judge consent by this list; the only list by default.")]


@app.command()
def save(
    name: Name,
    file: Annotated[Path, typer.Argument(help="Rule tree, JSON as react-querybuilder writes it.")],
    description: Annotated[str | None, typer.Option(help="A sentence for colleagues.")] = None,
) -> None:
    """Check a rule tree and store it, over what the name held before."""
    from mailer_lib.audience import catalogue, criteria
    from mailer_lib.audience.rules import CriteriaError
    from mailer_lib.database.engine import write

    text = file.read_bytes()
    with open_context() as context:
        try:
            tree = criteria.read_tree(text)
            with write(context.engine) as connection:
                known = catalogue.load(connection)
                new = criteria.save(connection, known, name, tree, actor=context.actor, description=description)
        except CriteriaError as error:
            raise CommandError("\n".join(f"{file}: {problem}" for problem in error.problems)) from None
    console().print(f'criteria "{name}" {"stored" if new else "replaced"}')


@app.command()
def check(source: Source) -> None:
    """Can it be used? Every problem with its JSON path, or what it asks for."""
    from mailer_lib.audience import catalogue, criteria
    from mailer_lib.audience.rules import CriteriaError, parse, references, rules_of
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        path = Path(source)
        try:
            stored = not path.is_file()
            tree = criteria.load(connection, source).rules if stored else criteria.read_tree(path.read_bytes())
            known = catalogue.load(connection)
            group = parse(tree, known, name=source if stored else "")
        except CriteriaError as error:
            raise CommandError("\n".join(f"{source}: {problem}" for problem in error.problems)) from None
    rules = list(rules_of(group))
    output = console()
    output.print(f"{source}: fine, {len(rules)} {'rule' if len(rules) == 1 else 'rules'}")
    for label, names in (
        ("fields", sorted({rule.field.name for rule in rules})),
        ("criteria", list(references(tree, known))),
    ):
        if names:
            output.print(f"  {label}: {', '.join(names)}")


@app.command()
def explain(name: Name) -> None:
    """How the database would find them, and which index would save it work."""
    from mailer_lib.audience import catalogue, criteria, sampling
    from mailer_lib.audience.explain import explain as explain_tree
    from mailer_lib.audience.rules import parse
    from mailer_lib.database.engine import now, read

    with open_context() as context, read(context.engine) as connection:
        tree, known, at = criteria.load(connection, name).rules, catalogue.load(connection), now()
        with sampling.picking(connection, context.settings, tree, known, now=at) as picked:
            found = explain_tree(connection, parse(tree, known, now=at), picked)
    for line in found.plan:
        typer.echo(line)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")


@app.command()
def count(name: Name, list_name: ListName = None) -> None:
    """How many match today; of these, how many may be mailed, and why the others not."""
    from mailer_lib.audience import behaviour_store, catalogue, counts, criteria
    from mailer_lib.audience.rules import behaviours, parse
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        stored, known = criteria.load(connection, name), catalogue.load(connection)
        chosen, list_id = _list(known.lists, list_name)
        if behaviours(parse(stored.rules, known)):
            done = behaviour_store.refresh(context.engine, context.settings)
            for sentence in (*done.unread, *done.damaged):
                typer.echo(f"warning: {sentence}", err=True)
        found = counts.count(connection, context.settings, stored.rules, known, list_id)
    output = console()
    output.print(f"matching  {found.matching:>10,}")
    output.print(f'mailable  {found.mailable:>10,}  by the list "{chosen}"')
    output.print(f"barred    {found.barred:>10,}" + ("  a person may have several reasons:" if found.barred else ""))
    for reason, people in found.by_reason.items():
        output.print(f"          {people:>10,}  {reason}")


@app.command()
def sql(name: Name) -> None:
    """The SQL that picks them, with its bound values."""
    from sqlalchemy import select

    from mailer_lib.audience import catalogue, criteria, sampling
    from mailer_lib.audience.rules import behaviours, parse
    from mailer_lib.database.engine import now, read
    from mailer_lib.database.schema import contacts

    with open_context() as context, read(context.engine) as connection:
        tree, known, at = criteria.load(connection, name).rules, catalogue.load(connection), now()
        with sampling.picking(connection, context.settings, tree, known, now=at) as picked:
            statement = select(contacts.c.id).where(picked)
            compiled = statement.compile(context.engine, compile_kwargs={"render_postcompile": True})
    typer.echo(str(compiled))
    names = list(compiled.positiontup or compiled.params)
    for place, bound in enumerate(names, 1):
        typer.echo(f"-- {place}: {compiled.params[bound]!r}")
    for asked in behaviours(parse(tree, known, now=at)):
        typer.echo(f"-- {asked.table}: {asked}")


@app.command()
def show(name: Name) -> None:
    """The rule tree, as `criteria save` takes it."""
    import json

    from mailer_lib.audience import criteria
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        stored = criteria.load(connection, name)
    typer.echo(json.dumps(stored.rules, indent=2, ensure_ascii=False))


@app.command("list")
def list_() -> None:
    """All criteria: name, when and by whom they were saved."""
    from mailer_lib.audience import criteria
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        found = criteria.stored(connection)
    for each in found:
        tail = f"  {each.description}" if each.description else ""
        typer.echo(f"{each.name}  {each.updated_at:%Y-%m-%d %H:%M} UTC  {each.updated_by}{tail}")
    if not found:
        typer.echo("no criteria are stored yet; `mailfleet criteria save NAME FILE.json` stores some")


def _list(lists: Mapping[str, int], name: str | None) -> tuple[str, int]:
    if name is None:
        if len(lists) == 1:
            return next(iter(lists.items()))
        raise CommandError(f"say by which list consent is judged: --list {' or '.join(lists) or '(there is none yet)'}")
    if name not in lists:
        raise CommandError(f'there is no list "{name}"; there are: {", ".join(lists) or "none yet"}')
    return name, lists[name]
