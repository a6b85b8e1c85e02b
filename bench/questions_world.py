"""Two published snapshots of made-up people, written by the writers of real ones: what questions are measured on.

``spring-sale#1`` holds ``rows`` people. A month later ``spring-sale#2`` has lost 4 % of them (a quarter suppressed, a
quarter gone from the contacts, half no longer matching) and won as many. The database knows those whom a question looks
up there: the ones who no longer match.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import Engine, insert

from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.files import replace_file
from mailer_lib.audience.freezing import EXCLUDED_SCHEMA
from mailer_lib.audience.manifest import ColumnEntry, Counts, CriteriaText, FileEntry, Manifest, RangeRead, ShardEntry
from mailer_lib.audience.people_files import PeopleWriter
from mailer_lib.audience.plan import PLAN_FILE, Inputs, PlanSource, SnapshotPlan, id_ranges, range_count
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.database.engine import write
from mailer_lib.database.schema import attribute_types, campaigns, contacts, sending_pools, sends, shards, snapshots
from mailer_lib.settings import Settings
from mailer_lib.shard.files import shard_schema, write_parquet, write_shard
from mailer_lib.terms import AttributeType, ExclusionReason

AS_OF = datetime(2026, 10, 1, 8, tzinfo=UTC)
CAMPAIGN = "spring-sale"
KNOWN, STRANGER = "lea@gmail.com", "nobody@gmail.com"
ATTRIBUTES = {
    "city": AttributeType.TEXT,
    "customer_since": AttributeType.DATE,
    "interests": AttributeType.TEXT_LIST,
    "points": AttributeType.NUMBER,
    "size": AttributeType.ENUM,
    "vip": AttributeType.BOOLEAN,
}
RULES = {
    "combinator": "and",
    "rules": [
        {"field": "list", "operator": "=", "value": "newsletter"},
        {"field": "attribute.points", "operator": ">=", "value": 100},
        {"field": "attribute.city", "operator": "!=", "value": "Town 1"},
    ],
}
_SHARES = {
    "gmail.com": 0.6,
    "outlook.com": 0.08,
    "hotmail.com": 0.08,
    "yahoo.com": 0.06,
    "gmx.de": 0.03,
    "web.de": 0.03,
}
_PROVIDERS = {"gmail.com": "gmail", "outlook.com": "outlook", "hotmail.com": "outlook", "yahoo.com": "yahoo"}
_OTHER_DOMAINS = 5_000


@dataclass(frozen=True)
class Expected:
    """What a comparison of the two must find."""

    removed: int
    added: int


def build(engine: Engine, settings: Settings, rows: int, seed: int = 1) -> Expected:
    """Both snapshots, their rows in the database, and the contacts that questions look up."""
    random = np.random.default_rng(seed)
    changed = rows // 25
    late = changed // 2  # contacts made after the first snapshot
    count = rows + changed + rows // 10
    people = _People.make(random, count, settings)
    first = np.arange(rows)
    won_back, newly, new = _cut(np.arange(rows, rows + changed), changed // 4, changed // 4)
    assert len(new) == changed - 2 * (changed // 4)
    lost = random.choice(np.arange(1, rows), changed, replace=False)  # the first one, whom questions ask for, stays
    suppressed, gone, unmatched = _cut(lost, changed // 4, changed // 4)
    stayed = np.setdiff1d(first, lost, assume_unique=True)
    barred = np.arange(rows + changed, count)
    ids = np.arange(1, count + 1)
    ids[new] += count  # after ``max_contact_id`` of the first
    list_id, campaign_id = _campaign(engine)
    made = _Maker(engine, settings, people, ids, list_id, campaign_id)
    made.publish(1, first, np.concatenate([won_back, barred]), count, AS_OF)
    second = np.concatenate([stayed, won_back, newly, new])
    made.publish(2, second, np.concatenate([suppressed, barred]), 2 * count, AS_OF + timedelta(days=30))
    _contacts(engine, people, ids, np.concatenate([[0], unmatched]))
    assert late <= len(new) + 1 and len(gone) == changed // 4
    return Expected(changed, changed)


def _cut(values: NDArray[Any], *sizes: int) -> tuple[NDArray[Any], ...]:
    return tuple(np.split(values, np.cumsum(sizes)))


@dataclass(frozen=True)
class _People:
    hashes: NDArray[np.uint8]  # (people, 16)
    table: pa.Table  # all columns of a shard but id, key and hash

    @classmethod
    def make(cls, random: np.random.Generator, count: int, settings: Settings) -> "_People":
        hashes = np.frombuffer(random.bytes(16 * count), np.uint8).reshape(-1, 16).copy()
        hashes[0] = np.frombuffer(settings.identity().address_hash(KNOWN), np.uint8)
        domains = [*_SHARES, *(f"d{n}.example" for n in range(_OTHER_DOMAINS))]
        rest = (1 - sum(_SHARES.values())) / _OTHER_DOMAINS
        at = random.choice(len(domains), count, p=[*_SHARES.values(), *[rest] * _OTHER_DOMAINS])
        local = np.char.add("person", np.arange(count).astype(str))
        address = np.char.add(np.char.add(local, "@"), np.array(domains)[at])

        def pick(values: list[str], missing: float = 0.0) -> pa.Array:
            codes = random.integers(0, len(values), count)
            return _texts(values, codes, random.random(count) < missing if missing else None)

        days = np.datetime64("2014-01-01") + np.arange(4000)
        many = random.integers(0, 4, count)
        ends = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
        listed = _texts(["hiking", "climbing", "running", "cooking", "music", "art"], random.integers(0, 6, ends[-1]))
        no_points, points = random.random(count) < 0.2, np.round(random.exponential(500, count))
        names = {
            "address": pa.array(address),
            "domain": _texts(domains, at),
            "provider": _texts(["gmail", "other", "outlook", "yahoo"], _provider_codes(domains)[at]),
            "variant": pa.array(random.integers(0, 2, count), pa.int8()),
            "given_name": pick([f"Given {n}" for n in range(800)], 0.2),
            "family_name": pick([f"Family {n}" for n in range(3000)], 0.2),
            "locale": pick(["de", "de-AT", "en", "en-GB", "fr", "it"], 0.1),
            "timezone": pick(["Europe/Berlin", "Europe/Vienna", "Europe/London"], 0.3),
            "attribute.city": pick([f"Town {n}" for n in range(400)], 0.1),
            "attribute.customer_since": pick([str(day) for day in days], 0.05),
            "attribute.interests": pa.ListArray.from_arrays(pa.array(ends), listed),
            "attribute.points": pa.array(points, mask=no_points),
            "attribute.size": pick(["small", "medium", "large"], 0.5),
            "attribute.vip": pa.array(random.random(count) < 0.05),
        }
        return cls(hashes, pa.table(names))


def _texts(values: list[str], codes: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=missing), pa.array(values)).cast(pa.string())


def _provider_codes(domains: list[str]) -> NDArray[np.int64]:
    names = ["gmail", "other", "outlook", "yahoo"]
    return np.array([names.index(_PROVIDERS.get(domain, "other")) for domain in domains])


def _hash_column(hashes: NDArray[np.uint8]) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(hashes))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(hashes), [None, buffer])


@dataclass(frozen=True)
class _Maker:
    engine: Engine
    settings: Settings
    people: _People
    ids: NDArray[np.int64]
    list_id: int
    campaign_id: int

    def publish(self, number: int, frozen: NDArray[Any], excluded: NDArray[Any], last_id: int, as_of: datetime) -> None:
        edition, shard_count = str(number), -(-len(frozen) // self.settings.shard_rows)
        folder = self.settings.storage / "snapshots" / CAMPAIGN / edition / "1"
        (folder / "excluded").mkdir(parents=True)
        send_id = self._send(edition, as_of)
        with PeopleWriter(folder) as everybody:
            entries = list(self._shards(folder, frozen, shard_count, everybody))
            listed = everybody.entries()
        left_out = list(self._excluded(folder, excluded))
        names = shard_schema(ATTRIBUTES)
        inputs = Inputs(
            source=PlanSource.CRITERIA,
            criteria_name="big-spenders",
            rules=RULES,
            list_id=self.list_id,
            attributes=ATTRIBUTES,
            weights=(1, 1),
        )
        ranges = id_ranges(1, last_id, range_count(len(frozen)))
        plan = SnapshotPlan(
            send_id=send_id,
            campaign=CAMPAIGN,
            edition=edition,
            phase=1,
            inputs=inputs,
            as_of=as_of,
            max_contact_id=last_id,
            matching=len(frozen) + len(excluded),
            shards=shard_count,
            ranges=ranges,
        )
        replace_file(folder / PLAN_FILE, plan.model_dump_json(indent=1).encode())
        counts = Counts(
            matching=len(frozen) + len(excluded),
            frozen=len(frozen),
            excluded=len(excluded),
            by_reason={"suppressed-address": len(excluded)},
            by_provider={},
            by_variant=(len(frozen), 0),
        )
        manifest = Manifest(
            campaign=CAMPAIGN,
            edition=edition,
            phase=1,
            send_id=send_id,
            list_id=self.list_id,
            criteria=CriteriaText(source="criteria", name="big-spenders", rules=RULES, sha256=""),
            weights=(1, 1),
            as_of=as_of,
            max_contact_id=last_id,
            published_at=as_of,
            shard_count=shard_count,
            columns=tuple(ColumnEntry(name=f.name, type=str(f.type)) for f in names),
            ranges=tuple(
                RangeRead(
                    index=r.index,
                    first=r.first,
                    last=r.last,
                    read_at=as_of,
                    read_s=0,
                    matched=0,
                    selected=0,
                    excluded=0,
                )
                for r in ranges
            ),
            shards=tuple(entries),
            excluded=tuple(left_out),
            people=listed,
            counts=counts,
        )
        replace_file(folder / manifests.MANIFEST_FILE, manifest.dump())
        self._record(send_id, folder, manifest)

    def _shards(self, folder: Path, frozen: NDArray[Any], shard_count: int, everybody: PeopleWriter) -> Any:
        """In each shard in no order at all: the worst that a Parquet reader can meet."""
        number = self.people.hashes[frozen, :4].copy().view(">u4").reshape(-1) % shard_count
        order = np.argsort(number, kind="stable")
        edges = np.searchsorted(number[order], np.arange(shard_count + 1))
        rows = frozen[order]
        keys = np.frombuffer(np.random.default_rng(len(rows)).bytes(16 * len(rows)), np.uint8).reshape(-1, 16)
        schema = shard_schema(ATTRIBUTES)
        table = self.people.table.take(pa.array(rows))
        for name, column in (
            ("contact_id", pa.array(self.ids[rows])),
            ("message_key", _hash_column(keys)),
            ("address_hash", _hash_column(self.people.hashes[rows])),
        ):
            table = table.append_column(name, column)
        table = table.select(schema.names).cast(schema)
        for shard in range(shard_count):
            part = table.slice(int(edges[shard]), int(edges[shard + 1] - edges[shard]))
            if part.num_rows:
                everybody.add(part)
                name = f"shard={shard:04d}/part-0.parquet"
                yield ShardEntry(number=shard, path=name, rows=part.num_rows, sha256=write_shard(folder / name, part))

    def _excluded(self, folder: Path, excluded: NDArray[Any]) -> Any:
        rows = excluded[np.argsort(self.ids[excluded])]
        for index, part in enumerate(np.array_split(rows, range_count(len(self.ids)))):
            reasons = np.full(len(part), int(ExclusionReason.SUPPRESSED_ADDRESS), np.int32)
            columns = [pa.array(self.ids[part]), _hash_column(self.people.hashes[part]), pa.array(reasons)]
            name = f"excluded/range-{index:04d}.parquet"
            sha256 = write_parquet(folder / name, pa.table(columns, schema=EXCLUDED_SCHEMA))
            yield FileEntry(path=name, rows=len(part), sha256=sha256)

    def _send(self, edition: str, at: datetime) -> int:
        values = {"edition": edition, "mode": "send", "state": "finished", "created_at": at}
        with write(self.engine) as connection:
            made = connection.execute(insert(sends).values(campaign_id=self.campaign_id, **values))
            return int(made.inserted_primary_key[0])

    def _record(self, send_id: int, folder: Path, manifest: Manifest) -> None:
        with write(self.engine) as connection:
            made = connection.execute(
                insert(snapshots).values(
                    send_id=send_id,
                    phase=1,
                    state="published",
                    path=str(folder.relative_to(self.settings.storage)),
                    as_of=manifest.as_of,
                    max_contact_id=manifest.max_contact_id,
                    manifest_sha256=manifests.sha256(manifest),
                    frozen=manifest.counts.frozen,
                    excluded=manifest.counts.excluded,
                    created_at=manifest.as_of,
                    published_at=manifest.published_at,
                )
            )
            mine = {"snapshot_id": made.inserted_primary_key[0], "send_id": send_id, "state": "open"}
            of_entry = {"number", "path", "rows", "sha256"}
            connection.execute(insert(shards), [mine | entry.model_dump(include=of_entry) for entry in manifest.shards])


def _campaign(engine: Engine) -> tuple[int, int]:
    with write(engine) as connection:
        list_id = ensure_list(connection, "newsletter", "News")
        connection.execute(
            insert(attribute_types), [{"key": k, "type": t, "created_at": AS_OF} for k, t in ATTRIBUTES.items()]
        )
        pool = connection.execute(insert(sending_pools).values(name="questions", created_at=AS_OF))
        made = connection.execute(
            insert(campaigns).values(
                name=CAMPAIGN,
                definition={},
                list_id=list_id,
                pool_id=pool.inserted_primary_key[0],
                created_at=AS_OF,
                updated_at=AS_OF,
                updated_by="bench",
            )
        )
        return list_id, int(made.inserted_primary_key[0])


def _contacts(engine: Engine, people: _People, ids: NDArray[np.int64], places: NDArray[Any]) -> None:
    at = AS_OF - timedelta(days=100)
    chosen = people.table.take(pa.array(places)).select(["address", "domain", "provider"]).to_pylist()
    rows = [
        {
            "id": int(ids[place]),
            "address_hash": people.hashes[place].tobytes(),
            "address": KNOWN if place == 0 else row["address"],
            "address_given": KNOWN if place == 0 else row["address"],
            "domain": row["domain"],
            "provider": row["provider"],
            "attributes": {"points": 3},
            "created_at": at,
            "updated_at": at,
        }
        for place, row in zip(places.tolist(), chosen, strict=True)
    ]
    with write(engine) as connection:
        for first in range(0, len(rows), 5000):
            connection.execute(insert(contacts), rows[first : first + 5000])
