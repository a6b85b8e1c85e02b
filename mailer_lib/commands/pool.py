"""``mailfleet pool``: sending pools and their limits."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context
from mailer_lib.terms import CapSpan

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
    table = Table(
        "sending pool", "servers", "limits an hour, for each server", "shared by all servers", "hourly cap", "daily cap"
    )
    for pool, members in found:
        limits = (
            ", ".join(f"{provider} {rows:,}" for provider, rows in limits.items()) or "none"
            for limits in (pool.per_hour, pool.shared_per_hour, pool.hourly_cap, pool.daily_cap)
        )
        table.add_row(pool.name, ", ".join(server.name for server in members), *limits)
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

    wanted = _number(per_hour)
    with open_context() as context, write(context.engine) as connection:
        pools.set_limit(connection, name, provider, wanted, actor=context.actor, shared=shared)
    kind = "shared by all servers" if shared else "for each server"
    console().print(
        f"{name}: {provider} {'without a limit' if wanted is None else f'at most {wanted:,} an hour'}, {kind}"
    )


def _number(messages: str) -> int | None:
    from mailer_lib.fleet.names import FleetError

    if messages != "none" and not messages.isdecimal():
        raise FleetError(f"{messages!r} isn't a number of messages, nor `none`")
    return None if messages == "none" else int(messages)


@app.command()
def cap(
    name: Name,
    provider: Annotated[str, typer.Argument(help="Mailbox provider: gmail, outlook, …, other.")],
    messages: Annotated[str, typer.Argument(help="Messages from all servers of the pool together, or `none`.")],
    per: Annotated[CapSpan, typer.Option("--per", help="Of the hour, or of the day, in UTC.")] = CapSpan.DAY,
) -> None:
    """Let all servers of the pool together hand over at most so many messages in an hour, or on a day, to one mailbox
    provider. It is counted where rows are granted, so it is never passed.

    Running sends take the new cap over with their next grant.
    """
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import pools

    wanted = _number(messages)
    with open_context() as context, write(context.engine) as connection:
        pools.set_cap(connection, name, provider, per, wanted, actor=context.actor)
    span = "an hour" if per is CapSpan.HOUR else "a day"
    console().print(f"{name}: {provider} {'without a cap' if wanted is None else f'at most {wanted:,}'} {span}")


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
