"""recalls.log: which messages the agent took back out of the MTA's queue, written before it is done and after.

One line each, framed as a ledger's are:

    Q  ledger  row  queue_id  t  why       asked: written, and on disk, before the MTA is asked to remove it
    R  ledger  row  queue_id  t  why       recalled: the MTA's log says "removed", and nothing of a delivery
    N  ledger  row  queue_id  t  why       not recalled: it was being delivered, or nobody can tell

An agent that was killed after Q leaves a question that its successor answers from the MTA's log. Only R is ever
counted: the centre turns it into an amendment of the kept ledger (docs/decisions/0609).
"""

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mailer_lib.agent.ledger import LedgerError, clean, frame, unframe

FILE = "recalls.log"


class Step(StrEnum):
    ASKED = "Q"
    RECALLED = "R"
    NOT_RECALLED = "N"


class Recall(NamedTuple):
    step: Step
    ledger: str  # file name
    row: int
    queue_id: str
    t_ms: int
    why: str


def read_recalls(data: bytes) -> list[Recall]:
    """The whole lines of the file's bytes. A torn end is left out: nothing was done on the strength of it.

    Raises:
        LedgerError: a damaged line.
    """
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            step, ledger, row, queue_id, t_ms, why = unframe(line)
            found.append(Recall(Step(step), ledger, int(row), queue_id, int(t_ms), why))
        except ValueError as error:
            raise LedgerError(f"{FILE}, line {number}: damaged ({error}); restore the file or move it away") from None
    return found


def unanswered(recalls: Iterable[Recall]) -> list[Recall]:
    """Questions without an answer: their agent was killed in between."""
    asked: dict[str, Recall] = {}
    for recall in recalls:
        if recall.step is Step.ASKED:
            asked[recall.queue_id] = recall
        else:
            asked.pop(recall.queue_id, None)
    return list(asked.values())


class RecallLog:
    """The only writer of one recalls.log."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def read(self) -> list[Recall]:
        """
        Raises:
            LedgerError: a damaged line.
        """
        return read_recalls(self._path.read_bytes()) if self._path.exists() else []

    def add(self, recalls: Iterable[Recall]) -> None:
        """Append, durably. A torn end of a killed predecessor is cut off first.

        Raises:
            LedgerError: the disk is full or failing.
        """
        data = b"".join(
            frame(f"{r.step.value}\t{r.ledger}\t{r.row}\t{clean(r.queue_id)}\t{r.t_ms}\t{clean(r.why)}")
            for r in recalls
        )
        if not data:
            return
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                there = self._path.read_bytes()
                whole = there.rfind(b"\n") + 1
                os.ftruncate(handle, whole)
                done = 0
                while done < len(data):
                    done += os.pwrite(handle, data[done:], whole + done)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise LedgerError(f"{self._path} can't be written: {error.strerror}; free some room") from error
