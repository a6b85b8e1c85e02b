"""``mailfleet server provision|configure|verify|activate|drain|retire|state``: the way into service, and out of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from mailer_lib.commands.context import console, error_console, open_context
from mailer_lib.terms import FindingLevel, ServerState

if TYPE_CHECKING:
    from mailer_lib.fleet.playbooks import HostResult, PlaybookEvent
    from mailer_lib.fleet.server_checks import Check
    from mailer_lib.fleet.servers import DispatchServer

_STYLES = {FindingLevel.ERROR: "bold red", FindingLevel.WARNING: "yellow", FindingLevel.INFO: "dim"}

Name = Annotated[str, typer.Argument(help="Name of the dispatch server.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the audit log.")]
AdminUser = Annotated[str, typer.Option(help="Who logs in to install; may become root by sudo.")]
Check_ = Annotated[bool, typer.Option("--check", help="Say what would change, and change nothing.")]


def provision(
    names: Annotated[list[str], typer.Argument(help="Dispatch servers with the channel ssh; several go on at once.")],
    *,
    admin_user: AdminUser = "root",
    check: Check_ = False,
) -> None:
    """Make dispatch servers out of bare Debian 12 machines, or bring them up to date: Exim, firewall, agent.

    Safe to run again. A server on which agents run is refused when it would change their release.
    """
    from mailer_lib.fleet import provisioning

    with open_context() as context:
        results = provisioning.provision(
            context.engine,
            context.settings,
            names,
            actor=context.actor,
            admin_user=admin_user,
            on_event=show_event,
            check=check,
        )
    print_results(results)


def configure(
    names: Annotated[list[str], typer.Argument(help="Dispatch servers that were provisioned; several go on at once.")],
    *,
    admin_user: AdminUser = "root",
    check: Check_ = False,
) -> None:
    """Bring Exim's configuration up to date: limits by mailbox provider, return-path domains, source addresses.

    Validated first, and the one before is put back when Exim isn't well with it. A server in service goes on sending.
    """
    from mailer_lib.fleet.upkeep import Upkeep

    with open_context() as context:
        upkeep = Upkeep(context.engine, context.settings, context.actor, admin_user, show_event, check)
        results = upkeep.configure(names)
    print_results(results)


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


def drain(
    name: Name,
    *,
    reason: Reason = None,
    wait_s: Annotated[
        int, typer.Option(help="Seconds to wait for its agents, and for its queues, if it was provisioned.", min=0)
    ] = 0,
    admin_user: AdminUser = "root",
) -> None:
    """It takes no new lease and ends what it has. Then its MTA's queue empties, and it can be retired.

    With --wait-s a server that was provisioned is watched until nothing is left there; exit code 1 when something is.
    """
    from mailer_lib.dispatch import retiring
    from mailer_lib.fleet.upkeep import Upkeep

    with open_context() as context:
        server = retiring.begin_drain(context.engine, name, actor=context.actor, reason=reason)
        console().print(f"dispatch server {name}: draining")
        if wait_s:
            upkeep = Upkeep(context.engine, context.settings, context.actor, admin_user, show_event)
            print_results(upkeep.wait_drained([name], wait_s))
        left = retiring.look(context.engine, context.settings, server)
    waits = retiring.why_not_retire(left)
    console().print(waits or f"nothing is left on it: `mailfleet server retire {name}`")


def retire(
    name: Name,
    *,
    give_up_queue: Annotated[
        bool, typer.Option("--give-up-queue", help="Although its MTA still holds mail, or can't be asked.")
    ] = False,
    gone: Annotated[
        bool, typer.Option("--gone", help="Its machine doesn't exist any more: nothing is asked of it, or done there.")
    ] = False,
    admin_user: AdminUser = "root",
) -> None:
    """Take a drained server out of the fleet, once nothing of ours is left on it.

    One that was provisioned is stopped and closed, and job folders, keys and agent are removed there; Exim's logs stay.
    A rented machine is given back. Call it again after a failure.
    """
    from mailer_lib.commands.errors import CommandError
    from mailer_lib.dispatch import retiring
    from mailer_lib.dispatch.server_builder import FleetBuilder
    from mailer_lib.fleet.hosts import HostsError, source_of

    def say(line: str) -> None:
        console().print(line, markup=False)

    with open_context() as context:
        try:
            given_back = retiring.retire(
                context.engine,
                context.settings,
                name,
                actor=context.actor,
                builder=FleetBuilder(context.engine, context.settings, context.actor, say, admin_user),
                hosts=source_of(context.settings),
                give_up_queue=give_up_queue,
                gone=gone,
            )
        except HostsError as error:
            raise CommandError(f"{name} is retired, but its machine isn't given back: {error}") from None
    back = ", and its machine is given back" if given_back else ""
    console().print(
        f"dispatch server {name}: retired{back}. Its name stays in SPF until you print and publish it again"
    )


def state(
    name: Name, state: Annotated[ServerState, typer.Argument(help="The new state.")], *, reason: Reason = None
) -> None:
    """Set a state by hand. What isn't allowed is refused, with what to do instead."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import servers

    with open_context() as context, write(context.engine) as connection:
        servers.set_state(connection, name, state, actor=context.actor, reason=reason)
    console().print(f"dispatch server {name}: {state}")


def show_event(event: "PlaybookEvent") -> None:
    """What changed on a host, or failed there."""
    from mailer_lib.terms import HostOutcome

    if event.outcome is not HostOutcome.OK:
        console().print(f"{event.host}: {event.task}: {event.text or event.outcome}", markup=False)


def print_results(results: "Mapping[str, HostResult]") -> None:
    """Each host's; exit code 1 when one failed."""
    from mailer_lib.terms import HostOutcome

    for result in results.values():
        failed = result.outcome is HostOutcome.FAILED
        where = f" ({result.task})" if result.task else ""
        console().print(f"{result.host}: {'failed' if failed else 'well'}: {result.sentence}{where}", markup=False)
    if any(result.outcome is HostOutcome.FAILED for result in results.values()):
        raise typer.Exit(1)


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
