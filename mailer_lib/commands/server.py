"""``mailfleet server``: dispatch servers."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context
from mailer_lib.terms import ChannelKind, MtaKind, ServerState, SmtpSecurity

app = typer.Typer(help="Dispatch servers: where an agent runs, and the MTA that takes what it sends.")

Name = Annotated[str, typer.Argument(help="Name of the dispatch server; also the label of its task in Airflow.")]


@app.command()
def add(
    name: Name,
    *,
    pool: Annotated[str, typer.Option(help="Sending pool that it belongs to.")],
    helo_name: Annotated[
        str, typer.Option(help="Its name in EHLO; must resolve to the address that mail leaves from.")
    ],
    smtp_host: Annotated[str | None, typer.Option(help="MTA that takes the mail.  [127.0.0.1]")] = None,
    smtp_port: Annotated[int | None, typer.Option(help="Its port.  [25]")] = None,
    smtp_security: Annotated[SmtpSecurity | None, typer.Option(help="TLS towards the MTA.  [none]")] = None,
    smtp_user: Annotated[str | None, typer.Option(help="User for AUTH.")] = None,
    smtp_password_ref: Annotated[str | None, typer.Option(help="Where its password is: env:NAME or file:PATH.")] = None,
    mta: Annotated[MtaKind | None, typer.Option(help="Whose records settle a doubt.  [relay]")] = None,
    mta_log: Annotated[str | None, typer.Option(help="Main log of the MTA.")] = None,
    mta_spool: Annotated[str | None, typer.Option(help="Spool folder of the MTA.")] = None,
    mta_queues: Annotated[
        bool | None, typer.Option("--mta-queues/--no-mta-queues", help="Its Exim gives each send a queue of its own.")
    ] = None,
    mta_command: Annotated[str | None, typer.Option(help="Command of its Exim.  [/usr/sbin/exim4]")] = None,
    channel: Annotated[ChannelKind | None, typer.Option(help="How its agent is reached.  [local]")] = None,
    host: Annotated[str | None, typer.Option(help="Where the agent runs (channel ssh).")] = None,
    slots: Annotated[int | None, typer.Option(help="Agent processes, one a core.  [1]")] = None,
    connections: Annotated[int | None, typer.Option(help="SMTP connections of each slot.  [4]")] = None,
    per_hour: Annotated[int | None, typer.Option(help="Messages an hour at most, to all providers together.")] = None,
    per_day: Annotated[int | None, typer.Option(help="Messages on a day (UTC) at most.")] = None,
    state: Annotated[ServerState | None, typer.Option(help="[active]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change a server that is there already.")] = False,
) -> None:
    """Add a dispatch server. Adding the same one twice changes nothing."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import servers

    if channel is not ChannelKind.SSH:  # paths on this machine: agents run in folders of their own
        mta_log, mta_spool = (path and str(Path(path).absolute()) for path in (mta_log, mta_spool))
    values: dict[str, Any] = {
        "name": name, "pool": pool, "helo_name": helo_name, "smtp_host": smtp_host, "smtp_port": smtp_port,
        "smtp_security": smtp_security, "smtp_user": smtp_user, "smtp_password_ref": smtp_password_ref, "mta": mta,
        "mta_log": mta_log, "mta_spool": mta_spool, "mta_queues": mta_queues,
        "mta_command": mta_command, "channel": channel, "host": host, "slots": slots,
        "connections": connections, "per_hour": per_hour, "per_day": per_day, "state": state,
    }  # fmt: skip
    spec = servers.make_spec(**values)
    with open_context() as context, write(context.engine) as connection:
        _, changed = servers.add(connection, spec, actor=context.actor, replace=replace)
    console().print(f"dispatch server {name}: {'stored' if changed else 'is there already, as given'}")


@app.command("list")
def list_(pool: Annotated[str | None, typer.Option(help="Only this sending pool.")] = None) -> None:
    """Dispatch servers, their state and their MTA."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import pools, servers

    with open_context() as context, read(context.engine) as connection:
        pool_id = pools.get(connection, pool).id if pool else None
        found = servers.list_servers(connection, pool_id=pool_id)
    table = Table("dispatch server", "sending pool", "state", "channel", "slots", "MTA", "per hour", "per day")
    for server in found:
        table.add_row(
            server.name,
            server.pool,
            server.state,
            server.channel + (f" {server.host}" if server.host else ""),
            str(server.slots),
            f"{server.mta} {server.smtp_host}:{server.smtp_port}",
            f"{server.per_hour:,}" if server.per_hour else "no limit",
            f"{server.per_day:,}" if server.per_day else "no limit",
        )
    console().print(table)


@app.command()
def show(name: Name) -> None:
    """Everything that is stored about one dispatch server."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import servers

    with open_context() as context, read(context.engine) as connection:
        server = servers.get(connection, name)
    for key, value in server.model_dump(mode="json", exclude={"id", "pool_id"}).items():
        console().print(f"{key:18} {'—' if value is None else value}")


@app.command()
def state(name: Name, state: Annotated[ServerState, typer.Argument(help="The new state.")]) -> None:
    """Take a server in or out of service: `active` gets work, `draining` gets no new lease."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import servers

    with open_context() as context, write(context.engine) as connection:
        servers.set_state(connection, name, state, actor=context.actor)
    console().print(f"dispatch server {name}: {state}")


@app.command()
def reconcile(
    name: Name,
    *,
    gone: Annotated[
        bool, typer.Option("--gone", help="Its disk is lost or was wiped: what is unknown stays unknown.")
    ] = False,
) -> None:
    """Read the ledgers of a server that was given up and came back; afterwards it is standby."""
    from mailer_lib.dispatch.reconciling import reconcile_server

    with open_context() as context:
        found = reconcile_server(context.engine, context.settings, name, context.actor, gone=gone)
    for one in found:
        mended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(one.mended.items())) or "nothing"
        console().print(
            f"{one.send}, {one.slot}: {mended} of what was unknown; {one.unknown} stay unknown", markup=False
        )
    console().print(f"dispatch server {name}: standby; `mailfleet server state {name} active` gives it work")


@app.command()
def warmup(
    name: Name,
    ramp: Annotated[
        list[str] | None,
        typer.Argument(help="Messages on its first day, its second, …; or `default`: as its sending pool has it."),
    ] = None,
) -> None:
    """The ramp that a warming server is held to, and where it stands; with numbers, set one for this server.

    It holds while the server's state is `warming`: days are counted in UTC from the first on which it sent.
    """
    from mailer_lib.commands.ramp import parse_ramp
    from mailer_lib.database.engine import now, write
    from mailer_lib.dispatch.grant_counts import used_at
    from mailer_lib.fleet import servers, warmup
    from mailer_lib.terms import CapSpan

    with open_context() as context, write(context.engine) as connection:
        if ramp:
            warmup.set_server_ramp(connection, name, parse_ramp(ramp), actor=context.actor)
        server = servers.get(connection, name)
        quotas, whose = warmup.ramp_of_server(connection, name)
        at = now()
        granted = used_at(connection, server.id, at).get(CapSpan.DAY, 0)
    day = warmup.day_of(server.warming_from, at)
    today = warmup.quota(quotas, day)
    console().print(f"ramp ({whose}): {', '.join(f'{quota:,}' for quota in quotas)}")
    if server.state is not ServerState.WARMING:
        console().print(f"{name} is {server.state}: no quota holds; {granted:,} granted today")
    elif today is None:
        console().print(f"{name} is through its ramp: `mailfleet server state {name} active` ends warming")
    else:
        console().print(f"{name} is on day {day} of {len(quotas)}: {granted:,} of {today:,} are granted today")
