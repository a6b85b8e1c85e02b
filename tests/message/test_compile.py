"""Freezing: what is approved is what is sent, whatever happens to the campaign meanwhile."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, send_links, sends
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import CampaignError, load_campaign, save_campaign
from mailer_lib.message.compile import bundle_path, freeze_bundle, load_bundle
from mailer_lib.settings import Settings
from mailer_lib.terms import SendMode, SendState
from tests.message.installation import furnish
from tests.message.test_campaign import PAGE, YAML, write_files

LINKED = PAGE.replace("</body>", '<a href="https://shop.example/a">a</a></body>')


@pytest.fixture
def send_id(engine: Engine, settings: Settings, tmp_path: Path) -> int:
    furnish(engine, settings)
    save(engine, settings, tmp_path, LINKED)
    with write(engine) as connection:
        made = connection.execute(
            insert(sends).values(
                campaign_id=connection.scalar(select(campaigns.c.id)),
                edition="1",
                mode=SendMode.SEND,
                state=SendState.PLANNED,
                created_at=now(),
            )
        )
        return int(made.inserted_primary_key[0])


def save(engine: Engine, settings: Settings, folder: Path, page: str) -> None:
    save_campaign(engine, settings, load_campaign(write_files(folder, YAML, page_html=page)), "ann")


def links(engine: Engine) -> list[str]:
    with read(engine) as connection:
        return list(connection.scalars(select(send_links.c.url).order_by(send_links.c.number)))


def test_the_bundle_lies_under_its_hash(engine: Engine, settings: Settings, send_id: int) -> None:
    frozen = freeze_bundle(engine, settings, send_id)

    path = bundle_path(settings, frozen.content_hash)
    assert path == settings.storage / "bundles" / frozen.content_hash / "message.json"
    assert Bundle.load(path) == frozen
    assert (frozen.campaign, frozen.edition, frozen.send_id) == ("spring", "1", send_id)
    assert frozen.tracking_url == "http://127.0.0.1:8025"
    assert frozen.list_title == "Fjord & Fern News"
    assert links(engine) == ["https://shop.example/a"] == list(frozen.links)
    with read(engine) as connection:
        assert connection.scalar(select(sends.c.content_hash)) == frozen.content_hash


def test_the_same_campaign_gives_the_same_hash(engine: Engine, settings: Settings, send_id: int) -> None:
    assert freeze_bundle(engine, settings, send_id) == freeze_bundle(engine, settings, send_id)


def test_an_edit_before_approval_counts(engine: Engine, settings: Settings, send_id: int, tmp_path: Path) -> None:
    before = freeze_bundle(engine, settings, send_id)
    save(engine, settings, tmp_path, LINKED.replace("/a", "/b"))
    after = freeze_bundle(engine, settings, send_id)

    assert before.content_hash != after.content_hash
    assert links(engine) == ["https://shop.example/b"]


def test_the_hash_covers_every_variant(engine: Engine, settings: Settings, send_id: int, tmp_path: Path) -> None:
    def hashed(subject: str, weight: int) -> str:
        more = f"variants:\n  - {{name: A}}\n  - {{name: B, weight: {weight}, subject: {subject}}}\n"
        save_campaign(engine, settings, load_campaign(write_files(tmp_path, YAML + more, page_html=LINKED)), "ann")
        return freeze_bundle(engine, settings, send_id).content_hash

    assert hashed("One", 1) == hashed("One", 1)
    assert len({hashed("One", 1), hashed("Two", 1), hashed("One", 2)}) == 3


@pytest.mark.parametrize("change", [{"state": SendState.APPROVED}, {"state": SendState.FINISHED, "started_at": now()}])
def test_an_edit_after_approval_or_a_first_message_does_not(
    engine: Engine, settings: Settings, send_id: int, tmp_path: Path, change: dict[str, object]
) -> None:
    before = freeze_bundle(engine, settings, send_id)
    with write(engine) as connection:
        connection.execute(update(sends).values(change))
    save(engine, settings, tmp_path, LINKED.replace("/a", "/b"))

    assert freeze_bundle(engine, settings, send_id) == before
    assert links(engine) == ["https://shop.example/a"]


def test_a_changed_bundle_is_noticed(engine: Engine, settings: Settings, send_id: int) -> None:
    frozen = freeze_bundle(engine, settings, send_id)
    path = bundle_path(settings, frozen.content_hash)
    path.write_bytes(path.read_bytes().replace(b"Hi", b"Ho"))

    with pytest.raises(CampaignError, match="was changed"):
        load_bundle(settings, frozen.content_hash)
    path.unlink()
    with pytest.raises(CampaignError, match="is gone"):
        load_bundle(settings, frozen.content_hash)


def test_an_unknown_send(engine: Engine, settings: Settings) -> None:
    with pytest.raises(CampaignError, match="no send number 99"):
        freeze_bundle(engine, settings, 99)
