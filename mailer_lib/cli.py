"""``mailfleet``: the command line. Nouns are listed in ``commands/__init__.py`` and imported only when called."""

import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mailer_lib import commands
from mailer_lib.commands import errors

HELP = (
    "Permission-based e-mail marketing: plan, approve and send campaigns over many dispatch servers.\n\n"
    "Start with [bold]mailfleet init[/bold], then [bold]mailfleet doctor[/bold]. A send is written campaign#edition, "
    "like spring-sale#1. Every setting is an environment variable MAILFLEET_…, see docs/deployment.md."
)


class _Nouns(TyperGroup):
    """Lists the nouns from their table, so that ``--help`` imports none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [noun.name for noun in commands.NOUNS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        noun = next((n for n in commands.NOUNS if n.name == cmd_name), None)
        return noun and TyperCommand(noun.name, help=noun.help, rich_help_panel=noun.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = {noun.name: self.get_command(ctx, noun.name) for noun in commands.NOUNS}  # for "Did you mean"
        name, found, rest = super().resolve_command(ctx, args)
        return name, found and _load(found.name), rest


def _load(name: str | None) -> Any:
    noun = next(n for n in commands.NOUNS if n.name == name)
    try:
        app = import_module(noun.module).app
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.startswith("mailer_lib"):
            raise
        raise errors.CommandError(
            f"`mailfleet {noun.name}` needs the package that provides {missing}: pip install 'mailfleet[central]'"
        ) from error
    loaded = typer.main.get_command(app) if noun.single else typer.main.get_group(app)
    loaded.name = noun.name
    return loaded


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"mailfleet {version('mailfleet')}")
        except PackageNotFoundError:
            typer.echo("mailfleet, from a checkout")
        raise typer.Exit


app = typer.Typer(
    cls=_Nouns,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Say which release this is."
    ),
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors become sentences on stderr."""
    try:
        code = typer.main.get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="mailfleet", standalone_mode=False
        )
    except typer.Abort:
        return _say("stopped", errors.FAILED)
    except typer.TyperException as error:
        return _wrong_usage(error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else errors.FAILED
    except (Exception, KeyboardInterrupt) as error:
        if errors.wants_traceback():
            traceback.print_exc()
        return _say(*errors.explain(error))
    return code if isinstance(code, int) else 0


def _wrong_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        typer.echo(context.get_help(), nl=False)  # with rich it is printed already, and empty
        return errors.WRONG_USAGE
    hint = f" (`{context.command_path} --help` shows what there is)" if context is not None else ""
    return _say(f"{error.format_message().rstrip('.')}{hint}", error.exit_code)


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"mailfleet: {sentence.rstrip()}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
