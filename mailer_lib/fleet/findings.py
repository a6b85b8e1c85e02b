"""What verifying a dispatch server finds."""

from collections.abc import Sequence
from dataclasses import dataclass

from mailer_lib.terms import FindingLevel


@dataclass(frozen=True)
class Finding:
    """``publish``: DNS records that are missing, as zone lines."""

    level: FindingLevel  # an error forbids sending
    check: str  # short and stable, for machines
    text: str  # what is so, and when it is wrong, what to do; no address of a person, no secret
    publish: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def error(check: str, text: str, publish: Sequence[str] = ()) -> Finding:
    return Finding(FindingLevel.ERROR, check, text, tuple(publish))


def warning(check: str, text: str, publish: Sequence[str] = ()) -> Finding:
    return Finding(FindingLevel.WARNING, check, text, tuple(publish))


def info(check: str, text: str) -> Finding:
    return Finding(FindingLevel.INFO, check, text)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Errors first; otherwise as they were found, each once."""
    order = list(FindingLevel)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.level))


def is_error(finding: Finding) -> bool:
    return finding.level is FindingLevel.ERROR
