"""A small installation for the web tests: one list, one campaign, one send with a frozen message, some people."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
from sqlalchemy import Engine, insert, select

from mailer_lib import tokens
from mailer_lib.contacts.address import normalise
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import (
    campaigns,
    consent_events,
    contacts,
    lists,
    send_links,
    sending_pools,
    sends,
    shards,
    snapshots,
    subscriptions,
    suppressions,
)
from mailer_lib.identity import message_key
from mailer_lib.message.bundle import Bundle, BundleVariant, Mailbox
from mailer_lib.settings import Settings
from mailer_lib.shard.files import shard_schema, write_shard
from mailer_lib.tokens import Token, TokenKind

LINKS = {1: "https://shop.example/tent?a=1&b=2", 2: "javascript:alert(1)", 3: "ftp://files.example/x"}


@dataclass
class World:
    settings: Settings
    engine: Engine
    list_id: int
    send_id: int
    people: dict[str, int]  # address → contact id

    def hash_of(self, address: str) -> bytes:
        return self.settings.identity().address_hash(normalise(address).normalised)

    def key_of(self, address: str) -> bytes:
        return message_key(self.settings.identity().send_key("spring-sale", "1"), self.hash_of(address))

    def token(self, kind: TokenKind, address: str, link: int = 0, contact_id: int | None = None) -> str:
        key = tokens.signing_key(self.settings.tokens(), kind, self.send_id)
        person = self.people.get(address, 0) if contact_id is None else contact_id
        return tokens.sign(key, Token(kind, self.send_id, person, self.key_of(address), link))

    def confirm_token(self, address: str) -> str:
        key = tokens.signing_key(self.settings.tokens(), TokenKind.CONFIRM, self.list_id)
        return tokens.sign(
            key, Token(TokenKind.CONFIRM, self.list_id, self.people.get(address, 0), self.hash_of(address))
        )

    def state(self, address: str) -> str | None:
        with read(self.engine) as connection:
            return connection.scalar(
                select(subscriptions.c.state).where(subscriptions.c.contact_id == self.people[address])
            )

    def suppressed(self, address: str) -> list[tuple[str, int]]:
        with read(self.engine) as connection:
            rows = connection.execute(
                select(suppressions.c.reason, suppressions.c.list_id).where(
                    suppressions.c.address_hash == self.hash_of(address), suppressions.c.lifted_at.is_(None)
                )
            )
            return [(row.reason, row.list_id) for row in rows]

    def evidence(self, address: str) -> list[tuple[str, str]]:
        with read(self.engine) as connection:
            rows = connection.execute(
                select(consent_events.c.action, consent_events.c.method)
                .where(consent_events.c.address_hash == self.hash_of(address))
                .order_by(consent_events.c.id)
            )
            return [(row.action, row.method) for row in rows]

    def events(self) -> list[str]:
        return [
            line
            for file in sorted((self.settings.storage / "events" / "raw").rglob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]


def make_world(settings: Settings, engine: Engine) -> World:
    at = now()
    asked = datetime.now(UTC) - timedelta(days=2)
    with write(engine) as c:
        list_id = _id(c.execute(insert(lists).values(name="newsletter", title="Fjord & Fern News", created_at=at)))
        pool_id = _id(c.execute(insert(sending_pools).values(name="main", created_at=at)))
        campaign_id = _id(
            c.execute(
                insert(campaigns).values(
                    name="spring-sale",
                    definition={},
                    list_id=list_id,
                    pool_id=pool_id,
                    created_at=at,
                    updated_at=at,
                    updated_by="test",
                )
            )
        )
        send_id = _id(
            c.execute(
                insert(sends).values(
                    campaign_id=campaign_id, edition="1", mode="send", state="running", control="run", created_at=at
                )
            )
        )
        for number, url in LINKS.items():
            c.execute(insert(send_links).values(send_id=send_id, number=number, url=url))
        world = World(settings, engine, list_id, send_id, {})
        for address, locale, state in (
            ("ann@isp.example", "en", "confirmed"),
            ("bert@isp.example", "de-AT", "confirmed"),
            ("paula@isp.example", "fr", "pending"),
            ("léa@bücher.example", None, "confirmed"),
        ):
            world.people[address] = _id(
                c.execute(
                    insert(contacts).values(
                        address_given=address,
                        address=normalise(address).normalised,
                        address_hash=world.hash_of(address),
                        domain=normalise(address).domain,
                        provider="other",
                        given_name=address.split("@")[0].title(),
                        locale=locale,
                        attributes={},
                        state="active",
                        created_at=at,
                        updated_at=at,
                    )
                )
            )
            c.execute(
                insert(subscriptions).values(
                    contact_id=world.people[address],
                    list_id=list_id,
                    state=state,
                    updated_at=at,
                    confirmed_at=asked if state == "confirmed" else None,
                )
            )
            if state == "pending":
                c.execute(
                    insert(consent_events).values(
                        address_hash=world.hash_of(address),
                        list_id=list_id,
                        action="requested",
                        occurred_at=asked,
                        recorded_at=at,
                        method="form",
                    )
                )
    return world


def freeze(world: World) -> Bundle:
    """Store a bundle of two variants and a snapshot of one shard."""
    bundle = Bundle(
        campaign="spring-sale",
        edition="1",
        send_id=world.send_id,
        list_name="newsletter",
        list_title="Fjord & Fern News",
        sender=Mailbox(name="Fjord & Fern", address="news@news.fjordfern.example"),
        dkim_domain="news.fjordfern.example",
        dkim_selector="s1",
        return_path_domain="bounce.news.fjordfern.example",
        tracking_url="http://127.0.0.1:8025",
        variants=tuple(
            BundleVariant(
                name=name,
                weight=1,
                subject=f"{name}: spring for {{{{ contact.given_name }}}}",
                html=f"<html><body><h1>Hello {{{{ contact.given_name }}}}</h1><p>This is {name}</p>"
                '<a href="{{ unsubscribe_url }}">leave</a></body></html>',
                text=f"Hello {{{{ contact.given_name }}}}, this is {name}\n{{{{ unsubscribe_url }}}}\n",
            )
            for name in ("A", "B")
        ),
    )
    folder = world.settings.storage / "bundles" / bundle.content_hash
    folder.mkdir(parents=True)
    (folder / "message.json").write_bytes(bundle.dump())
    relative = Path("snapshots/spring-sale/1/1")
    rows = [
        {
            "contact_id": id_,
            "message_key": world.key_of(address),
            "address_hash": world.hash_of(address),
            "address": normalise(address).deliverable,
            "domain": normalise(address).domain,
            "provider": "other",
            "variant": id_ % 2,
            "given_name": "<b>" + address.split("@")[0].title(),
            "family_name": None,
            "locale": "en",
            "timezone": None,
        }
        for address, id_ in world.people.items()
    ]
    sha = write_shard(
        world.settings.storage / relative / "shard=0000" / "part-0.parquet",
        pa.Table.from_pylist(rows, schema=shard_schema()),
    )
    with write(world.engine) as c:
        c.execute(sends.update().where(sends.c.id == world.send_id).values(content_hash=bundle.content_hash))
        snapshot_id = _id(
            c.execute(
                insert(snapshots).values(
                    send_id=world.send_id,
                    phase=1,
                    state="published",
                    path=str(relative),
                    as_of=now(),
                    max_contact_id=99,
                    frozen=len(rows),
                    excluded=0,
                    created_at=now(),
                    published_at=now(),
                )
            )
        )
        c.execute(
            insert(shards).values(
                snapshot_id=snapshot_id,
                send_id=world.send_id,
                number=0,
                path="shard=0000/part-0.parquet",
                rows=len(rows),
                sha256=sha,
                state="open",
                next_row=0,
            )
        )
    return bundle


def _id(result) -> int:  # type: ignore[no-untyped-def]
    value: int = result.inserted_primary_key[0]
    return value
