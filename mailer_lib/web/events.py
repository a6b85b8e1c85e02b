"""Opens, clicks and leavings as they come: JSON lines in ``storage/events/raw/YYYY-MM-DD/``, a file for each process.

    {"t": 1795490000.123, "kind": "click", "send_id": 7, "message_key": "…32 hex…", "contact_id": 42, "link": 3,
     "agent": "person"}

(In truth one line.) ``t``: Unix seconds. ``agent``: who probably fetched it (``user_agents.AgentClass``). No address
and no IP. Each event is one ``write(2)`` with ``O_APPEND``; the feedback stage makes Parquet of them.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from mailer_lib.tokens import Token
from mailer_lib.web.user_agents import AgentClass


class EventLog:
    """Appends events; safe for threads. Files are opened when the first event of a day comes."""

    def __init__(self, storage: Path, clock: Callable[[], float] = time.time) -> None:
        self._root = storage / "events" / "raw"
        self._clock = clock
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"  # pids come again, after a reboot say
        self._lock = threading.Lock()
        self._day = ""
        self._file = -1

    def add(self, kind: str, token: Token, agent: AgentClass) -> None:
        """Append one event; ``kind``: open, click, view or unsubscribe."""
        now = self._clock()
        event: dict[str, str | int | float] = {
            "t": round(now, 3),
            "kind": kind,
            "send_id": token.send_id,
            "message_key": token.message_key.hex(),
            "contact_id": token.contact_id,
        }
        if kind == "click":
            event["link"] = token.link
        event["agent"] = agent.value
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._open(datetime.fromtimestamp(now, UTC).date().isoformat())
            os.write(self._file, line)

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file, self._day = -1, ""

    def _open(self, day: str) -> None:
        if day == self._day:
            return
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        folder = self._root / day
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / self._name, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        self._day = day
