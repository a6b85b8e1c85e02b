"""Keeps one agent alive while its job has work, and says so when it can't."""

import time
from collections.abc import Callable

from mailer_lib.dispatch.channel import Channel
from mailer_lib.dispatch.slot_rules import MAX_FAILURES, restart_after_s

DISMISS_S = 10.0  # an agent that was told that all is complete gets this long, then the same for SIGTERM


class AgentFailedError(RuntimeError):
    """The agent died again and again; the sentence ends with its last log lines."""


class AgentKeeper:
    """Starts, restarts with back-off, gives up. An agent that is alive is never joined by a second one."""

    def __init__(self, channel: Channel, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._channel = channel
        self._label = label
        self._clock = clock
        self._started = False  # by us, and not seen dead since
        self._failures = 0
        self._start_at = 0.0

    def made_progress(self) -> None:
        """The agent settled something: what went wrong before is over."""
        self._failures = 0

    def ensure(self) -> bool:
        """Start the agent unless one is alive or its back-off isn't over. Returns whether one is alive now.

        Raises:
            AgentFailedError: it died ``MAX_FAILURES`` times in a row without settling anything.
        """
        if self._channel.is_alive():
            return True
        now = self._clock()
        if self._started:
            self._started = False
            self._failures += 1
            self._start_at = now + restart_after_s(self._failures)
            if self._failures >= MAX_FAILURES:
                log = "\n".join(self._channel.log_tail())
                raise AgentFailedError(
                    f"the agent of {self._label} ended {self._failures} times in a row without settling anything; its "
                    f"log says:\n{log or '(nothing)'}"
                )
        if now < self._start_at:
            return False
        self._channel.start()
        self._started = True
        return True

    def end(self, ask: Callable[[], None] | None = None, patience_s: float = DISMISS_S) -> bool:
        """See the agent out: ``ask`` it (control.json says complete), then SIGTERM, then SIGKILL. Returns whether it
        is gone. Without ``ask`` it begins with SIGTERM."""
        if ask is not None and self._channel.is_alive():
            ask()
            if self._gone_within(patience_s):
                return True
        for signal in (self._channel.stop, self._channel.kill):
            if not self._channel.is_alive():
                break
            signal()
            if self._gone_within(DISMISS_S):
                break
        self._started = False
        return not self._channel.is_alive()

    def _gone_within(self, seconds: float) -> bool:
        until = self._clock() + seconds
        while self._channel.is_alive():
            if self._clock() >= until:
                return False
            time.sleep(0.05)
        return True
