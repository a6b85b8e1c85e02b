"""What is the same for all batches of one import."""

from dataclasses import dataclass
from datetime import datetime

METHOD_CONFIRMED, METHOD_REQUESTED = "import", "import-request"


@dataclass(frozen=True)
class ImportScope:
    """The list, and what kind of consent its people bring."""

    list_id: int
    requested: bool  # double opt-in: not a consent yet
    started: datetime  # stands for "when" in the evidence of people whose consent has no date

    @property
    def method(self) -> str:
        return METHOD_REQUESTED if self.requested else METHOD_CONFIRMED
