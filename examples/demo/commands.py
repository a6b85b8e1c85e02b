"""Run ``mailfleet …`` as a person would, and show it: the command, then what it prints."""

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout

from rich.console import Console
from rich.markup import escape

from mailer_lib.cli import main
from mailer_lib.settings import load_settings

_SHOWN_LINES = 14


class DemoError(RuntimeError):
    """A step of the demo went wrong; the sentence says which."""


def mailfleet(console: Console, *arguments: str, show: bool = True, lines: int = _SHOWN_LINES) -> str:
    """Run one command in this process (starting Python for each would cost a second); returns what it printed.

    Raises:
        DemoError: its exit code wasn't 0.
    """
    shown = shlex.join(["mailfleet", *arguments])
    if show:
        console.print(f"[dim]$[/dim] [bold]{escape(shown)}[/bold]", soft_wrap=True)
    output = io.StringIO()
    load_settings.cache_clear()
    with redirect_stdout(output), redirect_stderr(output):
        code = main(arguments)
    text = output.getvalue()
    if code != 0:
        raise DemoError(f"`{shown}` ended with exit code {code}:\n{text.strip()}")
    if show:
        printed = text.rstrip().splitlines()
        for line in printed[:lines]:
            console.print(f"  {escape(line)}", style="dim", soft_wrap=True, highlight=False)
        if len(printed) > lines:
            console.print(f"  … {len(printed) - lines} more lines", style="dim")
    return text


def python_module(*arguments: str) -> list[str]:
    """Command line of ``mailfleet …`` as a process of its own."""
    return [sys.executable, "-m", "mailer_lib.cli", *arguments]
