"""``mailfleet lists``: what people subscribe to."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="Lists that people subscribe to.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name for operators and files, like newsletter.")],
    title: Annotated[str | None, typer.Option(help="What recipients read.  [the name]")] = None,
) -> None:
    """Make a list; nothing happens when it is there already."""
    from mailer_lib.contacts import lists
    from mailer_lib.database import audit
    from mailer_lib.database.engine import write

    with open_context() as context, write(context.engine) as connection:
        known = {one.name for one in lists.all_lists(connection)}
        lists.ensure_list(connection, name, title or name)
        if name not in known:
            audit.record(connection, context.actor, "lists.add", f"list:{name}", {"title": title or name})
    console().print(f"list {name}: {'is there already' if name in known else 'made'}", markup=False)


@app.command("list")
def list_() -> None:
    """Every list, with its subscriptions by state."""
    from mailer_lib.contacts import lists
    from mailer_lib.database.engine import read
    from mailer_lib.terms import SubscriptionState

    with open_context() as context, read(context.engine) as connection:
        found = lists.all_lists(connection)
        counts = lists.subscription_counts(connection)
    table = Table("list", "title", *(state.value for state in SubscriptionState))
    for one in found:
        table.add_row(one.name, one.title, *(f"{counts.get((one.id, state), 0):,}" for state in SubscriptionState))
    console().print(table)
