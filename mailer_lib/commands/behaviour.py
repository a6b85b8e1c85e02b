"""``mailfleet behaviour``: what people did, as criteria ask for it."""

import typer

from mailer_lib.commands.context import console, open_context, progress
from mailer_lib.commands.errors import CommandError

app = typer.Typer(help="What people did, for criteria to ask.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """A noun with one verb stays a noun."""


@app.command()
def refresh() -> None:
    """Take in settled ledgers, opens and clicks that came since. A plan and a count do it by themselves."""
    from mailer_lib.audience import behaviour_store

    with open_context() as context, progress("phases and days", unit="files") as report:
        done = behaviour_store.refresh(context.engine, context.settings, report)
    output = console()
    output.print(f"{done.phases:>6,}  phases with new ledgers")
    output.print(f"{done.days:>6,}  days with new events")
    output.print(f"{done.rows:>6,}  rows in the files written anew")
    if done.unread or done.damaged:
        raise CommandError("\n".join((*done.unread, *done.damaged)))
