"""What a pre-flight says."""

from dataclasses import dataclass

from mailer_lib.terms import FindingLevel


@dataclass(frozen=True)
class Finding:
    level: FindingLevel
    code: str  # short and stable, for machines
    text: str  # a sentence, for people; no address of a contact

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def error(code: str, text: str) -> Finding:
    return Finding(FindingLevel.ERROR, code, text)


def warning(code: str, text: str) -> Finding:
    return Finding(FindingLevel.WARNING, code, text)


def info(code: str, text: str) -> Finding:
    return Finding(FindingLevel.INFO, code, text)
