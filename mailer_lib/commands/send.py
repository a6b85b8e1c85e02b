"""``mailfleet send``: launch, approve, watch, pause, stop; and what became of it."""

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markdown import Markdown
from rich.table import Table

from mailer_lib.commands.context import CommandContext, Processes, console, error_console, open_context, progress
from mailer_lib.commands.errors import FAILED, CommandError
from mailer_lib.terms import Outcome, SendMode, UnknownPolicy

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from mailer_lib.dispatch.summary import ApprovalSummary
    from mailer_lib.dispatch.watch import Glance
    from mailer_lib.settings import Settings

app = typer.Typer(help="Launch, approve, watch, pause and stop sends.")

Ref = Annotated[str, typer.Argument(metavar="SEND", help="campaign#edition, like spring-sale#1")]
LOOK_EVERY_S = 1.0
PLAIN_EVERY_S = 5.0


@app.command()
def start(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign.")],
    *,
    edition: Annotated[str, typer.Option(help="1 for a one-off; another edition is another send.")] = "1",
    mode: Annotated[SendMode, typer.Option(help="dry-run counts, test sends to the seed list.")] = SendMode.SEND,
    yes: Annotated[bool, typer.Option("--yes", help="Approve it yourself without being asked.")] = False,
    no_approval: Annotated[bool, typer.Option("--no-approval", help="Ask nobody; noted as such.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Although another execution, now silent, has it.")
    ] = False,
    unknown: Annotated[
        UnknownPolicy, typer.Option(help="Triggered again: leave who may have got it, or resend.")
    ] = UnknownPolicy.LEAVE,
    processes: Processes = None,
) -> None:
    """Send a campaign, the whole road in this process: freeze, check, ask, send, balance the books.

    Killed or interrupted, start it again: it goes on where it was, and sends nothing twice. A send that is finished is
    topped up with who joined since.
    """
    with open_context() as context:
        report = _run(
            context,
            campaign,
            edition,
            mode,
            yes=yes,
            no_approval=no_approval,
            take_over=take_over,
            unknown=unknown,
            processes=processes,
        )
    _show_report(report)


@app.command("resend-unknown")
def resend_unknown(
    ref: Ref,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask: some of them will get it twice.")] = False,
) -> None:
    """Top a finished send up, with those whose outcome is unknown. Some of them may get it twice."""
    from mailer_lib.dispatch.sends import parse_ref
    from mailer_lib.dispatch.unknown import unknown_rows

    campaign, edition = parse_ref(ref)
    with open_context() as context:
        count = len(unknown_rows(context.engine, context.settings, _find(context, ref).id))
        if not count:
            raise CommandError(f"{ref} has no row whose outcome is unknown")
        if not yes:
            _confirm(f"{count} people may have got {ref} already. Send it to them (again)?")
        report = _run(
            context,
            campaign,
            edition,
            SendMode.SEND,
            yes=yes,
            no_approval=False,
            take_over=False,
            unknown=UnknownPolicy.RESEND,
        )
    _show_report(report)


def _run(
    context: CommandContext,
    campaign: str,
    edition: str,
    mode: SendMode,
    *,
    yes: bool,
    no_approval: bool,
    take_over: bool,
    unknown: UnknownPolicy,
    processes: int | None = None,
) -> dict[str, Any]:
    from mailer_lib.dispatch.campaign_run import Answer, Hooks, Trigger, run_send
    from mailer_lib.dispatch.sends import process_claim
    from mailer_lib.dispatch.slot_rules import SlotProgress

    say = error_console().print
    lock = threading.Lock()  # slots report from their threads

    def approve(summary: "ApprovalSummary") -> Answer:
        error_console().print(Markdown(summary["markdown"]))
        if mode is SendMode.DRY_RUN or no_approval:
            return Answer(approved=True)
        if yes:
            return Answer(approved=True, by=context.actor)
        return Answer(approved=_ask(f"Send {summary['send']} to {summary['left']:,} people?"), by=context.actor)

    def hear(slot: SlotProgress) -> None:
        with lock:
            say(str(slot))

    def judge(figures: str) -> None:
        error_console().print(Markdown(figures))

    trigger = Trigger(
        campaign=campaign,
        edition=edition,
        mode=mode,
        launched_by=context.actor,
        claim=process_claim(),
        take_over=take_over,
        unknown_policy=unknown,
        processes=processes,
    )
    with progress("recipients", unit="ranges") as bar:
        hooks = Hooks(step=say, ranges=bar, progress=hear, approve=approve, judge=judge)
        return run_send(context.engine, context.settings, trigger, hooks)


