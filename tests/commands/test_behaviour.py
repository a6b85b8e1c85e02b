"""``mailfleet behaviour`` as an operator uses it."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from mailer_lib.settings import Settings
from tests.audience.world import World

EVENT = '{"t":1795490000.5,"kind":"click","send_id":%d,"message_key":"00","contact_id":%d,"link":1,"agent":"person"}\n'


def test_refresh_says_what_came_and_what_can_not_be_read(
    sqlite_engine: Engine, settings: Settings, mailfleet: Callable[..., Any]
) -> None:
    world = World.make(sqlite_engine, settings)
    raw = settings.storage / "events" / "raw" / "2026-11-24" / "1-a.jsonl"
    raw.parent.mkdir(parents=True)
    raw.write_text(EVENT % (world.add_send(), world.add("ann@example.org")))
    done = mailfleet("behaviour", "refresh")
    assert done.code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["0", "1", "1"]
    raw.write_text(raw.read_text() + "rubbish\n")
    damaged = mailfleet("behaviour", "refresh")
    assert damaged.code == 1
    assert f"{raw}: 1 lines aren't events" in damaged.stderr
