"""What people did, put into the derived files of ``behaviour_store`` without ledgers and raw events."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mailer_lib.audience.behaviour_store import SCHEMA, SOURCES, root_of
from tests.audience.world import World


@dataclass(frozen=True)
class Event:
    kind: str
    at: datetime
    campaign: str = "spring-sale"
    edition: str = "1"
    machine: bool = False


def write_events(world: World, did: Mapping[int, Sequence[Event]]) -> None:
    """In the place of all that there was: by contact id."""
    root = root_of(world.settings)
    shutil.rmtree(root, ignore_errors=True)
    files: dict[Path, list[dict[str, object]]] = {}
    for contact_id, events in sorted(did.items()):
        for event in events:
            at = event.at.astimezone(UTC).replace(tzinfo=None)
            row = {**vars(event), "contact_id": contact_id, "happened_at": at}
            sent = root / "sent" / event.campaign / event.edition / "1.parquet"
            door = root / "events" / f"day={at.date()}" / "events.parquet"
            files.setdefault(sent if event.kind in {"sent", "bounced"} else door, []).append(row)
    for path, rows in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {SOURCES: json.dumps([] if path.name != "events.parquet" else {}).encode()}
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), path)
