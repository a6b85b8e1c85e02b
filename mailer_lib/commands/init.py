"""``mailfleet init``: keys, folders, database."""

import typer

from mailer_lib.commands.context import console, set_up_logging
from mailer_lib.settings import load_settings, make_key

app = typer.Typer(help="Make keys, folders and database; safe to run again.")


@app.command()
def init() -> None:
    """Make what an installation needs, and leave alone what is there: a key is never overwritten."""
    from mailer_lib.database.engine import open_engine
    from mailer_lib.database.migrate import upgrade

    settings = load_settings()
    set_up_logging(settings)
    say = console().print
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)  # personal data
    for folder in (settings.storage, settings.jobs_dir):
        folder.mkdir(parents=True, exist_ok=True)
    for name, configured in (("identity", settings.identity_key), ("token", settings.token_key)):
        path = settings.keys_dir / f"{name}.key"
        if configured is not None:
            say(f"{name} key: from MAILFLEET_{name.upper()}_KEY")
        else:
            say(f"{name} key: {'made' if make_key(path) else 'kept'}, {path}", soft_wrap=True)
    settings.identity(), settings.tokens()  # a damaged key file is refused here, not at the first send
    engine = open_engine(settings.url)
    try:
        before, after = upgrade(engine)
    finally:
        engine.dispose()
    say(f"database: {_moved(before, after)}, {engine.url.render_as_string(hide_password=True)}", soft_wrap=True)
    if settings.identity_key is None and before is None:
        say("Back up the identity key now (`mailfleet backup create`): all suppressions hang on it, for ever.")


def _moved(before: str | None, after: str) -> str:
    if before == after:
        return f"is at revision {after} already"
    return f"made at revision {after}" if before is None else f"brought from revision {before} to {after}"
