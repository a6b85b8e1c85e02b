"""When the MTA's queue is looked at again: the looks themselves are tested with a real Exim, in test_recall.py."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import cast

from mailer_lib.agent.queue_steer import AGAIN_S, QueueSteer, QueueWish
from mailer_lib.agent.recall import Recaller, Round


class Queue:
    """Recaller and thread in one: what a look finds is known when it begins, and told when the test says so."""

    def __init__(self) -> None:
        self.lying = 0
        self._looks: list[tuple[Future[Round], Round]] = []

    def answer(self) -> int:
        return 0

    def recall(self, choose: object, why: str) -> Round:
        taken, self.lying = self.lying, 0
        return Round(taken, 0)

    def list_to(self, path: Path) -> int:
        return self.lying

    def submit(self, look: Callable[[], Round]) -> "Future[Round]":
        self._looks.append((Future(), look()))
        return self._looks[-1][0]

    def tell(self) -> None:
        for told, found in self._looks:
            told.set_result(found)
        self._looks.clear()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_message_that_was_on_its_way_while_the_queue_was_looked_at_is_looked_for_again() -> None:
    queue, clock = Queue(), Clock()
    steer = QueueSteer(cast(Recaller, queue), cast(Executor, queue), Path("queue.json"), clock)

    def stopped(*, quiet: bool) -> None:
        clock.now += 2 * AGAIN_S
        steer.steer(QueueWish.RECALL, "the send was stopped", quiet=quiet)

    queue.lying = 25
    stopped(quiet=False)  # what an earlier agent left open
    queue.tell()
    stopped(quiet=False)  # this look begins before the last message has come
    queue.lying = 1
    queue.tell()
    for _ in range(5):
        stopped(quiet=True)
        queue.tell()

    assert steer.through
    assert (queue.lying, steer.recalled) == (0, 26)
