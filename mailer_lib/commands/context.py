"""What most commands begin with: settings, an engine, who is asking; and how they talk to a person."""

import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.console import Console

from mailer_lib.commands.errors import WRONG_USAGE, CommandError
from mailer_lib.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

Processes = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="That read recipients side by side; by default what suits the machine."),
]
_SEND_REF = re.compile(r"([a-z0-9][a-z0-9._-]*)#([A-Za-z0-9][A-Za-z0-9._:+-]*)")
_PLAIN_EVERY_S = 5.0


@dataclass(frozen=True)
class CommandContext:
    settings: Settings
    engine: "Engine"
    actor: str


@contextmanager
def open_context(*, migrated: bool = True) -> Iterator[CommandContext]:
    """Settings, an engine and the actor, for one command.

    Raises:
        SettingsError: a setting is wrong.
        MigrationError: ``migrated`` is asked for, and the tables aren't those of this release.
    """
    from mailer_lib.database.audit import current_actor
    from mailer_lib.database.engine import open_engine
    from mailer_lib.database.migrate import require_current

    settings = load_settings()
    set_up_logging(settings)
    engine = open_engine(settings.url)
    try:
        if migrated:
            require_current(engine)
        yield CommandContext(settings, engine, current_actor())
    finally:
        engine.dispose()


def set_up_logging(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True)
class SendRef:
    campaign: str
    edition: str

    def __str__(self) -> str:
        return f"{self.campaign}#{self.edition}"


def parse_send_ref(text: str) -> SendRef:
    """``campaign#edition``.

    Raises:
        CommandError: it is written otherwise.
    """
    match = _SEND_REF.fullmatch(text)
    if match is None:
        raise CommandError(f"{text!r} isn't a send: write campaign#edition, like spring-sale#1", WRONG_USAGE)
    return SendRef(match[1], match[2])


def console() -> Console:
    """For results: stdout, as wide as the terminal; not cut when it goes to a file or a pipe."""
    return _console(sys.stdout)


def error_console() -> Console:
    """For progress and remarks: stderr."""
    return _console(sys.stderr)


def _console(stream: object) -> Console:
    made = Console(file=stream, highlight=False, emoji=False)  # type: ignore[arg-type]
    if not made.is_terminal:
        made = Console(file=stream, highlight=False, emoji=False, width=240)  # type: ignore[arg-type]
    return made


class Progress(Protocol):
    """How library functions say how far they are; ``done`` and ``total`` count the same thing, total None: unknown."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Progress]:
    """A bar on a terminal, a line every few seconds elsewhere, and a last line that says what was done. On stderr."""
    output = error_console()
    if output.is_terminal:
        with _bar(output, label, total) as report:
            yield report
        return
    plain = _PlainProgress(output, label, total, unit)
    yield plain
    plain.finish()


@contextmanager
def _bar(output: Console, label: str, total: int | None) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=output) as bars:
        task = bars.add_task(label, total=total)

        def report(done: int, total: int | None = None) -> None:
            bars.update(task, completed=done, total=total)

        yield report


@dataclass
class _PlainProgress:
    output: Console
    label: str
    total: int | None
    unit: str
    done: int = 0
    _printed_at: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, total: int | None = None) -> None:
        self.done = done
        self.total = total if total is not None else self.total
        if time.monotonic() - self._printed_at >= _PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            self._print("")

    def finish(self) -> None:
        self._print(", done")

    def _print(self, tail: str) -> None:
        of = f" of {self.total:,}" if self.total is not None else ""
        self.output.print(f"{self.label}: {self.done:,}{of} {self.unit}{tail}")
