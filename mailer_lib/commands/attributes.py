"""``mailfleet attributes``: what is known of contacts beyond the fixed columns."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context
from mailer_lib.terms import AttributeType

app = typer.Typer(help="Declare the attributes that criteria and templates use.", no_args_is_help=True)


Key = Annotated[str, typer.Argument(help="A declared attribute.")]


@app.command()
def declare(
    declarations: Annotated[
        list[str],
        typer.Argument(
            help="KEY=TYPE, type text, number, boolean, date, text-list or enum:a,b,c.", metavar="KEY=TYPE…"
        ),
    ],
    indexed: Annotated[
        bool, typer.Option("--indexed", help="Make an index for each, so that criteria find by it.")
    ] = False,
) -> None:
    """Declare attributes with their types. Again the same changes nothing, but an enum may get more choices."""
    from mailer_lib.commands.errors import WRONG_USAGE, CommandError
    from mailer_lib.contacts import attributes
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    wanted: dict[str, tuple[AttributeType, list[str]]] = {}
    for text in declarations:
        key, _, type_ = text.partition("=")
        try:
            name, colon, listed = type_.partition(":")
            wanted[key] = AttributeType(name), listed.split(",") if colon else []
        except ValueError:
            kinds = ", ".join(AttributeType).replace("enum", "enum:CHOICE,CHOICE…")
            raise CommandError(f"{text!r}: write KEY=TYPE; the types are {kinds}", WRONG_USAGE) from None
    with open_context() as context:
        with write(context.engine) as connection:
            new = [
                key
                for key, (type_, choices) in wanted.items()
                if attributes.declare(connection, key, type_, choices=choices)
            ]
            for key in new:
                detail = {"type": wanted[key][0].value}
                audit.record(connection, context.actor, "attributes.declare", f"attribute:{key}", detail)
        for key in wanted if indexed else ():
            attributes.index(context.engine, key, actor=context.actor)
    console().print(f"{len(new)} declared, {len(wanted) - len(new)} were there already")


@app.command()
def index(key: Key) -> None:
    """Let criteria find people by this attribute without reading everybody."""
    from mailer_lib.contacts import attributes

    with open_context() as context:
        new = attributes.index(context.engine, key, actor=context.actor)
    console().print(f"{key}: indexed{'' if new else ' already'}")


@app.command()
def unindex(key: Key) -> None:
    """Drop the index of an attribute; its values stay."""
    from mailer_lib.contacts import attributes

    with open_context() as context:
        had = attributes.unindex(context.engine, key, actor=context.actor)
    console().print(f"{key}: {'no longer indexed' if had else 'had no index'}")


@app.command("list")
def list_() -> None:
    """Every declared attribute, its type, and whether it is indexed."""
    from mailer_lib.contacts import attributes
    from mailer_lib.database.engine import read

    with open_context() as context:
        with read(context.engine) as connection:
            found, choices = attributes.declared(connection), attributes.declared_choices(connection)
        indexed = attributes.indexed(context.engine)
    table = Table("attribute", "type", "index")
    for key, type_ in found.items():
        kind = f"{type_.value}: {', '.join(choices[key])}" if key in choices else type_.value
        table.add_row(key, kind, "yes" if key in indexed else "")
    console().print(table)