@app.command()
def status(ref: Ref) -> None:
    """Where a send stands, now."""
    with open_context() as context:
        console().print(_view(_glance(context.engine, context.settings, ref)))


@app.command("list")
def list_(limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20) -> None:
    """The newest sends."""
    from mailer_lib.database.engine import read
    from mailer_lib.dispatch.sends import list_sends

    table = Table("send", "mode", "state", "control", "launched by", "started", "reason")
    with open_context() as context, read(context.engine) as connection:
        for send in list_sends(connection, limit):
            started = f"{send.started_at:%Y-%m-%d %H:%M}" if send.started_at else ""
            table.add_row(
                send.ref, send.mode, send.state, send.control, send.launched_by, started, (send.reason or "")[:80]
            )
    console().print(table)


@app.command()
def watch(ref: Ref) -> None:
    """Follow a send until it is over: rates, time left, what each slot waits for."""
    from mailer_lib.dispatch.states import FINAL

    with open_context() as context:
        output = console()
        if output.is_terminal:
            with Live(console=output, auto_refresh=False) as live:
                while True:
                    seen = _glance(context.engine, context.settings, ref)
                    live.update(_view(seen), refresh=True)
                    if seen.send.state in FINAL:
                        return
                    time.sleep(LOOK_EVERY_S)
        while True:
            seen = _glance(context.engine, context.settings, ref)
            output.print(_line(seen))
            if seen.send.state in FINAL:
                return
            time.sleep(PLAIN_EVERY_S)


@app.command()
def books(ref: Ref, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """What became of every frozen row, counted from the ledgers. Exit code 1 when something doesn't agree."""
    from mailer_lib.dispatch.books import read_books

    with open_context() as context:
        found, problems = read_books(context.engine, context.settings, _find(context, ref).id)
    if as_json:
        typer.echo(json.dumps({**found.as_dict(), "problems": problems}))
    else:
        console().print(found.line(), soft_wrap=True)
        for problem in problems:
            error_console().print(problem)
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def report(ref: Ref) -> None:
    """State, books, rates and reasons of a send. Exit code 1 when it didn't end well, or not yet."""
    from mailer_lib.dispatch.summary import make_report

    with open_context() as context:
        made = make_report(context.engine, context.settings, _find(context, ref))
    _show_report(made)


@app.command()
def pause(ref: Ref) -> None:
    """Hand nothing more over until `resume`; in force within two seconds."""
    from mailer_lib.dispatch import control

    with open_context() as context:
        send = control.pause(context.engine, ref, context.actor)
    console().print(f"{send.ref}: pausing; `mailfleet send resume {send.ref}` goes on")


@app.command()
def resume(ref: Ref) -> None:
    """Go on with a paused send, with the suppressions of now."""
    from mailer_lib.dispatch import control

    with open_context() as context:
        send = control.resume(context.engine, ref, context.actor)
    console().print(f"{send.ref}: going on")


@app.command()
def stop(ref: Ref) -> None:
    """End a send: what is in flight is finished, the rest is cancelled. Triggered again, the rest is sent."""
    from mailer_lib.dispatch import control

    with open_context() as context:
        send = control.stop(context.engine, ref, context.actor)
    console().print(f"{send.ref}: stopping")


@app.command()
def decide(
    ref: Ref,
    *,
    variant: Annotated[str | None, typer.Option(help="What the rest gets.  [shows the figures at hand]")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="The rest gets nothing: the send ends.")] = False,
) -> None:
    """Decide which variant the rest gets after the test slice; without an option, show what is known. It stands."""
    from mailer_lib.dispatch import control, decision

    if stop and variant is not None:
        raise CommandError("give either --variant or --stop")
    with open_context() as context:
        if stop:
            console().print(f"{control.stop(context.engine, ref, context.actor).ref}: stopping")
        elif variant is not None:
            send = decision.decide(context.engine, context.settings, ref, variant, context.actor)
            console().print(f"{send.ref}: the rest gets variant {variant}, decided by {send.decided_by}")
        else:
            made = decision.question(context.engine, context.settings, _find(context, ref))
            console().print(Markdown(made) if console().is_terminal else made, soft_wrap=True, markup=False)


