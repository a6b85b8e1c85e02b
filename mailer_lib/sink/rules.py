"""What a sink does instead of taking a message: refuse, defer, be slow, or vanish, by rule for the recipient's domain.

``rules.yaml`` beside the sink's Maildir, read again whenever it changes::

    domains:
      isp-a.example:
        unknown: {pattern: "^(nobody|gone)"}            # 550 5.1.1 at RCPT
        refuse: {code: 550, enhanced: 5.7.1, text: "We don't like you", share: 0.02}
        defer:  {code: 451, enhanced: 4.7.1, text: "Greylisted", first: 2, share: 0.1, at: rcpt}
        slow:   {after_rcpt_ms: 50, after_dot_ms: 100}
        vanish: {first: 1, share: 0.01}                 # take the message, close without a reply
      "*": {}                                           # domains that have no entry of their own

``share`` chooses recipients by a hash of the address, so a retry meets the same fate; each kind of rule chooses its
own.
``first``: only the first n attempts for a recipient since the sink started. ``at``: ``rcpt`` or ``dot`` (after the
message).
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

ANY_DOMAIN = "*"


class RulesError(ValueError):
    """``rules.yaml`` can't be used; the sentence says where and why."""


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(pattern=r"^[ -~]{1,400}$")]  # a reply is one line of ASCII


class Unknown(_Rule):
    """Mailboxes that don't exist: local parts that ``pattern`` is found in (case-insensitive)."""

    pattern: str
    text: Text = "The email account that you tried to reach does not exist"

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class Refuse(_Rule):
    code: Annotated[int, Field(ge=500, le=599)] = 550
    enhanced: Annotated[str, Field(pattern=r"^5\.\d{1,3}\.\d{1,3}$")] | None = "5.7.1"
    text: Text = "Message refused by policy"
    share: Share = 1.0
    at: Literal["rcpt", "dot"] = "rcpt"


class Defer(_Rule):
    code: Annotated[int, Field(ge=400, le=499)] = 451
    enhanced: Annotated[str, Field(pattern=r"^4\.\d{1,3}\.\d{1,3}$")] | None = "4.7.1"
    text: Text = "Try again later"
    share: Share = 1.0
    first: Annotated[int, Field(ge=1)] | None = None  # None: every attempt
    at: Literal["rcpt", "dot"] = "rcpt"


class Slow(_Rule):
    after_rcpt_ms: Annotated[int, Field(ge=0, le=600_000)] = 0
    after_dot_ms: Annotated[int, Field(ge=0, le=600_000)] = 0


class Vanish(_Rule):
    """The message is stored and logged, then the connection is closed without a reply (RFC 1047's doubt)."""

    share: Share = 1.0
    first: Annotated[int, Field(ge=1)] | None = None


class DomainRules(_Rule):
    unknown: Unknown | None = None
    refuse: Refuse | None = None
    defer: Defer | None = None
    slow: Slow | None = None
    vanish: Vanish | None = None


class Rules(_Rule):
    domains: dict[str, DomainRules] = {}

    @field_validator("domains")
    @classmethod
    def _lower(cls, value: dict[str, DomainRules]) -> dict[str, DomainRules]:
        return {domain.lower().rstrip("."): rules for domain, rules in value.items()}

    def for_domain(self, domain: str) -> DomainRules:
        return self.domains.get(domain.lower()) or self.domains.get(ANY_DOMAIN) or DomainRules()


class Fate(StrEnum):
    TAKE = "take"
    REFUSE = "refuse"
    DEFER = "defer"
    VANISH = "vanish"


@dataclass(frozen=True)
class Verdict:
    fate: Fate = Fate.TAKE
    reply: str = ""
    delay_ms: int = 0


def parse_rules(text: str, where: str = "rules.yaml") -> Rules:
    """Rules from YAML; an empty document means none.

    Raises:
        RulesError: one line for each thing that is wrong.
    """
    try:
        document: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RulesError(f"{where} isn't YAML: {' '.join(str(error).split())}") from None
    try:
        return Rules.model_validate(document or {})
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise RulesError("\n".join(lines)) from None


