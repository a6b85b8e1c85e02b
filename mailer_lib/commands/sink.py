"""``mailfleet sink``: the development mail sink, what it took, and whether that is as receivers want it."""

from pathlib import Path
from typing import Annotated

import typer

from mailer_lib.commands.context import console, error_console, progress
from mailer_lib.settings import load_settings

app = typer.Typer(help="The development mail sink.")

Root = Annotated[Path | None, typer.Option(help="Folder of the sinks; sink below MAILFLEET_HOME by default.")]


def _root(given: Path | None) -> Path:
    return given.absolute() if given is not None else load_settings().home / "sink"


@app.command()
def serve(
    *,
    name: Annotated[str, typer.Option(help="Folder below the root: Maildir, mainlog, rules.yaml.")] = "sink",
    listen: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT, more than once if you like; port 0 takes a free one.")
    ] = None,
    listen_tls: Annotated[list[str] | None, typer.Option(help="HOST:PORT with TLS from the first byte.")] = None,
    root: Root = None,
    starttls: Annotated[bool, typer.Option(help="Offer STARTTLS with a self-signed certificate.")] = False,
    require_starttls: Annotated[bool, typer.Option(help="Take no mail without it.")] = False,
    auth_file: Annotated[Path | None, typer.Option(help="Require AUTH; lines of user:password.")] = None,
    fsync: Annotated[bool, typer.Option(help="Make messages durable before the 250.")] = True,
    log_max_bytes: Annotated[int | None, typer.Option(min=1000, help="Rotate mainlog at this size.")] = None,
) -> None:
    """Take mail and deliver it to nobody, until SIGTERM or Ctrl-C. SIGHUP rotates the log."""
    from mailer_lib.sink import server

    settings = load_settings()
    addresses = listen or ([] if listen_tls else [f"{settings.sink_host}:{settings.sink_port}"])
    server.run(
        server.SinkOptions(
            root=_root(root),
            name=name,
            listen=tuple(map(server.parse_address, addresses)),
            listen_tls=tuple(map(server.parse_address, listen_tls or [])),
            starttls=starttls,
            require_starttls=require_starttls,
            auth=server.read_auth(auth_file) if auth_file else (),
            fsync=fsync,
            log_max_bytes=log_max_bytes,
        )
    )


@app.command("list")
def list_messages(
    search: Annotated[str, typer.Argument(help="Words that must be in sender, recipient or subject.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    root: Root = None,
) -> None:
    """The newest messages: id, time, size, recipient, subject."""
    from rich.markup import escape
    from rich.table import Table

    from mailer_lib.sink.store import SinkStore

    store = SinkStore(_root(root))
    store.refresh()
    words = search.lower().split()
    found = [entry for entry in reversed(store.entries()) if entry.matches(words)]
    table = Table(box=None, pad_edge=False)
    for column in ("id", "time", "bytes", "to", "subject"):
        table.add_column(column, justify="right" if column == "bytes" else "left", no_wrap=column != "subject")
    for entry in found[:limit]:
        table.add_row(
            entry.id, f"{entry.time:%m-%d %H:%M:%S}", f"{entry.size:,}", escape(entry.recipient), escape(entry.subject)
        )
    console().print(table)
    error_console().print(
        f"{min(limit, len(found)):,} of {len(found):,} messages in {', '.join(store.sinks()) or 'no sink'}"
    )


@app.command()
def show(
    message: Annotated[str, typer.Argument(help="Id, as `sink list` prints it.")],
    raw: Annotated[bool, typer.Option(help="The whole source, byte by byte.")] = False,
    root: Root = None,
) -> None:
    """One message: headers and text part."""
    import sys

    from mailer_lib.sink.content import read_content
    from mailer_lib.sink.store import SinkStore

    entry = SinkStore(_root(root)).get(message)
    data = entry.path.read_bytes()
    if raw:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    content = read_content(data)
    for name, value in content.headers:
        console().print(f"{name}: {value}", markup=False, soft_wrap=True)
    console().print("", content.text or "(no text part)", sep="\n", markup=False, soft_wrap=True)


@app.command()
def count(root: Root = None) -> None:
    """How many messages each sink holds, from the Maildirs alone; the last line is the total."""
    from mailer_lib.sink.store import SinkStore

    counts = SinkStore(_root(root)).count()
    for name, number in counts.items():
        console().print(f"{name} {number}")
    console().print(f"total {sum(counts.values())}")


@app.command()
def verify(
    sample: Annotated[int | None, typer.Option(min=1, help="Check signatures of this many; all by default.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the DKIM key; home/keys/dkim by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Choose the same sample again.")] = None,
    root: Root = None,
) -> None:
    """Check DKIM, headers and doubles. Exit code 1 when anything is wrong."""
    from mailer_lib.sink.store import SinkStore
    from mailer_lib.sink.verify import PublicKeys
    from mailer_lib.sink.verify import verify as verify_entries

    keys = PublicKeys(load_settings().keys_dir / "dkim", key)
    store = SinkStore(_root(root))
    with progress("read", unit="messages") as report_read:
        store.refresh(report_read)
        report_read(len(store.entries()))
    with progress("verify", unit="messages") as report_verified:
        report = verify_entries(store.entries(), keys, sample=sample, seed=seed, progress=report_verified)
    say = console().print
    say(f"messages={report.messages} duplicates={sum(n - 1 for n in report.doubles.values())} checked={report.sampled} "
        f"dkim-valid={report.valid_signatures} without-message-id={report.without_message_id}")  # fmt: skip
    for message_id, copies in list(report.doubles.items())[:10]:
        say(f"{copies} copies of Message-ID {message_id}", markup=False, soft_wrap=True)
    for sentence, messages in report.problems.most_common():
        say(f"{messages} of {report.sampled}: {sentence}", markup=False, soft_wrap=True)
    if not report.good:
        raise typer.Exit(1)


@app.command()
def inbox(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8026,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    root: Root = None,
) -> None:
    """A web page on what the sinks took: search, read, check, unsubscribe."""
    import os

    from mailer_lib.asgi_server import run
    from mailer_lib.sink.inbox import KEYS_VARIABLE, ROOT_VARIABLE

    os.environ[ROOT_VARIABLE] = str(_root(root))  # the app is made in a worker process
    os.environ[KEYS_VARIABLE] = str(load_settings().keys_dir / "dkim")
    run(
        "mailer_lib.sink.inbox:app_from_environment",
        host,
        port,
        announce=lambda url: console().print(f"inbox {url}", soft_wrap=True),
    )
