"""How a dispatch server is: facts that one small script reads on it, and a pure judgement of them.

The script needs Python and nothing else, and prints one line of JSON. It reads Exim's spool as the agent's user may
(group Debian-exim): of each message's ``-H`` file when it came, whether it was tried, which domains it is still for.
Addresses never leave the server: domains do.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mailer_lib.terms import HealthVerdict

SCRIPT = "health_script.py"
_MARK = "mailfleet-health "

Run = Callable[[str], str]  # runs one shell command on the server and returns what it printed


class HealthError(ValueError):
    """The server answered, but not with its health."""


@dataclass(frozen=True)
class Place:
    """Where the script looks."""

    python: str
    spool: str | None = None  # of Exim; None: another MTA, whose queue isn't ours to see
    paniclog: str | None = None
    certificate: str | None = None
    keys: tuple[str, ...] = ()  # private keys whose age counts
    disk: str = "/"  # a folder on the disk that fills


@dataclass(frozen=True)
class QueueFacts:
    """Messages still to be delivered to one domain. A message with two recipients counts for each domain."""

    queued: int = 0
    deferred: int = 0  # tried at least once
    oldest_s: int = 0


@dataclass(frozen=True)
class Facts:
    at: float  # the server's clock, Unix seconds
    load: float  # over the last minute, for each core
    disk_free_share: float
    inodes_free_share: float
    messages: int | None = None  # in the queue; None: not looked
    unread: int = 0  # of them, whose file couldn't be read, or that came after the script's limit
    queue: dict[str, QueueFacts] = field(default_factory=dict)  # by domain
    oldest_s: int = 0
    deferred: int = 0
    certificate_left_s: int | None = None  # until it expires
    key_age_s: int | None = None  # of the oldest
    mta_runs: bool | None = None  # None: no Exim
    panics: int = 0  # bytes of Exim's paniclog

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class HealthRules:
    """At what a server counts as sick."""

    load: float = 8.0
    disk_free_share: float = 0.10
    clock_s: float = 30.0
    oldest: timedelta = timedelta(hours=12)
    queued: int = 50_000
    certificate: timedelta = timedelta(days=7)
    key_age: timedelta = timedelta(days=400)


@dataclass(frozen=True)
class Health:
    verdict: HealthVerdict
    reasons: tuple[str, ...] = ()
    facts: Facts | None = None


def command(place: Place) -> str:
    """The shell command that prints the facts."""
    script = files("mailer_lib.fleet").joinpath(SCRIPT).read_text()
    asked = {name: value for name, value in asdict(place).items() if name != "python"}
    return shlex.join([place.python, "-I", "-c", script, json.dumps(asked)])


def gather(run: Run, place: Place) -> Facts:
    """Ask a server.

    Raises:
        HealthError: what it printed isn't the script's line.
        Exception: whatever ``run`` raises when the server can't be reached.
    """
    for line in reversed(run(command(place)).splitlines()):
        if line.startswith(_MARK):
            try:
                return TypeAdapter(Facts).validate_json(line.removeprefix(_MARK))
            except ValidationError as error:
                raise HealthError(f"the health script's answer can't be read: {error.errors()[0]['msg']}") from None
    raise HealthError("the health script printed nothing; is Python there, and may the agent's user run it?")


def load_facts(stored: Mapping[str, Any] | None) -> Facts | None:
    """Facts as ``as_dict`` left them."""
    return None if stored is None else TypeAdapter(Facts).validate_python(dict(stored))


def judge(facts: Facts, now: datetime, *, rules: HealthRules | None = None, took_s: float = 0.0) -> Health:
    """Sick with every reason, or well. ``took_s``: how long the asking took, by which the clocks may seem to differ."""
    rules = rules or HealthRules()
    reasons: list[str] = []
    if facts.mta_runs is False:
        reasons.append("Exim doesn't run")
    if facts.panics:
        reasons.append(f"Exim's paniclog isn't empty ({facts.panics:,} bytes)")
    if facts.disk_free_share < rules.disk_free_share:
        reasons.append(f"{facts.disk_free_share:.0%} of its disk is free, less than {rules.disk_free_share:.0%}")
    if facts.inodes_free_share < rules.disk_free_share:
        reasons.append(f"{facts.inodes_free_share:.0%} of its disk's inodes are free")
    if facts.load > rules.load:
        reasons.append(f"its load is {facts.load:.1f} for each core, more than {rules.load:.1f}")
    off_s = abs(facts.at - now.timestamp()) - took_s
    if off_s > rules.clock_s:
        reasons.append(f"its clock is {off_s:.0f} s off")
    if facts.oldest_s > rules.oldest.total_seconds():
        reasons.append(f"the oldest message in its queue is {facts.oldest_s / 3600:.1f} h old")
    if facts.messages is not None and facts.messages > rules.queued:
        reasons.append(f"{facts.messages:,} messages are in its queue, more than {rules.queued:,}")
    if facts.certificate_left_s is not None and facts.certificate_left_s < rules.certificate.total_seconds():
        days = facts.certificate_left_s / 86_400
        reasons.append("its certificate has expired" if days < 0 else f"its certificate expires in {days:.1f} days")
    if facts.key_age_s is not None and facts.key_age_s > rules.key_age.total_seconds():
        reasons.append(f"its private key is {facts.key_age_s // 86_400} days old: rotate it")
    return Health(HealthVerdict.SICK if reasons else HealthVerdict.WELL, tuple(reasons), facts)


def silent(reason: str) -> Health:
    return Health(HealthVerdict.SILENT, (reason,))
