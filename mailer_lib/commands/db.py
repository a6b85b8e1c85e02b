"""``mailfleet db``: the tables of the central database."""

import typer

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="Bring the database to this release's tables.")


@app.command()
def upgrade() -> None:
    """Run the migrations that are missing. Back up first (`mailfleet backup create`)."""
    from mailer_lib.database import migrate

    with open_context(migrated=False) as context:
        before, after = migrate.upgrade(context.engine)
    console().print(
        f"at revision {after} already" if before == after else f"brought from {before or 'nothing'} to {after}"
    )


@app.command()
def current() -> None:
    """Say which revision the database is at, and which one this release needs. Exit code 1 when they differ."""
    from mailer_lib.database import migrate

    with open_context(migrated=False) as context:
        found, wanted = migrate.current(context.engine), migrate.head()
    console().print(f"database {found or 'empty'}, this release {wanted}")
    if found != wanted:
        raise typer.Exit(1)
