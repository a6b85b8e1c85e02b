"""What a command says when it can't: one sentence on stderr and an exit code, never a traceback.

Exit codes: 1 what was asked can't be done, 2 the command line is wrong, 3 a defect of ours, 130 interrupted.
"""

import os
import traceback

FAILED, WRONG_USAGE, DEFECT, INTERRUPTED = 1, 2, 3, 130


class CommandError(Exception):
    """What was asked can't be done; the message is a sentence that says why, and what to do."""

    def __init__(self, sentence: str, code: int = FAILED) -> None:
        super().__init__(sentence)
        self.code = code


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence for the person at the terminal, and the exit code.

    Ours is every exception class that lives in ``mailer_lib``: their messages are sentences. Of the rest, those that a
    wrong file or an unreachable database cause are translated; anything else is a defect.
    """
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on", INTERRUPTED
    if type(error).__module__.split(".")[0] == "mailer_lib":
        return str(error), FAILED
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}", FAILED
    if type(error).__module__.startswith("sqlalchemy."):
        return _database_sentence(error), FAILED
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({where[0].filename.rsplit('/', 1)[-1]}:{where[0].lineno})" if where else ""
    return (
        f"unexpected {type(error).__name__}{place}: {error}. This is a defect of Mailfleet; "
        "MAILFLEET_TRACEBACK=1 shows where",
        DEFECT,
    )


def wants_traceback() -> bool:
    return os.environ.get("MAILFLEET_TRACEBACK") == "1"


def _database_sentence(error: BaseException) -> str:
    """The driver's words only: SQLAlchemy's message repeats the statement with its values, which may be addresses."""
    cause = getattr(error, "orig", None)
    if cause is None:
        return f"the database URL or statement is wrong: {error}"
    words = cause.args[-1] if getattr(cause, "args", None) else cause
    return f"the database refused ({type(cause).__name__}): {words}. `mailfleet doctor` says what is reachable"
