"""``mailfleet snapshot`` as an operator uses it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from mailer_lib.audience import catalogue, criteria
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import sends, shards, snapshots
from mailer_lib.message.campaign import load_campaign, save_campaign
from mailer_lib.settings import Settings
from tests.audience.world import rule
from tests.message.installation import furnish, subscribe
from tests.message.world import DOMAIN

Mailfleet = Callable[..., Any]

CAMPAIGN = f"""
name: spring-sale
list: newsletter
criteria: spring-shoppers
from: {{name: Fjord & Fern, address: hello@{DOMAIN}}}
subject: "Spring, {{{{ contact.tier }}}}"
template: {{html: mail.html}}
sending_domain: {DOMAIN}
variants: [{{name: A, weight: 1}}, {{name: B, weight: 1}}]
"""


@pytest.fixture
def campaign(engine: Engine, settings: Settings, tmp_path: Path) -> Engine:
    furnish(engine, settings)
    (tmp_path / "mail.html").write_text("<p>Hello</p>")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    with write(engine) as connection:
        tree = rule("attribute.points", ">=", 10)
        criteria.save(connection, catalogue.load(connection), "spring-shoppers", tree, actor="test")
    save_campaign(engine, settings, load_campaign(tmp_path / "campaign.yaml"), "test")
    for number in range(40):
        subscribe(engine, settings, f"p{number}@example.org", points=number, tier="gold")
    return engine


def test_build_show_and_verify(campaign: Engine, settings: Settings, mailfleet: Mailfleet) -> None:
    built = mailfleet("snapshot", "build", "spring-sale#1")
    assert built.code == 0, built.stderr
    assert 'criteria "spring-shoppers"' in built.stdout
    assert "frozen            30" in built.stdout and "variants  0: " in built.stdout
    assert mailfleet("snapshot", "show", "spring-sale#1").stdout == built.stdout
    sound = mailfleet("snapshot", "verify", "spring-sale#1")
    assert (sound.code, sound.stdout) == (0, "spring-sale#1 phase 1: sound, 30 frozen and 0 excluded\n")
    with read(campaign) as connection:
        assert connection.scalar(select(sends.c.claim)) is None

    (folder,) = settings.storage.glob("snapshots/spring-sale/1/1")
    next(folder.glob("shard=*/*")).write_bytes(b"x")
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
    damaged = mailfleet("snapshot", "verify", "spring-sale#1")
    assert damaged.code == 1
    assert "the checksum isn't the manifest's" in damaged.stderr
    assert "manifest.json: isn't the one that was published" in damaged.stderr


def test_a_dry_run_has_an_edition_of_its_own(campaign: Engine, mailfleet: Mailfleet) -> None:
    assert "spring-sale#dry-1 phase 1" in mailfleet("snapshot", "build", "spring-sale#1", "--mode", "dry-run").stdout
    with read(campaign) as connection:
        assert connection.execute(select(sends.c.edition)).scalars().all() == ["dry-1"]
        assert len(connection.execute(select(snapshots)).all()) == 1


def test_errors_are_sentences(campaign: Engine, mailfleet: Mailfleet) -> None:
    assert "no published snapshot" in mailfleet("snapshot", "show", "spring-sale#1").stderr
    assert "campaign#edition" in mailfleet("snapshot", "show", "spring-sale").stderr
    assert "did you mean spring-sale" in mailfleet("snapshot", "build", "spring-sal#1").stderr
    mailfleet("snapshot", "build", "spring-sale#1")
    assert "published are: 1" in mailfleet("snapshot", "show", "spring-sale#1", "--phase", "7").stderr


def test_expire_shows_first_and_does_it_when_told_to(campaign: Engine, mailfleet: Mailfleet) -> None:
    mailfleet("snapshot", "build", "spring-sale#1", "--mode", "dry-run")
    assert "nothing to blank" in mailfleet("snapshot", "expire", "--older-than", "400d").stdout
    with write(campaign) as connection:
        connection.execute(update(snapshots).values(published_at=now() - timedelta(days=500)))
    held = mailfleet("snapshot", "expire", "--older-than", "400d")
    assert (held.code, "stays, its send isn't over" in held.stdout) == (0, True)
    with write(campaign) as connection:
        connection.execute(update(sends).values(state="finished"))
        connection.execute(update(shards).values(state="settled"))
    assert "would be blanked" in mailfleet("snapshot", "expire", "--older-than", "400").stdout
    assert mailfleet("snapshot", "verify", "spring-sale#dry-1").stdout.endswith("30 frozen and 0 excluded\n")
    assert "30 rows blanked" in mailfleet("snapshot", "expire", "--older-than", "400d", "--yes").stdout
    assert mailfleet("snapshot", "verify", "spring-sale#dry-1").code == 0
    assert "blanked           30  expired on" in mailfleet("snapshot", "show", "spring-sale#dry-1").stdout
    assert mailfleet("snapshot", "expire", "--older-than", "a year").code == 2
