"""``mailfleet pool``: sending pools and their limits."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="Sending pools (servers that share a reputation) and their limits by mailbox provider.")

Name = Annotated[str, typer.Argument(help="Name of the sending pool.")]


@app.command()
def add(name: Name) -> None:
    """Make a sending pool; nothing happens when it is there already."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import pools

    with open_context() as context, write(context.engine) as connection:
        pools.ensure(connection, name, actor=context.actor)
    console().print(f"sending pool {name}")


@app.command("list")
def list_() -> None:
    """Sending pools, their servers and limits."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import pools, servers

    with open_context() as context, read(context.engine) as connection:
        found = [(pool, servers.list_servers(connection, pool_id=pool.id)) for pool in pools.list_pools(connection)]
    table = Table("sending pool", "servers", "limits an hour, for each server", "shared by all servers")
    for pool, members in found:
        each, shared = (
            ", ".join(f"{provider} {per_hour:,}" for provider, per_hour in limits.items()) or "none"
            for limits in (pool.per_hour, pool.shared_per_hour)
        )
        table.add_row(pool.name, ", ".join(server.name for server in members), each, shared)
    console().print(table)


@app.command()
def limit(
    name: Name,
    provider: Annotated[str, typer.Argument(help="Mailbox provider: gmail, outlook, …, other.")],
    per_hour: Annotated[str, typer.Argument(help="Messages an hour from each server of the pool, or `none`.")],
    shared: Annotated[bool, typer.Option("--shared", help="Of all servers of the pool together.")] = False,
) -> None:
    """Let each server of the pool, or all together, hand over at most so many messages an hour to one mailbox provider.

    Running sends take the new limit over with their next grant.
    """
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import pools
    from mailer_lib.fleet.names import FleetError

    if per_hour != "none" and not per_hour.isdecimal():
        raise FleetError(f"{per_hour!r} isn't a number of messages an hour, nor `none`")
    wanted = None if per_hour == "none" else int(per_hour)
    with open_context() as context, write(context.engine) as connection:
        pools.set_limit(connection, name, provider, wanted, actor=context.actor, shared=shared)
    kind = "shared by all servers" if shared else "for each server"
    console().print(
        f"{name}: {provider} {'without a limit' if wanted is None else f'at most {wanted:,} an hour'}, {kind}"
    )


@app.command()
def warmup(
    name: Name,
    ramp: Annotated[
        list[str] | None,
        typer.Argument(help="Messages on a server's first day, its second, …; or `default`: the published ramp."),
    ] = None,
) -> None:
    """The ramp of the pool's warming servers; with numbers, set it. A server may have its own (`server warmup`)."""
    from mailer_lib.commands.ramp import parse_ramp
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import pools
    from mailer_lib.fleet.warmup import effective_ramp, set_pool_ramp

    with open_context() as context, write(context.engine) as connection:
        if ramp:
            set_pool_ramp(connection, name, parse_ramp(ramp), actor=context.actor)
        pool = pools.get(connection, name)
    whose = "its own" if pool.warmup else "the default"
    quotas = ", ".join(f"{quota:,}" for quota in effective_ramp(None, pool.warmup))
    console().print(f"ramp of {name} ({whose}): {quotas}")
