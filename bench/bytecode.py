"""Python's bytecode for what a benchmark starts: an installation has it, this environment may forbid it."""

import os
from pathlib import Path

_FOLDER = Path(__file__).parent.parent / ".demo/bytecode"


def keep_bytecode() -> None:
    """For this process's children. Without, each of them compiles all that it imports: 5 s of CPU for a snapshot's
    worker instead of 1.4 (``PYTHONDONTWRITEBYTECODE`` on a busy machine).
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(_FOLDER)
