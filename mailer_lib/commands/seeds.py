"""``mailfleet seeds``: who gets test sends."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="Seed lists for test sends.", no_args_is_help=True)

ListName = Annotated[str, typer.Argument(metavar="LIST", help="Seed list; made with its first address.")]


@app.command()
def add(
    list_name: ListName,
    address: Annotated[str, typer.Argument(help="A colleague's or a test mailbox.")],
    name: Annotated[str | None, typer.Option(help="Given name, for the salutation.")] = None,
) -> None:
    """Put an address on a seed list."""
    from mailer_lib.contacts import seeds
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context, write(context.engine) as connection:
        new = seeds.add_seed(connection, list_name, address, name)
        if new:
            audit.record(connection, context.actor, "seeds.add", f"seeds:{list_name}")
    console().print(f"seed list {list_name}: {'added' if new else 'is on it already'}", markup=False)


@app.command()
def remove(list_name: ListName, address: Annotated[str, typer.Argument(help="The address.")]) -> None:
    """Take an address off a seed list."""
    from mailer_lib.contacts import seeds
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context, write(context.engine) as connection:
        was = seeds.remove_seed(connection, list_name, address)
        if was:
            audit.record(connection, context.actor, "seeds.remove", f"seeds:{list_name}")
    console().print(f"seed list {list_name}: {'removed' if was else 'was not on it'}", markup=False)


@app.command("list")
def list_(
    list_name: Annotated[str | None, typer.Argument(metavar="LIST", help="One list; all by default.")] = None,
) -> None:
    """The addresses of a seed list, or of all."""
    from mailer_lib.contacts import seeds
    from mailer_lib.database.engine import read

    with open_context() as context, read(context.engine) as connection:
        found = seeds.list_seeds(connection, list_name)
    table = Table("seed list", "address", "given name")
    for seed in found:
        table.add_row(seed.list_name, seed.address, seed.given_name or "")
    console().print(table)
