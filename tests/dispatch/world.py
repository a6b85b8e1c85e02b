"""A published snapshot without the road that leads to it: rows and files as the stages before dispatch leave them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine, insert, select

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.files import replace_file
from mailer_lib.audience.manifest import Counts, CriteriaText, Manifest, ShardEntry
from mailer_lib.audience.plan import Slice
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import (
    campaigns,
    dispatch_servers,
    leases,
    lists,
    sending_pools,
    sends,
    shards,
    snapshots,
    templates,
)
from mailer_lib.dispatch.plan import Slot
from mailer_lib.identity import message_key
from mailer_lib.message.campaign import Campaign
from mailer_lib.settings import Settings
from mailer_lib.shard.files import shard_schema, write_shard
from mailer_lib.shard.recipient import REST
from mailer_lib.shard.store import store
from mailer_lib.terms import Control, SendMode, SendState, ServerState, ShardState, SnapshotState

PROVIDERS = ("gmail", "outlook", "yahoo", "other")


@dataclass
class World:
    """One campaign, one sending pool, some servers, and sends made on demand."""

    engine: Engine
    settings: Settings
    campaign: str = "spring-sale"
    campaign_id: int = 0
    list_id: int = 0
    pool_id: int = 0
    servers: list[int] = field(default_factory=list)

    def slot(self, number: int = 0, slot: int = 0) -> Slot:
        return Slot(f"local-{number + 1}", self.servers[number], slot, f"local-{number + 1}")

    def send(self, *, edition: str = "1", state: SendState = SendState.RUNNING, **values: Any) -> int:
        at = now()
        row = {
            "campaign_id": self.campaign_id,
            "edition": edition,
            "mode": SendMode.SEND,
            "state": state,
            "control": Control.RUN,
            "created_at": at,
            "launched_by": "ann",
            **values,
        }
        with write(self.engine) as connection:
            return int(connection.execute(insert(sends).values(row)).inserted_primary_key[0])

    def publish(
        self,
        send_id: int,
        sizes: list[int],
        *,
        phase: int = 1,
        people_from: int = 0,
        slices: list[int] | None = None,
        rule: Slice | None = None,
    ) -> str:
        """A phase with shards of these sizes, files included. Returns its path below the store.

        ``slices``: how many of each shard's rows are the test slice.
        """
        rule = rule or Slice(percent=10, through="0" * 16) if slices is not None else None
        identity = self.settings.identity()
        with read(self.engine) as connection:
            edition = connection.scalar(select(sends.c.edition).where(sends.c.id == send_id))
        send_key = identity.send_key(self.campaign, edition)
        path = f"snapshots/{self.campaign}/{edition}/{phase}"
        folder = store(self.settings) / path
        entries, person = [], people_from
        by_provider: dict[str, int] = {}
        for number, size in enumerate(sizes):
            rows = []
            sliced = None if slices is None else slices[number]
            for place in range(size):
                provider = PROVIDERS[person % len(PROVIDERS)]
                address = f"p{person}@{provider}.example"
                address_hash = identity.address_hash(address)
                by_provider[provider] = by_provider.get(provider, 0) + 1
                rows.append(
                    {
                        "contact_id": person + 1,
                        "message_key": message_key(send_key, address_hash),
                        "address_hash": address_hash,
                        "address": address,
                        "domain": f"{provider}.example",
                        "provider": provider,
                        "variant": person % 2 if sliced is None or place < sliced else REST,
                        "given_name": f"P{person}",
                        "family_name": None,
                        "locale": None,
                        "timezone": None,
                    }
                )
                person += 1
            name = f"shard={number:04d}/part-0.parquet"
            sha256 = write_shard(folder / name, pa.Table.from_pylist(rows, schema=shard_schema()))
            entries.append(ShardEntry(path=name, rows=size, sha256=sha256, number=number, slice_rows=sliced))
        at = now()
        manifest = Manifest(
            campaign=self.campaign,
            edition=edition,
            phase=phase,
            send_id=send_id,
            list_id=self.list_id,
            criteria=CriteriaText(source="criteria", name="all", rules={}, sha256=""),
            weights=(1, 1),
            test_slice=rule,
            as_of=at,
            max_contact_id=person,
            published_at=at,
            shard_count=max(1, len(sizes)),
            columns=(),
            ranges=(),
            shards=tuple(entries),
            excluded=(),
            counts=Counts(
                matching=sum(sizes),
                frozen=sum(sizes),
                excluded=0,
                by_reason={},
                by_provider=by_provider,
                by_variant=(sum(sizes), 0),
            ),
        )
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "manifest.json", manifest.dump())
        with write(self.engine) as connection:
            snapshot_id = connection.execute(
                insert(snapshots).values(
                    send_id=send_id,
                    phase=phase,
                    state=SnapshotState.PUBLISHED,
                    path=path,
                    as_of=at,
                    max_contact_id=person,
                    manifest_sha256=manifests.sha256(manifest),
                    frozen=sum(sizes),
                    excluded=0,
                    created_at=at,
                    published_at=at,
                )
            ).inserted_primary_key[0]
            for entry in entries:
                connection.execute(
                    insert(shards).values(
                        snapshot_id=snapshot_id,
                        send_id=send_id,
                        number=entry.number,
                        path=entry.path,
                        rows=entry.rows,
                        slice_rows=entry.slice_rows,
                        sha256=entry.sha256,
                        state=ShardState.OPEN,
                    )
                )
        return path

    def shard_states(self, send_id: int) -> list[tuple[str, int, int]]:
        """(state, epoch, next_row) by number."""
        with read(self.engine) as connection:
            return [
                (row.state, row.epoch, row.next_row)
                for row in connection.execute(
                    select(shards).where(shards.c.send_id == send_id).order_by(shards.c.snapshot_id, shards.c.number)
                )
            ]

    def granted_rows(self, send_id: int) -> dict[int, list[tuple[int, int, int]]]:
        """(epoch, first_row, granted_through) of every lease, by shard id, oldest first."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        with read(self.engine) as connection:
            query = select(leases).where(leases.c.send_id == send_id).order_by(leases.c.shard_id, leases.c.epoch)
            for row in connection.execute(query):
                found.setdefault(row.shard_id, []).append((row.epoch, row.first_row, row.granted_through))
        return found


