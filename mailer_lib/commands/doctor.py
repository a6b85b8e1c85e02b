"""``mailfleet doctor``: what is configured, reachable and missing."""

import typer

from mailer_lib.commands.context import console
from mailer_lib.settings import load_settings

app = typer.Typer(help="Say what is configured, reachable and missing.")

_STYLES = {"ok": "green", "warn": "yellow", "FAIL": "bold red", "info": "dim"}


@app.command()
def doctor() -> None:
    """Check settings, packages, keys, database, storage, dispatch servers, domains, public URL and DNS.

    Exit code 1 when something would keep mail from being sent.
    """
    from mailer_lib.doctor import Level, examine

    output = console()
    section, count = "", dict.fromkeys(Level, 0)
    for finding in examine(load_settings()):
        if finding.section != section:
            section = finding.section
            output.print(f"\n{section}", style="bold")
        output.print(f"  {finding.level:4}", style=_STYLES[finding.level], end="  ")
        output.print(finding.text, markup=False, soft_wrap=True)
        count[finding.level] += 1
    output.print(
        f"\n{count[Level.FAIL]} failed, {count[Level.WARN]} to look at, {count[Level.OK]} in order", style="bold"
    )
    if count[Level.FAIL]:
        raise typer.Exit(1)
