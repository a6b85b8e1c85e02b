"""Whom a link stands for: from a token to the send, its list, and the person's address hash.

A token holds the contact's id and the message key, not the address. The contact's own hash is believed only when the
message key can be made from it; else (erased, merged, a seed) the frozen row of the send is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import campaigns, contacts, lists, send_links, sends, shards, snapshots
from mailer_lib.identity import message_key
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import Recipient
from mailer_lib.shard.store import store
from mailer_lib.terms import SnapshotState
from mailer_lib.tokens import Token


@dataclass(frozen=True)
class SendFacts:
    campaign: str
    edition: str
    list_id: int
    list_title: str
    content_hash: str | None
    decided_variant: int | None = None  # what the rest of a test slice got

    @property
    def ref(self) -> str:
        return f"{self.campaign}#{self.edition}"


@dataclass(frozen=True)
class Person:
    """``address`` is for showing to its owner, masked (``masked``); None when only the hash is known."""

    address_hash: bytes
    address: str | None = None
    locale: str | None = None


def send_facts(connection: Connection, send_id: int) -> SendFacts | None:
    row = connection.execute(
        select(
            campaigns.c.name,
            sends.c.edition,
            campaigns.c.list_id,
            lists.c.title,
            sends.c.content_hash,
            sends.c.decided_variant,
        )
        .join_from(sends, campaigns)
        .join(lists, lists.c.id == campaigns.c.list_id)
        .where(sends.c.id == send_id)
    ).first()
    return None if row is None else SendFacts(*row)


def person_of(connection: Connection, settings: Settings, token: Token, facts: SendFacts) -> Person | None:
    """Who was sent the message of this token; None when nothing here knows them any more."""
    send_key = settings.identity().send_key(facts.campaign, facts.edition)
    row = connection.execute(
        select(contacts.c.address_hash, contacts.c.address_given, contacts.c.locale).where(
            contacts.c.id == token.contact_id
        )
    ).first()
    if row is not None and message_key(send_key, bytes(row.address_hash)) == token.message_key:
        return Person(bytes(row.address_hash), row.address_given, row.locale)
    frozen = find_recipient(connection, settings, token)  # by message key: sure to be theirs
    return None if frozen is None else Person(frozen.address_hash, frozen.address, frozen.locale)


def find_recipient(
    connection: Connection, settings: Settings, token: Token, address_hash: bytes | None = None
) -> Recipient | None:
    """The frozen row of a message. With ``address_hash`` the shard that must hold it is read first."""
    files = _shard_files(connection, token.send_id)
    if address_hash is not None:
        head = int.from_bytes(address_hash[:4], "big")
        files.sort(key=lambda file: head % file.shards != file.number % file.shards)
    return _first(settings, files, lambda recipient: recipient.message_key == token.message_key)


def sample_recipient(connection: Connection, settings: Settings, send_id: int, contact_id: int) -> Recipient | None:
    """A frozen row to show a preview with: that of ``contact_id``, or with 0 the first."""
    return _first(
        settings,
        _shard_files(connection, send_id),
        lambda recipient: bool(recipient.address) and contact_id in (0, recipient.contact_id),  # not an erased one's
    )


@dataclass(frozen=True)
class _ShardFile:
    path: str  # below the snapshot store
    number: int
    shards: int  # of its snapshot


def _shard_files(connection: Connection, send_id: int) -> list[_ShardFile]:
    rows = connection.execute(
        select(snapshots.c.id, snapshots.c.path, snapshots.c.shard_count, shards.c.number, shards.c.path.label("file"))
        .join_from(snapshots, shards, shards.c.snapshot_id == snapshots.c.id)
        .where(snapshots.c.send_id == send_id, snapshots.c.state == SnapshotState.PUBLISHED.value)
        .order_by(snapshots.c.phase, shards.c.number)
    ).all()
    count = {row.id: row.shard_count or row.number + 1 for row in rows}
    return [_ShardFile(f"{row.path}/{row.file}", row.number, count[row.id]) for row in rows]


def _first(settings: Settings, files: list[_ShardFile], wanted: Callable[[Recipient], bool]) -> Recipient | None:
    from mailer_lib.shard.files import ShardError, read_shard

    for file in files:
        try:
            for _, recipient in read_shard(store(settings) / file.path):
                if wanted(recipient):
                    return recipient
        except ShardError:  # the snapshot has expired
            continue
    return None


def masked(address: str | None) -> str | None:
    """``a•••@example.com``: enough for its owner, little for who was forwarded the link."""
    if not address or "@" not in address:
        return None
    local_part, _, domain = address.rpartition("@")
    return f"{local_part[:1]}•••@{domain}"


class Links:
    """Targets of tracked links; frozen with the send, so they are kept once read."""

    LIMIT = 50_000

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, int], str] = {}

    def known(self, token: Token) -> str | None:
        return self._known.get((token.send_id, token.link))

    def find(self, token: Token) -> str | None:
        with read(self._engine) as connection:
            url = connection.scalar(
                select(send_links.c.url).where(send_links.c.send_id == token.send_id, send_links.c.number == token.link)
            )
        if url is not None:
            if len(self._known) >= self.LIMIT:
                self._known.clear()
            self._known[token.send_id, token.link] = url
        return url
