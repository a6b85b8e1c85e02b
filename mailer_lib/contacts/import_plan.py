"""What an import does with a file, once its header is known: the lists, the columns, the consent. Made by options or by
a profile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection

from mailer_lib.contacts.attributes import declared, declared_choices
from mailer_lib.contacts.columns import ColumnMap
from mailer_lib.contacts.formats import FileFormat
from mailer_lib.contacts.rows import (
    EVERYBODY_JOINS,
    USUAL,
    ConsentColumns,
    ConsentDefaults,
    Joining,
    RowParser,
    Wording,
)
from mailer_lib.contacts.scope import ImportScope
from mailer_lib.terms import AttributeType

BATCH_ROWS = 10_000


class ConsentOptionError(ValueError):
    """What is said about the consent can't be."""


@dataclass(frozen=True)
class Declared:
    """The attributes of this installation."""

    types: dict[str, AttributeType]
    choices: Mapping[str, Sequence[str]]

    @classmethod
    def load(cls, connection: Connection) -> "Declared":
        return cls(declared(connection), declared_choices(connection))


@dataclass(frozen=True)
class Target:
    """A list that the file's people join, or some of them."""

    name: str
    list_id: int
    requested: bool  # double opt-in

    def scope(self, started: datetime) -> ImportScope:
        return ImportScope(self.list_id, self.requested, started)


@dataclass(frozen=True)
class ImportPlan:
    """``said`` is all that was said, for the fingerprint: what differs in it is another import."""

    targets: tuple[Target, ...]
    columns: ColumnMap
    defaults: ConsentDefaults
    said: object
    wording: Wording = USUAL
    joining: Joining = EVERYBODY_JOINS
    consents: tuple[ConsentColumns, ...] = field(default=())

    def parser(self, known: Declared, started: datetime) -> RowParser:
        return RowParser(
            self.columns, known.types, self.defaults, started, known.choices,
            wording=self.wording, joining=self.joining, consents=self.consents,
        )  # fmt: skip


class ImportRequest(Protocol):
    """What the operator says about a file: ``ImportOptions``, or ``ProfileRequest``."""

    @property
    def encoding(self) -> str: ...

    @property
    def delimiter(self) -> str | None: ...

    @property
    def format(self) -> FileFormat | None: ...

    @property
    def batch_rows(self) -> int: ...

    @property
    def dry_run(self) -> bool: ...

    def check(self, connection: Connection) -> None:
        """Before the file is opened: do the lists exist?"""
        ...

    def plan(self, connection: Connection, path: Path, header: list[str], known: Declared) -> ImportPlan:
        """What becomes of a file with that header; a sentence, as an error, when it can't be."""
        ...