def definition(name: str, **more: Any) -> dict[str, Any]:
    """A campaign as the database holds it."""
    campaign = {
        "name": name,
        "list": "newsletter",
        "criteria": "everybody",
        "from": {"name": "Fjord & Fern", "address": "news@news.fjordfern.example"},
        "subject": "Hello",
        "template": {"kind": "html", "name": name},
        "sending_domain": "news.fjordfern.example",
        **more,
    }
    return Campaign.model_validate(campaign).definition()


def make_world(engine: Engine, settings: Settings, servers: int = 2) -> World:
    at = now()
    world = World(engine, settings)
    with write(engine) as connection:

        def made(table: Any, **values: Any) -> int:
            return int(connection.execute(insert(table).values(**values)).inserted_primary_key[0])

        world.pool_id = made(sending_pools, name="main", created_at=at)
        world.list_id = made(lists, name="newsletter", title="Fjord & Fern News", created_at=at)
        made(
            templates,
            name=world.campaign,
            kind="html",
            source="<p>Hello</p>",
            text_source="Hello",
            updated_at=at,
            updated_by="test",
        )
        world.campaign_id = made(
            campaigns,
            name=world.campaign,
            definition=definition(world.campaign),
            list_id=world.list_id,
            pool_id=world.pool_id,
            created_at=at,
            updated_at=at,
            updated_by="test",
        )
        for number in range(servers):
            world.servers.append(
                made(
                    dispatch_servers,
                    name=f"local-{number + 1}",
                    pool_id=world.pool_id,
                    state=ServerState.ACTIVE,
                    channel="local",
                    slots=1,
                    mta="relay",
                    smtp_host="127.0.0.1",
                    smtp_port=25,
                    smtp_security="none",
                    helo_name="mail.example",
                    connections=2,
                    created_at=at,
                    updated_at=at,
                )
            )
    return world
