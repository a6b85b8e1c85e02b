"""``mailfleet server verify | activate | drain | retire | state``: a dispatch server's way into service and out."""

from typing import TYPE_CHECKING, Annotated

import typer

from mailer_lib.commands.context import console, error_console, open_context
from mailer_lib.terms import FindingLevel, ServerState

if TYPE_CHECKING:
    from mailer_lib.fleet.server_checks import Check
    from mailer_lib.fleet.servers import DispatchServer

_STYLES = {FindingLevel.ERROR: "bold red", FindingLevel.WARNING: "yellow", FindingLevel.INFO: "dim"}

Name = Annotated[str, typer.Argument(help="Name of the dispatch server.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the audit log.")]


def verify(
    name: Name,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Address that its mail leaves from, as the world sees it (again for more).  [its own]"),
    ] = None,
    probe_host: Annotated[
        str | None, typer.Option(help="Mail host whose port 25 is tried from there.  [MAILFLEET_PROBE_HOST]")
    ] = None,
    seed_wait_s: Annotated[float, typer.Option(help="Seconds to wait for the test message.", min=0)] = 90.0,
) -> None:
    """Check whether it may send: its MTA, port 25, DNS, TLS, clock, disk, blocklists, and a test message end to end.

    What is missing in DNS is printed as the records to publish. Exit code 1 when something forbids sending.
    """
    from mailer_lib.dispatch.server_verification import Options, verify_server
    from mailer_lib.fleet.names import check_address

    options = Options(tuple(map(check_address, source or ())), probe_host, seed_wait_s)
    with open_context() as context:
        done = verify_server(context.engine, context.settings, name, actor=context.actor, options=options)
    print_check(done.server, done.check)
    say = console().print
    if not done.passed:
        errors = "an error forbids" if done.check.errors == 1 else f"{done.check.errors} errors forbid"
        say(f"{name} is {done.server.state}: {errors} sending", style="bold")
        raise typer.Exit(1)
    hint = f"; `mailfleet server activate {name}` takes it into service" if done.server.state == "standby" else ""
    say(f"{name} is verified, and {done.server.state}{hint}", style="bold")


def activate(
    name: Name,
    *,
    warmed: Annotated[
        bool | None,
        typer.Option("--warmed/--warm-up", help="Its addresses are known to mailbox providers, or are new."),
    ] = None,
    reason: Reason = None,
) -> None:
    """Take a server into service: warming, or active when its ramp is through.

    A server behind SSH must be verified, and warms up unless you say that it is warmed. A local one becomes active.
    """
    from mailer_lib.database.engine import now, write
    from mailer_lib.fleet import servers, states, warmup

    with open_context() as context, write(context.engine) as connection:
        server = servers.get(connection, name)
        ramp, _ = warmup.ramp_of_server(connection, name)
        through = warmup.is_through(ramp, server.warming_from, now())
        after = states.service_state(server.channel, ramp_is_through=through, warmed=warmed)
        servers.set_state(connection, name, after, actor=context.actor, reason=reason)
    if after is not ServerState.WARMING:
        more = ""
    elif server.state is after:
        more = " still (--warmed ends it)"
    else:
        more = f", {ramp[0]:,} messages on its first day"
    console().print(f"dispatch server {name}: {after}{more}")


def drain(name: Name, *, reason: Reason = None) -> None:
    """It takes no new lease and ends what it has. Then its MTA's queue empties, and it can be retired."""
    from mailer_lib.database.engine import write
    from mailer_lib.dispatch import retiring
    from mailer_lib.fleet import servers

    with open_context() as context:
        with write(context.engine) as connection:
            servers.set_state(connection, name, ServerState.DRAINING, actor=context.actor, reason=reason)
            server = servers.get(connection, name)
        left = retiring.look(context.engine, context.settings, server)
    console().print(f"dispatch server {name}: draining")
    waits = retiring.why_not_retire(left)
    console().print(waits or f"nothing is left on it: `mailfleet server retire {name}`")


def retire(
    name: Name,
    *,
    give_up_queue: Annotated[
        bool, typer.Option("--give-up-queue", help="Although its MTA still holds mail, or can't be asked.")
    ] = False,
) -> None:
    """Take a drained server out of the fleet, once nothing of ours is left on it."""
    from mailer_lib.dispatch import retiring

    with open_context() as context:
        retiring.retire(context.engine, context.settings, name, actor=context.actor, give_up_queue=give_up_queue)
    console().print(f"dispatch server {name}: retired. Its name stays in SPF until you print and publish it again")


def state(
    name: Name, state: Annotated[ServerState, typer.Argument(help="The new state.")], *, reason: Reason = None
) -> None:
    """Set a state by hand. What isn't allowed is refused, with what to do instead."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import servers

    with open_context() as context, write(context.engine) as connection:
        servers.set_state(connection, name, state, actor=context.actor, reason=reason)
    console().print(f"dispatch server {name}: {state}")


def print_check(server: "DispatchServer", check: "Check | None") -> None:
    """The newest verification: findings, then the zone lines to publish."""
    from mailer_lib.fleet.server_checks import why_unverified

    say = console().print
    if check is None:
        say(f"never verified: `mailfleet server verify {server.name}`")
        return
    say(f"\nverification of {check.at:%Y-%m-%d %H:%M:%S} UTC by {check.actor}", style="bold")
    for finding in check.findings:
        say(f"  {finding.level:8}", style=_STYLES[finding.level], end="")
        say(finding.text, markup=False, soft_wrap=True)
    lines = list(dict.fromkeys(line for finding in check.findings for line in finding.publish))
    if lines:
        say("\nto publish in DNS:", style="bold")
        for line in lines:
            say(line, markup=False, soft_wrap=True)
    changed = why_unverified(server, check)
    if changed and not check.errors:
        error_console().print(changed, markup=False, soft_wrap=True)
