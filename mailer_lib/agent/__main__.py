"""``python -m mailer_lib.agent JOB_FOLDER``: run the agent of a job folder until it has nothing more to do.

Exit status: 0 done, 2 the folder can't be used, 3 another agent works in it, 4 idle (the slot is silent), 5 it can't
go on (agent.log says why), 6 told to leave by SIGTERM.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    # pyarrow imports numpy where there is one (0.17 s and 10 MB of each agent). Its own hosts have none: the same here.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]

from mailer_lib.agent.agent import Agent, ExitCode
from mailer_lib.agent.folder import AlreadyRunningError, JobError, JobFolder


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: half the CPU of asyncio's own loop for each message."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _run(folder: JobFolder) -> ExitCode:
    return await Agent(folder).run()


def run_job(path: Path) -> ExitCode:
    """Run the agent in this process."""
    folder = JobFolder(path.absolute())
    try:
        lock = folder.lock()
    except AlreadyRunningError as error:
        _say(str(error))
        return ExitCode.LOCKED
    except JobError as error:
        _say(str(error))
        return ExitCode.BAD_JOB
    logging.basicConfig(
        filename=folder.log_path, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # nor must a log that can't be written change the exit status
    gc.set_threshold(5_000, 20, 50)  # messages are freed by reference counts; cycles are rare
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_run(folder))
    except JobError as error:
        logging.error("%s", error)
        _say(str(error))
        return ExitCode.BAD_JOB
    except (RuntimeError, ValueError, OSError) as error:
        logging.exception("the agent can't go on")
        _say(f"the agent can't go on: {error}")
        return ExitCode.FAILED
    finally:
        os.close(lock)


def _say(sentence: str) -> None:
    """On stderr, which may lie on a full disk: then the exit status must do."""
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())


def main() -> int:
    if len(sys.argv) != 2:
        _say("usage: python -m mailer_lib.agent JOB_FOLDER")
        return ExitCode.BAD_JOB
    return run_job(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
