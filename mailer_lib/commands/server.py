"""``mailfleet server``: dispatch servers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mailer_lib.commands import server_health, server_keys, server_life, server_source
from mailer_lib.commands.context import console, open_context
from mailer_lib.terms import ChannelKind, MtaKind, ServerState, SmtpSecurity

if TYPE_CHECKING:
    from mailer_lib.fleet.server_checks import Check
    from mailer_lib.fleet.servers import DispatchServer

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
    host_key: Annotated[
        str | None, typer.Option(help="What its sshd shows: 'ssh-ed25519 AAAA…'. `mailfleet server pin` reads it.")
    ] = None,
    ssh_port: Annotated[int | None, typer.Option(help="[22]")] = None,
    ssh_user: Annotated[str | None, typer.Option(help="Whom the agent runs as.  [mailfleet]")] = None,
    agent_python: Annotated[
        str | None, typer.Option(help="Python there, with Mailfleet.  [/opt/mailfleet/venv/bin/python]")
    ] = None,
    remote_jobs_dir: Annotated[
        str | None, typer.Option(help="Where job folders are there.  [/var/lib/mailfleet/jobs]")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Agent processes, one a core.  [1]")] = None,
    connections: Annotated[int | None, typer.Option(help="SMTP connections of each slot.  [4]")] = None,
    per_hour: Annotated[int | None, typer.Option(help="Messages an hour at most, to all providers together.")] = None,
    per_day: Annotated[int | None, typer.Option(help="Messages on a day (UTC) at most.")] = None,
    state: Annotated[ServerState | None, typer.Option(help="[active; behind SSH standby]")] = None,
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
        "mta_log": mta_log, "mta_spool": mta_spool, "mta_queues": mta_queues, "mta_command": mta_command,
        "channel": channel, "host": host, "host_key": host_key, "ssh_port": ssh_port, "ssh_user": ssh_user,
        "agent_python": agent_python, "remote_jobs_dir": remote_jobs_dir, "slots": slots,
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
    from mailer_lib.fleet import pools, server_checks, servers

    with open_context() as context, read(context.engine) as connection:
        pool_id = pools.get(connection, pool).id if pool else None
        found = servers.list_servers(connection, pool_id=pool_id)
        checks = server_checks.latest_of_all(connection)
    table = Table(
        "dispatch server", "sending pool", "state", "verified", "channel", "slots", "MTA", "per hour", "per day"
    )
    for server in found:
        table.add_row(
            server.name,
            server.pool,
            server.state,
            _verified(server, checks.get(server.id)),
            server.channel + (f" {server.host}" if server.host else ""),
            str(server.slots),
            f"{server.mta} {server.smtp_host}:{server.smtp_port}",
            f"{server.per_hour:,}" if server.per_hour else "no limit",
            f"{server.per_day:,}" if server.per_day else "no limit",
        )
    console().print(table)


def _verified(server: "DispatchServer", check: "Check | None") -> str:
    from mailer_lib.fleet.server_checks import why_unverified

    if check is None:
        return "never"
    if check.errors:
        return "failed"
    return "no longer" if why_unverified(server, check) else f"{check.at:%Y-%m-%d}"


@app.command()
def show(name: Name) -> None:
    """Everything that is stored about one dispatch server."""
    from mailer_lib.commands.server_life import print_check
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import server_checks, servers

    with open_context() as context, read(context.engine) as connection:
        server = servers.get(connection, name)
        check = server_checks.latest(connection, server.id)
    for key, value in server.model_dump(mode="json", exclude={"id", "pool_id"}).items():
        console().print(f"{key:18} {'—' if value is None else value}")
    print_check(server, check)


@app.command()
def pin(
    name: Name,
    fingerprint: Annotated[
        str | None, typer.Option(help="What it must be (SHA256:…), from the host's console. Then nobody is asked.")
    ] = None,
) -> None:
    """Read the host key of a server and pin it, once you have compared its fingerprint.

    On the host, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it. Without a pinned key nobody logs in, and
    a host that shows another key is refused.
    """
    from mailer_lib.commands.errors import CommandError
    from mailer_lib.database.engine import read, write
    from mailer_lib.fleet import host_keys, servers, ssh

    with open_context() as context:
        with read(context.engine) as connection:
            server = servers.get(connection, name)
        key = ssh.read_host_key(server)
        seen = host_keys.fingerprint(key)
        say = console().print
        say(f"{server.host} port {server.ssh_port} shows {key.split()[0]} {seen}")
        if key == server.host_key:
            say(f"{name}: that key is pinned already")
            return
        if server.host_key is not None:
            say(f"pinned is another: {host_keys.fingerprint(server.host_key)}. Was the host installed anew?")
        if fingerprint is not None and fingerprint != seen:
            raise CommandError(f"that isn't {fingerprint}: it may be another machine, and nothing is pinned")
        if fingerprint is None and not typer.confirm("Is that the fingerprint on the host's console?"):
            raise CommandError("nothing is pinned")
        with write(context.engine) as connection:
            servers.pin(connection, name, key, actor=context.actor)
    say(f"{name}: pinned")


@app.command()
def key() -> None:
    """The public half of the key that logs in to dispatch servers: a line for authorized_keys."""
    from mailer_lib.fleet import login_key
    from mailer_lib.settings import load_settings

    console().print(login_key.public_line(load_settings()), soft_wrap=True)


app.command()(server_health.health)
for command in (
    server_life.provision,
    server_life.configure,
    server_keys.rotate_keys,
    server_life.verify,
    server_life.activate,
    server_life.drain,
    server_life.retire,
    server_life.state,
):
    app.command()(command)


app.command("sources")(server_source.list_sources)
app.command("add-source")(server_source.add_source)
app.command("remove-source")(server_source.remove_source)


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
