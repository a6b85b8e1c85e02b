"""What lay in the MTAs' queues when their agents listed them last, kept by the centre: a lost server can't be asked.

``storage/queues/<send>/<server>.<slot>.json``, as the agent writes it (``agent/recall.py``): queue ids, message keys
and domains, no address.
"""

from pathlib import Path

from pydantic import ValidationError

from mailer_lib.agent.job import replace_file
from mailer_lib.agent.recall import LISTING, QueueListing
from mailer_lib.dispatch.channel import Channel
from mailer_lib.dispatch.plan import Slot
from mailer_lib.settings import Settings

_MOST_BYTES = 256 * 1024 * 1024  # a million messages


def keep_listing(settings: Settings, send_id: int, slot: Slot, channel: Channel) -> None:
    """Copy the agent's listing, when it has one that is whole."""
    data = channel.fetch_ledger(LISTING, 0, _MOST_BYTES)
    try:
        QueueListing.model_validate_json(data)
    except ValidationError:  # none yet
        return
    path = _path(settings, send_id, slot)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data, durable=False)


def kept_listing(settings: Settings, send_id: int, slot: Slot) -> QueueListing | None:
    """None: nothing was ever listed."""
    try:
        return QueueListing.load(_path(settings, send_id, slot))
    except (FileNotFoundError, ValidationError):
        return None


def _path(settings: Settings, send_id: int, slot: Slot) -> Path:
    return settings.storage / "queues" / str(send_id) / f"{slot.folder}.json"
