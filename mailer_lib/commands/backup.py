"""``mailfleet backup``: one file with database and keys, and back."""

from pathlib import Path
from typing import Annotated

import typer

from mailer_lib.commands.context import console, error_console, open_context, progress

app = typer.Typer(help="Back up database and keys into one file, and restore it.")

File = Annotated[Path, typer.Argument(help="The backup, a tar file.")]


@app.command()
def create(
    file: File,
    storage: Annotated[
        bool, typer.Option("--storage", help="Also the snapshot store: snapshots, settled ledgers, bundles.")
    ] = False,
) -> None:
    """Write a consistent backup of database and keys. It is not encrypted: it holds every address and all keys."""
    from mailer_lib import backup

    with open_context() as context, progress("backup") as report:
        manifest = backup.create(context.engine, context.settings, file.absolute(), storage=storage, on_rows=report)
    rows, files = sum(manifest.rows.values()), len(manifest.sha256)
    console().print(f"{file}: {rows:,} rows in {files:,} files, mode 0600, not encrypted. Keep it as safe as the keys.")
    for send in manifest.live_sends:
        error_console().print(f"{send} wasn't finished: restored from this backup it will be stopped.")
    for reference in manifest.keys_elsewhere:
        error_console().print(f"the DKIM key {reference} is not in the backup; back it up yourself.")


@app.command()
def verify(file: File) -> None:
    """Read a backup whole and compare all checksums."""
    from mailer_lib import backup

    manifest = backup.verify(file)
    console().print(
        f"{file}: whole, of {manifest.created_at:%Y-%m-%d %H:%M} UTC, revision {manifest.revision}, "
        f"{sum(manifest.rows.values()):,} rows, {'with' if manifest.storage else 'without'} the snapshot store"
    )


@app.command()
def restore(file: File) -> None:
    """Restore into an empty MAILFLEET_HOME and an empty database; nothing that exists is overwritten."""
    from mailer_lib import backup

    with open_context(migrated=False) as context, progress("restore") as report:
        manifest = backup.restore(context.engine, context.settings, file, actor=context.actor, on_rows=report)
    console().print(
        f"restored: {sum(manifest.rows.values()):,} rows and the keys, as of {manifest.created_at:%F %H:%M} UTC"
    )
    for send in manifest.live_sends:
        error_console().print(
            f"{send} is stopped: it went on after the backup, so triggering it may mail people twice."
        )
