"""``mailfleet init``: keys, folders, database."""

import typer

from mailer_lib import secret_refs
from mailer_lib.commands.context import console, set_up_logging
from mailer_lib.fleet.login_key import make_login_key
from mailer_lib.settings import Settings, load_settings, make_key

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
    say(f"SSH key: {_ssh_key(settings)}", soft_wrap=True)
    engine = open_engine(settings.url)
    try:
        before, after = upgrade(engine)
    finally:
        engine.dispose()
    say(f"database: {_moved(before, after)}, {engine.url.render_as_string(hide_password=True)}", soft_wrap=True)
    if settings.identity_key is None and before is None:
        say("Back up the identity key now (`mailfleet backup create`): all suppressions hang on it, for ever.")


def _ssh_key(settings: Settings) -> str:
    """Made where it belongs to this installation; one that is kept elsewhere must come from there."""
    path = secret_refs.file_of(settings, settings.ssh_key_ref)
    if path is None or not path.is_relative_to(settings.home):
        return f"from {settings.ssh_key_ref}"
    return f"{'made' if make_login_key(path) else 'kept'}, {path}"


def _moved(before: str | None, after: str) -> str:
    if before == after:
        return f"is at revision {after} already"
    return f"made at revision {after}" if before is None else f"brought from revision {before} to {after}"
