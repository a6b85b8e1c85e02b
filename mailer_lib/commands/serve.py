"""``mailfleet serve``: answer the links in messages."""

from typing import Annotated

import typer

from mailer_lib.commands.context import console, open_context

app = typer.Typer(help="Answer unsubscribe, click, open and preview links.")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; MAILFLEET_SERVE_HOST by default.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="MAILFLEET_SERVE_PORT by default; 0: any free one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes.")] = 1,
) -> None:
    """Run until SIGTERM or Ctrl-C; requests in hand are finished. Put a proxy with TLS before it in production."""
    from mailer_lib.asgi_server import run

    with open_context() as context:
        settings = context.settings
        settings.identity(), settings.tokens()  # a missing key is a sentence here, not a crash of a worker
    run(
        "mailer_lib.web.app:app_from_environment",
        host or settings.serve_host,
        settings.serve_port if port is None else port,
        workers=workers,
        announce=lambda url: console().print(f"serving {url} for {settings.public_url}", soft_wrap=True),
    )