def position(address: str, kind: str) -> float:
    """Where a recipient stands in [0, 1) for one kind of rule; the same for ever."""
    digest = hashlib.blake2b(address.lower().encode("utf-8", "surrogateescape"), digest_size=8, person=kind.encode())
    return int.from_bytes(digest.digest(), "big") / 2**64


def at_rcpt(rules: DomainRules, address: str, attempts: int) -> Verdict:
    """What to say to RCPT; ``attempts``: earlier ones for this recipient."""
    delay = rules.slow.after_rcpt_ms if rules.slow else 0
    local_part = address.rpartition("@")[0]
    if rules.unknown and re.search(rules.unknown.pattern, local_part, re.IGNORECASE):
        return Verdict(Fate.REFUSE, f"550 5.1.1 {rules.unknown.text}", delay)
    return _refuse_or_defer(rules, address, attempts, "rcpt") or Verdict(delay_ms=delay)


def after_dot(rules: DomainRules, address: str, attempts: int) -> Verdict:
    """What to do with the message of one recipient whom RCPT took."""
    delay = rules.slow.after_dot_ms if rules.slow else 0
    refused = _refuse_or_defer(rules, address, attempts, "dot")
    if refused is not None:
        return refused
    vanish = rules.vanish
    if vanish and position(address, "vanish") < vanish.share and (vanish.first is None or attempts < vanish.first):
        return Verdict(Fate.VANISH, delay_ms=delay)
    return Verdict(delay_ms=delay)


def _refuse_or_defer(rules: DomainRules, address: str, attempts: int, stage: str) -> Verdict | None:
    slow = rules.slow or Slow()
    delay = slow.after_rcpt_ms if stage == "rcpt" else slow.after_dot_ms
    refuse, defer = rules.refuse, rules.defer
    if refuse and refuse.at == stage and position(address, "refuse") < refuse.share:
        return Verdict(Fate.REFUSE, _reply(refuse.code, refuse.enhanced, refuse.text), delay)
    if (
        defer
        and defer.at == stage
        and position(address, "defer") < defer.share
        and (defer.first is None or attempts < defer.first)
    ):
        return Verdict(Fate.DEFER, _reply(defer.code, defer.enhanced, defer.text), delay)
    return None


def _reply(code: int, enhanced: str | None, text: str) -> str:
    return f"{code} {enhanced} {text}" if enhanced else f"{code} {text}"


class RuleBook:
    """The rules in force, and how often each recipient was tried."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature: tuple[int, int, int] | None = None
        self._rules = Rules()
        self._attempts: Counter[tuple[str, str]] = Counter()
        self.problem = ""  # why the file in place isn't in force
        self.reload()

    def reload(self) -> None:
        """Read the file when it is another one than last time; a broken one leaves the old rules in force."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._signature, self._rules, self.problem = None, Rules(), ""
            return
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._rules, self.problem = parse_rules(self._path.read_text("utf-8"), str(self._path)), ""
        except (RulesError, UnicodeDecodeError, OSError) as error:
            self.problem = str(error)

    def at_rcpt(self, address: str) -> Verdict:
        self.reload()
        rules = self._rules.for_domain(address.rpartition("@")[2])
        verdict = at_rcpt(rules, address, self._attempts[("rcpt", address)])
        self._count(rules, "rcpt", address)
        return verdict

    def after_dot(self, address: str) -> Verdict:
        rules = self._rules.for_domain(address.rpartition("@")[2])
        verdict = after_dot(rules, address, self._attempts[("dot", address)])
        self._count(rules, "dot", address)
        return verdict

    def _count(self, rules: DomainRules, stage: str, address: str) -> None:
        if rules.defer or rules.vanish:  # only then does anybody ask; others cost no memory
            self._attempts[(stage, address)] += 1
