"""``mailfleet fleet``: more or fewer dispatch servers, without Airflow."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="More or fewer dispatch servers: what is decided, and why.")

Number = Annotated[int, typer.Argument(help="Number of the decision, as `mailfleet fleet show` has it.")]


@app.command()
def plan() -> None:
    """What would be decided about each sending pool at this moment, and why. Nothing is stored."""
    from mailer_lib.dispatch import scale_book

    with open_context() as context:
        for made in scale_book.plan(context.engine, context.settings):
            console().print(f"{made.pool}: {made.action}{f' {made.server}' if made.server else ''} ({made.finding})")
            console().print(f"  {made.reason}")


@app.command()
def decide() -> None:
    """Decide about each sending pool, and store it: what the DAG fleet_scale does every few minutes."""
    from mailer_lib.dispatch import scale_book

    with open_context() as context:
        for made in scale_book.look(context.engine, context.settings, actor=context.actor):
            console().print(f"{made.id}: {made.title}, {made.state}")
            console().print(f"  {made.reason}")


@app.command()
def show(pool: Annotated[str | None, typer.Option(help="Only this sending pool.")] = None) -> None:
    """The last decisions, who allowed them and what came of them."""
    from mailer_lib.database.engine import read
    from mailer_lib.dispatch import scale_book

    with open_context() as context, read(context.engine) as connection:
        found = scale_book.newest(connection, pool=pool)
    table = Table("no.", "at (UTC)", "sending pool", "action", "server", "state", "by", "reason")
    for one in found:
        what = one.server or (str(one.machine_from) if one.machine_from else "—")
        reason = f"{one.reason} → {one.outcome}" if one.outcome else one.reason
        at = f"{one.changed_at:%Y-%m-%d %H:%M}"
        table.add_row(str(one.id), at, one.pool, one.action, what, one.state, one.decided_by or "—", reason)
    console().print(table)


@app.command()
def tidy() -> None:
    """Remove what isn't kept for ever: job folders of sends long over, here and on servers; old verifications.

    Exit code 1 when a server couldn't be reached: it is asked next time.
    """
    from mailer_lib.dispatch.housekeeping import keep_house

    with open_context() as context:
        done = keep_house(context.engine, context.settings, actor=context.actor)
    for sentence in done.sentences():
        console().print(sentence, markup=False)
    for trouble in done.troubles:
        typer.echo(f"left: {trouble}", err=True)
    if done.troubles:
        raise typer.Exit(1)


@app.command()
def approve(number: Number) -> None:
    """Allow a proposed decision, and do it."""
    from mailer_lib.commands.errors import CommandError
    from mailer_lib.dispatch import scale_book
    from mailer_lib.dispatch.scale_apply import Applier
    from mailer_lib.dispatch.server_builder import FleetBuilder
    from mailer_lib.fleet.hosts import source_of
    from mailer_lib.terms import ScaleState

    with open_context() as context:
        scale_book.approve(context.engine, number, by=context.actor)
        engine, settings, actor, say = context.engine, context.settings, context.actor, console().print
        builder = FleetBuilder(engine, settings, actor, say)
        done = Applier(engine, settings, actor, builder, source_of(settings), say).apply(number)
    if done.state is not ScaleState.APPLIED:
        raise CommandError(f"decision {number} is {done.state}: {done.outcome}")


@app.command()
def reject(number: Number) -> None:
    """Refuse a proposed decision; the same isn't proposed again for an hour."""
    from mailer_lib.dispatch import scale_book

    with open_context() as context:
        scale_book.reject(context.engine, number, by=context.actor)
    console().print(f"decision {number} is rejected")
