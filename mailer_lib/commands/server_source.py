"""``mailfleet server add-source | remove-source | sources``: addresses that a server's mail leaves from."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context
from mailer_lib.commands.server_life import Name

Address = Annotated[str, typer.Argument(help="IPv4 or IPv6 address of the server.")]


def add_source(
    name: Name,
    address: Address,
    *,
    helo_name: Annotated[str, typer.Option(help="Its name in EHLO: must resolve to it, and its PTR back.")],
    warmed: Annotated[
        bool, typer.Option("--warmed", help="Mailbox providers know it; else it is warmed up by itself.")
    ] = False,
) -> None:
    """Let a server's mail leave from one more address, once it is verified and configured with it."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import sources

    with open_context() as context, write(context.engine) as connection:
        changed = sources.add(connection, name, address, helo_name=helo_name, warmed=warmed, actor=context.actor)
    if not changed:
        console().print(f"{name} has {address} already, as given")
        return
    console().print(f"{name}: {address} is stored. `mailfleet server verify {name}`, then `server configure {name}`")


def remove_source(name: Name, address: Address) -> None:
    """Take an address away from a server; its Exim goes on using it until `server configure`."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import sources

    with open_context() as context, write(context.engine) as connection:
        sources.remove(connection, name, address, actor=context.actor)
    console().print(f"{name}: {address} is removed; `mailfleet server configure {name}` tells its Exim")


def list_sources(name: Name) -> None:
    """The addresses of a server, and how far each is warmed up."""
    from mailer_lib.database.engine import now, read
    from mailer_lib.fleet import servers, warmup
    from mailer_lib.fleet import sources as book

    with open_context() as context, read(context.engine) as connection:
        server = servers.get(connection, name)
        found = book.of_server(connection, server.id)
        ramp, _ = warmup.ramp_of_server(connection, name)
    table = Table("address", "EHLO name", "used by Exim", "warm-up")
    for one in found:
        day = warmup.day_of(one.warming_from, now())
        through = one.warmed or warmup.quota(ramp, day) is None
        table.add_row(one.address, one.helo_name, "yes" if one.in_use else "no", "through" if through else f"day {day}")
    console().print(table if found else f"{name} sends from the address that its routes say; none is stored")