@app.command()
def pace(
    ref: Ref,
    per_s: Annotated[float, typer.Argument(help="Messages a second of the whole send; 0: no limit.", min=0)],
) -> None:
    """Change how fast a running send goes."""
    from mailer_lib.dispatch import control

    with open_context() as context:
        send = control.set_pace(context.engine, ref, per_s or None, context.actor)
    limit = f"at most {send.pace_per_s:g} messages a second" if send.pace_per_s else "as fast as the limits allow"
    console().print(f"{send.ref}: {limit}")


@app.command()
def unknown(ref: Ref) -> None:
    """List the rows whose outcome nobody knows: contact, message key, server, time."""
    from mailer_lib.dispatch.unknown import unknown_rows

    with open_context() as context:
        rows = unknown_rows(context.engine, context.settings, _find(context, ref).id)
    table = Table("contact", "message key", "provider", "server", "time (UTC)", "why")
    for row in rows:
        table.add_row(
            str(row.contact_id), row.message_key, row.provider, row.server, f"{row.at:%Y-%m-%d %H:%M:%S}", row.why
        )
    console().print(table)
    console().print(
        f"{len(rows)} unknown. `mailfleet send resend-unknown {ref}` sends to them (some may get it twice)."
    )


@app.command()
def recall(
    ref: Ref,
    *,
    due: Annotated[
        bool, typer.Option("--due", help="Only what must not be delivered: to who left since, all when it expired.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Take back what the MTAs hold of a send that is over and haven't delivered; booked as cancelled."""
    from mailer_lib.dispatch.recall_send import recall_send

    if not due and not yes:
        _confirm(f"Take back everything of {ref} that isn't delivered yet?")
    with open_context() as context:
        found = recall_send(context.engine, context.settings, ref, context.actor, due_only=due)
    for one in found:
        console().print(f"{one.slot}: {one.trouble or f'{one.messages} messages taken back'}", markup=False)
    if any(one.trouble for one in found):
        raise CommandError("not every queue could be looked at")


@app.command()
def stranded(
    ref: Ref,
    *,
    call_unknown: Annotated[
        bool, typer.Option("--call-unknown", help="Make them unknown, for `send resend-unknown`: some get it twice.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """List what lost servers' MTAs had taken and perhaps not delivered. Left alone it stays injected."""
    from mailer_lib.dispatch import stranded as stranding

    with open_context() as context:
        rows = stranding.stranded_rows(context.engine, context.settings, ref)
        table = Table("contact", "message key", "provider", "server", "queue id", "taken (UTC)", "why")
        for row in rows:
            at = f"{row.injected_at:%Y-%m-%d %H:%M:%S}"
            table.add_row(str(row.contact_id), row.message_key, row.provider, row.server, row.queue_id, at, row.why)
        console().print(table)
        console().print(f"{len(rows)} stranded")
        if call_unknown and rows:
            if not yes:
                _confirm(f"Call {len(rows)} rows of {ref} unknown? Their server may yet deliver them.")
            changed = stranding.call_unknown(context.engine, context.settings, ref, context.actor)
            console().print(f"{changed} are unknown now: `mailfleet send resend-unknown {ref}` sends to them again")


@app.command("lose-server")
def lose_server(
    server: Annotated[str, typer.Argument(help="Name of a dispatch server that is gone for good.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Give up a dispatch server in all sends: rows it was not granted go on elsewhere, the rest becomes unknown."""
    from mailer_lib.dispatch.loss import lose_server as lose

    if not yes:
        _confirm(f"Fence {server}, and call what it didn't report unknown?")
    with open_context() as context:
        losses = lose(context.engine, context.settings, server, context.actor)
    console().print(f"dispatch server {server}: fenced")
    for loss in losses:
        console().print(f"{loss.send}: {loss.given_back} rows go on elsewhere, {loss.unknown} are unknown")


# --- shared -----------------------------------------------------------------------------------------------------------


def _find(context: CommandContext, ref: str) -> Any:
    from mailer_lib.database.engine import read
    from mailer_lib.dispatch.sends import find_send

    with read(context.engine) as connection:
        return find_send(connection, ref)


def _glance(engine: "Engine", settings: "Settings", ref: str) -> "Glance":
    from mailer_lib.dispatch.watch import glance

    return glance(engine, settings, ref)


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError(f"{question} There is no terminal to ask at: add --yes to approve, or --no-approval")
    return typer.confirm(question, err=True)


def _confirm(question: str) -> None:
    if not _ask(question):
        raise CommandError("nothing was done")


def _show_report(made: dict[str, Any]) -> None:
    output = console()
    if output.is_terminal:
        output.print(Markdown(made["markdown"]))
    else:
        output.print(made["markdown"], soft_wrap=True, markup=False)
    if not made["ok"]:
        raise CommandError(made["reason"] or f"{made['send']} is {made['state']}")


def _line(seen: "Glance") -> str:
    from mailer_lib.dispatch.summary import duration

    done = " ".join(f"{outcome}={seen.outcomes.get(outcome, 0)}" for outcome in Outcome)
    eta = f", {duration(seen.eta_s)} left" if seen.eta_s is not None else ""
    slowest = next((f", {p.provider} last ({p.bound_by})" for p in seen.by_provider if p.eta_s is not None), "")
    waits = "; ".join(f"{s.server}.{s.slot} {s.state}: {s.reason}" for s in seen.slots if s.reason)
    to_go = f"{seen.left} of {seen.frozen} to go, {seen.per_s:.0f}/s{eta}{slowest}"
    return f"{seen.send.ref} {seen.send.state}: {to_go} {done} {waits}"


def _view(seen: "Glance") -> Group:
    from mailer_lib.dispatch.summary import duration

    send = seen.send
    head = Table(show_header=False, box=None, pad_edge=False)
    control = f" ({send.control})" if send.control != "run" else ""
    head.add_row("send", f"{send.ref}, {send.mode}, phase {seen.phase}")
    head.add_row("state", f"{send.state}{control}" + (f": {send.reason}" if send.reason else ""))
    head.add_row("to go", f"{seen.left:,} of {seen.frozen:,}")
    head.add_row("rate", f"{seen.per_s:.1f}/s" + (f", {duration(seen.eta_s)} left" if seen.eta_s is not None else ""))
    counts = {outcome.value: seen.outcomes.get(outcome, 0) for outcome in Outcome}
    head.add_row("outcomes", ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none yet")
    head.add_row("deferrals", f"{seen.deferrals:,}")
    slots = Table("slot", "state", "rate", "in flight", "deferred", "waits for")
    for slot in seen.slots:
        alive = (slot.server_id, slot.slot) in seen.live
        slots.add_row(
            f"{slot.server}.{slot.slot}",
            slot.state if alive else f"{slot.state} (silent since {slot.at:%H:%M:%S})",
            f"{slot.per_s:.1f}/s",
            str(slot.in_flight),
            str(slot.deferred),
            slot.reason,
        )
    providers = Table("provider", "to go", "of", "done in", "bound by")
    for one in seen.by_provider:
        eta = duration(one.eta_s) if one.eta_s is not None else ""
        providers.add_row(one.provider, f"{one.left:,}", f"{one.frozen:,}", eta, one.bound_by)
    return Group(head, *(table for table in (providers, slots) if table.rows))
