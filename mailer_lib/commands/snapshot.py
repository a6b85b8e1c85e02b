"""``mailfleet snapshot``: the frozen recipients of a send."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailer_lib.commands.context import Processes, console, open_context, parse_send_ref, progress
from mailer_lib.commands.errors import FAILED, WRONG_USAGE, CommandError
from mailer_lib.terms import SendMode, UnknownPolicy

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mailer_lib.audience.difference import Side
    from mailer_lib.audience.manifest import Manifest
    from mailer_lib.audience.published import PublishedSnapshot
    from mailer_lib.commands.context import CommandContext

app = typer.Typer(help="Frozen recipients: build, show, verify, ask, expire.", no_args_is_help=True)

Send = Annotated[str, typer.Argument(metavar="SEND", help="campaign#edition, like spring-sale#1")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Phase = Annotated[int | None, typer.Option(help="1 for the first, one more for each top-up; the newest by default.")]


@app.command()
def build(
    send: Send,
    mode: Annotated[
        SendMode, typer.Option(help="dry-run freezes under an edition of its own, test takes the seed list.")
    ] = SendMode.SEND,
    unknown: Annotated[
        UnknownPolicy, typer.Option(help="A top-up: leave who may have got it, or take them in again.")
    ] = UnknownPolicy.LEAVE,
    processes: Processes = None,
) -> None:
    """Freeze who gets a send today, and stop there. Killed, run it again: it goes on with the range it was at.

    `mailfleet send start` does this on its way. It freezes anew what nobody began to send.
    """
    from mailer_lib.dispatch import sends, steps

    ref = parse_send_ref(send)
    with open_context() as context:
        engine, settings, claim = context.engine, context.settings, sends.process_claim()
        opened = steps.open_step(
            engine,
            settings,
            campaign=ref.campaign,
            edition=ref.edition,
            mode=mode,
            launched_by=context.actor,
            claim=claim,
        )
        send_id = opened["send_id"]
        try:
            plan = steps.plan_recipients(engine, settings, send_id, claim)
            with progress("ranges", plan["ranges"], "ranges") as report:
                steps.build_all_recipients(
                    engine, settings, send_id, claim, plan["plan"], processes=processes, progress=report
                )
            steps.publish_recipients(engine, settings, send_id, claim, unknown_policy=unknown)
        finally:
            sends.release(engine, send_id, claim)
        _show(_find(context, opened["send"], None))


@app.command()
def show(send: Send, phase: Phase = None) -> None:
    """What was frozen: when, by which criteria, how many, and why others were left out."""
    with open_context() as context:
        _show(_find(context, send, phase))


@app.command()
def verify(send: Send, phase: Phase = None) -> None:
    """Check files, checksums and rows, and that nobody is in it twice. Exit code 1 when something is wrong."""
    from mailer_lib.audience.files import sha256_of
    from mailer_lib.audience.manifest import MANIFEST_FILE
    from mailer_lib.audience.verify import verify as problems_of

    with open_context() as context:
        found = _find(context, send, phase)
    problems = problems_of(found.folder)
    path = found.folder / MANIFEST_FILE
    if path.exists() and sha256_of(path) != found.manifest_sha256:
        problems.append(f"{MANIFEST_FILE}: isn't the one that was published; the database knows another checksum")
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        typer.echo(f"{found.folder}: {len(problems)} problems", err=True)
        raise typer.Exit(FAILED)
    console().print(f"{found.send} phase {found.phase}: sound, {found.frozen:,} frozen and {found.excluded:,} excluded")


@app.command()
def why(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="In any spelling.")],
    *,
    send: Annotated[str, typer.Option(metavar="SEND", help="campaign#edition, like spring-sale#1")],
    phase: Annotated[int | None, typer.Option(help="Of a send that was topped up; all of them by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Why one person got a send, or not: where they stand, what became of it, and which rules they match.

    The rules are judged on the contact as it is now; the answer says when it has changed since.
    """
    from mailer_lib.commands.snapshot_text import why_lines
    from mailer_lib.dispatch.why import why as ask

    ref = parse_send_ref(send)
    with open_context() as context:
        found = ask(
            context.engine,
            context.settings,
            address,
            campaign=ref.campaign,
            edition=ref.edition,
            phase=phase,
            actor=context.actor,
        )
    if as_json:
        _print_json(found)
        return
    for line in why_lines(found):
        console().print(line)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="campaign#edition, or campaign#edition@phase.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Likewise, of the same campaign or another.")],
    *,
    people: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A row for each person, to a .csv or .parquet; no addresses.")
    ] = None,
    addresses: Annotated[bool, typer.Option("--addresses", help="In the file, as the contacts have them now.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who is in one frozen audience and not in the other, and why. Without a phase, all phases of a send together."""
    from mailer_lib.audience.difference import compare
    from mailer_lib.commands.snapshot_text import difference_lines
    from mailer_lib.database import audit
    from mailer_lib.database.engine import read, write

    if addresses and people is None:
        raise CommandError("--addresses are written to a file: say --people FILE.csv too", WRONG_USAGE)
    with open_context() as context:
        with read(context.engine) as connection:
            sides = [_side(context, connection, ref) for ref in (first, second)]
            found = compare(connection, *sides, people=people, addresses=addresses)
        if people is not None:
            detail = {"with": found.second, "rows": found.added.people + found.removed.people, "addresses": addresses}
            with write(context.engine) as connection:
                audit.record(connection, context.actor, "snapshot.diff", f"send:{found.first}", detail)
    if as_json:
        _print_json(found)
        return
    for line in difference_lines(found):
        console().print(line)
    if people is not None:
        console().print(f"people: {people}", markup=False, soft_wrap=True)


@app.command()
def profile(send: Send, phase: Phase = None, *, as_json: AsJson = False) -> None:
    """What the frozen audience looks like: how each column's values spread, and how many people lack it."""
    from mailer_lib.audience.profile import profile as ask
    from mailer_lib.commands.snapshot_text import profile_lines

    with open_context() as context:
        found = ask(_find(context, send, phase))
    if as_json:
        _print_json(found)
        return
    for line in profile_lines(found):
        console().print(line)


@app.command()
def expire(
    older_than: Annotated[str, typer.Option(metavar="DAYS", help="Published longer ago than this: 400d.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it you are shown what would be done.")] = False,
) -> None:
    """Blank everybody in old snapshots whose send is over. Keys and ledgers stay, so books still balance."""
    from mailer_lib.dispatch import erasure

    days = older_than.strip().removesuffix("d")
    if not days.isdecimal() or not 1 <= int(days) <= 36_500:
        raise CommandError(f"--older-than {older_than!r}: write a number of days, like 400d", WRONG_USAGE)
    age = timedelta(days=int(days))
    with open_context() as context:
        done = erasure.expire(context.engine, context.settings, older_than=age, actor=context.actor, dry_run=not yes)
    output = console()
    for snapshot, amended in done.expired:
        what = f"{amended.rows:,} rows blanked" if yes else "would be blanked"
        output.print(f"{snapshot}, published {snapshot.published_at:%Y-%m-%d}: {what}", markup=False)
    for snapshot in done.running:
        output.print(
            f"{snapshot}, published {snapshot.published_at:%Y-%m-%d}: stays, its send isn't over", markup=False
        )
    if not done.expired:
        output.print("nothing to blank")
    elif not yes:
        output.print("nothing was changed; say --yes to do it")
    for problem in done.problems:
        typer.echo(problem, err=True)
    if done.problems:
        raise typer.Exit(FAILED)


def _side(context: "CommandContext", connection: "Connection", text: str) -> "Side":
    """``campaign#edition`` or ``campaign#edition@phase``."""
    from mailer_lib.audience.difference import Side
    from mailer_lib.audience.published import find_published, published

    name, at, phase = text.partition("@")
    ref = parse_send_ref(name)
    if at and not phase.isdecimal():
        raise CommandError(f"{text!r}: write the phase as a number, like {name}@1", WRONG_USAGE)
    every = published(connection, context.settings, ref.campaign, ref.edition)
    if not at and every:
        return Side.of(every, one_phase=False)
    wanted = int(phase) if at else None
    return Side.of([find_published(connection, context.settings, ref.campaign, ref.edition, wanted)], one_phase=True)


def _print_json(answer: Any) -> None:
    import json
    from dataclasses import asdict

    def plain(value: object) -> str:
        if isinstance(value, bytes):
            return value.hex()
        assert isinstance(value, datetime)
        return value.isoformat()

    typer.echo(json.dumps(asdict(answer), default=plain, ensure_ascii=False, indent=1))


def _find(context: "CommandContext", send: str, phase: int | None) -> "PublishedSnapshot":
    from mailer_lib.audience.published import find_published
    from mailer_lib.database.engine import read

    ref = parse_send_ref(send)
    with read(context.engine) as connection:
        return find_published(connection, context.settings, ref.campaign, ref.edition, phase)


def _show(found: "PublishedSnapshot") -> None:
    from mailer_lib.audience.manifest import load

    manifest, output = load(found.folder), console()
    for line in _lines(found, manifest):
        output.print(line, markup=False)


def _lines(found: "PublishedSnapshot", manifest: "Manifest") -> list[str]:
    counts, criteria = manifest.counts, manifest.criteria
    source = f'{criteria.source} "{criteria.name}"' if criteria.name else criteria.source
    rows = [shard.rows for shard in manifest.shards]
    spread = f"{min(rows):,} to {max(rows):,} rows each" if rows else "none has rows"
    lines = [
        f"{found.send} phase {found.phase}, published {manifest.published_at:%Y-%m-%d %H:%M:%S} UTC",
        f"folder    {found.folder}",
        f"{source}, sha256 {criteria.sha256[:12]}",
        f"as of     {manifest.as_of:%Y-%m-%d %H:%M:%S} UTC, contacts up to id {manifest.max_contact_id:,}",
        f"read      {len(manifest.ranges)} ranges in {sum(each.read_s for each in manifest.ranges):.1f} s",
        f"shards    {len(rows)}, {spread}",
        f"matching  {counts.matching:>10,}",
        f"frozen    {counts.frozen:>10,}",
    ]
    lines += [f"          {people:>10,}  {provider}" for provider, people in counts.by_provider.items()]
    if len(counts.by_variant) > 1:
        split = ", ".join(f"{number}: {people:,}" for number, people in enumerate(counts.by_variant))
        lines.append(f"variants  {split}" + (f", rest: {counts.rest:,}" if manifest.test_slice else ""))
    if manifest.blanked:
        lines.append(
            f"blanked   {manifest.blanked:>10,}  {_amendments(manifest)}; the counts are those of the publication"
        )
    lines.append(
        f"excluded  {counts.excluded:>10,}" + ("  a person may have several reasons:" if counts.excluded else "")
    )
    return lines + [f"          {people:>10,}  {reason}" for reason, people in counts.by_reason.items()]


def _amendments(manifest: "Manifest") -> str:
    """Which amendments there were, and the day of the last one of each kind."""
    last = {each.why: each.at for each in manifest.amendments}
    return ", ".join(f"{why} on {at:%Y-%m-%d}" for why, at in last.items())
