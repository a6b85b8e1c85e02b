"""``mailfleet server health``: how the dispatch servers are."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context

if TYPE_CHECKING:
    from mailer_lib.fleet.health_book import Look


def health(
    names: Annotated[list[str] | None, typer.Argument(help="Of these servers only.")] = None,
    look: Annotated[bool, typer.Option("--look", help="Ask the servers now; else what the last look found.")] = False,
) -> None:
    """Queue, load, disk, clock and certificate of each server, and whether it is sick."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import health_book, servers

    with open_context() as context:
        with read(context.engine) as connection:
            for name in names or ():
                servers.get(connection, name)
        if look:
            health_book.look(context.engine, context.settings, names=names or ())
        with read(context.engine) as connection:
            looks = health_book.latest(connection)
            asked = [one for one in servers.list_servers(connection) if not names or one.name in names]
    table = Table(
        "dispatch server", "state", "health", "queued", "deferred", "oldest", "load", "disk free", "looked at"
    )
    for server in asked:
        table.add_row(server.name, server.state, *_health_cells(looks.get(server.id)))
    console().print(table)
    for server in asked:
        if server.id in looks and looks[server.id].health.reasons:
            console().print(str(looks[server.id]))


def _health_cells(found: "Look | None") -> tuple[str, ...]:
    if found is None:
        return ("never looked at", *["—"] * 6)
    facts, at = found.health.facts, f"{found.at:%Y-%m-%d %H:%M} UTC"
    if facts is None:
        return (str(found.health.verdict), *["—"] * 5, at)
    queue = ("—",) * 3
    if facts.messages is not None:
        queue = (f"{facts.messages:,}", f"{facts.deferred:,}", f"{facts.oldest_s / 60:,.0f} min")
    return (str(found.health.verdict), *queue, f"{facts.load:.1f}", f"{facts.disk_free_share:.0%}", at)
