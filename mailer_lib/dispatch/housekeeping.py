"""What isn't kept for ever: job folders of sends that are long over, old verifications and looks at servers."""

from dataclasses import dataclass

from sqlalchemy import Engine

from mailer_lib.database.engine import now, write
from mailer_lib.dispatch.job_folders import Tidied, tidy
from mailer_lib.fleet import health_book, server_checks
from mailer_lib.settings import Settings


@dataclass(frozen=True)
class Kept:
    """What was removed."""

    folders: tuple[Tidied, ...]
    verifications: int
    looks: int

    @property
    def troubles(self) -> tuple[str, ...]:
        return tuple(f"{one.server}: {one.trouble}" for one in self.folders if one.trouble)

    def sentences(self) -> list[str]:
        said = []
        for one in self.folders:
            if one.removed:
                said.append(f"{one.server}: {len(one.removed)} job folders removed ({', '.join(one.removed)})")
            if one.strange:
                said.append(f"{one.server}: job folders of no send that is known: {', '.join(one.strange)}")
        return [*said, f"{self.verifications} old verifications and {self.looks} old looks at servers removed"]


def keep_house(engine: Engine, settings: Settings, *, actor: str) -> Kept:
    """Twice is the same as once. A server that can't be reached is named, and asked next time."""
    folders = tuple(tidy(engine, settings, actor=actor))
    with write(engine) as connection:
        return Kept(folders, server_checks.forget_old(connection, now()), health_book.forget_old(connection, now()))
