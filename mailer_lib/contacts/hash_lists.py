"""Suppression lists that others hand out as SHA-256 or MD5 hashes of addresses (docs/decisions/0206).

Our own hashes are keyed, so theirs can't be turned into ours: they are kept, and matched with contacts' addresses.
Whoever matches is suppressed by our hash, with reason ``imported`` and the list as its source; from then on that is a
suppression like any other. It happens to all contacts when a list is read, and to whomever an import brings later.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from mailer_lib.contacts.address import Address
from mailer_lib.contacts.imported import lift_source, suppress_imported
from mailer_lib.contacts.precedence import EVERYWHERE
from mailer_lib.database.bulk_lookup import IN_CHUNK
from mailer_lib.database.engine import now, read
from mailer_lib.database.retry import write_again
from mailer_lib.database.schema import contacts, hash_lists, listed_hashes, lists, suppressions
from mailer_lib.terms import HashAlgorithm, SuppressionReason

SCAN_ROWS = 5000
_PREFIX = "hashes:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX_DIGITS = {HashAlgorithm.SHA256: 64, HashAlgorithm.MD5: 32}
_HEX = re.compile(r"[0-9a-fA-F]+")

ProgressCall = Callable[[int, int | None], None]


class HashListError(ValueError):
    """No such list, or one that can't be; the sentence says what to do."""


@dataclass(frozen=True)
class HashList:
    id: int
    name: str
    algorithm: HashAlgorithm
    read_at: datetime

    @property
    def source(self) -> str:
        """What suppressions name that come of it."""
        return f"{_PREFIX}{self.name}"


def parse_digest(text: str, algorithm: HashAlgorithm) -> bytes:
    """A hash in hexadecimal digits of either case.

    Raises:
        HashListError: a sentence that doesn't repeat the text.
    """
    text = text.strip()
    digits = _HEX_DIGITS[algorithm]
    if _HEX.fullmatch(text) is None or len(text) != digits:
        hint = "; it is an address: import it without --hashes" if "@" in text else ""
        raise HashListError(f"it is not a {algorithm} hash of {digits} hexadecimal digits{hint}")
    return bytes.fromhex(text)


def digests(address: Address, algorithm: HashAlgorithm) -> frozenset[bytes]:
    """What others may have made of an address: trimmed and lower-cased, as it was given or as we keep it.

    The two differ only outside ASCII (``ß``, domains by IDNA).
    """
    make = hashlib.sha256 if algorithm is HashAlgorithm.SHA256 else _md5
    return frozenset(make(text.encode()).digest() for text in {address.given.strip().lower(), address.normalised})


def _md5(data: bytes) -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def all_hash_lists(connection: Connection) -> list[HashList]:
    """By name."""
    rows = connection.execute(select(hash_lists).order_by(hash_lists.c.name))
    return [HashList(row.id, row.name, HashAlgorithm(row.algorithm), row.read_at) for row in rows]


def hold_off(connection: Connection, list_ids: Sequence[int]) -> None:
    """Until this transaction, which brings contacts to these lists, has ended, ``apply_list`` doesn't begin its look.

    Rows of ``lists`` stand for it, because one that isn't there yet can't be locked. On SQLite writers exclude each
    other anyway.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(select(lists.c.id).where(lists.c.id.in_(list_ids)).with_for_update(read=True)).all()


def listed(
    connection: Connection, on: Sequence[HashList], people: Mapping[bytes, Address]
) -> dict[bytes, tuple[HashList, ...]]:
    """Whom of some people, by our hash, the lists name; but not whom an operator has let out since a list was read."""
    found: dict[bytes, tuple[HashList, ...]] = {}
    for algorithm in sorted({one.algorithm for one in on}):
        by_id = {one.id: one for one in on if one.algorithm is algorithm}
        theirs = {digest: key for key, address in people.items() for digest in digests(address, algorithm)}
        for chunk in _chunks(list(theirs)):
            query = select(listed_hashes.c.digest, listed_hashes.c.hash_list_id).where(
                listed_hashes.c.digest.in_(chunk), listed_hashes.c.hash_list_id.in_(by_id)
            )
            for digest, list_id in connection.execute(query):
                key = theirs[bytes(digest)]
                if by_id[list_id] not in found.get(key, ()):
                    found[key] = (*found.get(key, ()), by_id[list_id])
    let_out = _let_out(connection, list(found))
    kept = {
        key: tuple(one for one in naming if let_out.get((key, one.source), one.read_at) <= one.read_at)
        for key, naming in found.items()
    }
    return {key: naming for key, naming in kept.items() if naming}


def _let_out(connection: Connection, keys: Sequence[bytes]) -> dict[tuple[bytes, str], datetime]:
    """When a suppression of that person and source was lifted last, if none is active."""
    s = suppressions.c
    found: dict[tuple[bytes, str], datetime] = {}
    active: set[tuple[bytes, str]] = set()
    for chunk in _chunks(keys):
        query = select(s.address_hash, s.source, s.lifted_at).where(
            s.address_hash.in_(chunk), s.reason == SuppressionReason.IMPORTED.value, s.list_id == EVERYWHERE
        )
        for row in connection.execute(query):
            which = (bytes(row.address_hash), row.source or "")
            if row.lifted_at is None:
                active.add(which)
            else:
                found[which] = max(found.get(which, row.lifted_at), row.lifted_at)
    return {which: at for which, at in found.items() if which not in active}


def suppress_listed(connection: Connection, matches: Mapping[bytes, tuple[HashList, ...]], *, at: datetime) -> int:
    """Bar them everywhere. Returns how many people weren't barred by that list yet."""
    by_source: dict[str, list[bytes]] = {}
    for key, on in matches.items():
        for one in on:
            by_source.setdefault(one.source, []).append(key)
    new: set[bytes] = set()
    for source, keys in by_source.items():
        new |= suppress_imported(connection, keys, source=source, at=at)
    return len(new)


def open_list(engine: Engine, name: str, algorithm: HashAlgorithm) -> HashList:
    """The list of that name, made when it isn't there.

    Raises:
        HashListError: a name that a list can't have, or a list of another algorithm.
    """
    if _NAME.fullmatch(name) is None:
        raise HashListError(
            f"{name!r} can't be the name of a hash list: letters, digits, dot, hyphen, underscore; say --name NAME"
        )

    def work(connection: Connection) -> HashList:
        found = {one.name: one for one in all_hash_lists(connection)}.get(name)
        if found is None:
            values = {"name": name, "algorithm": algorithm.value, "read_at": now()}
            connection.execute(insert(hash_lists).values(**values))
            return next(one for one in all_hash_lists(connection) if one.name == name)
        if found.algorithm is not algorithm:
            raise HashListError(f"the list {name!r} is of {found.algorithm} hashes; say another --name")
        return found

    return write_again(engine, work)


def apply_list(engine: Engine, one: HashList, address_hash: Callable[[str], bytes], progress: ProgressCall) -> int:
    """Bar all contacts whom the list names; returns how many weren't barred by it yet.

    First it waits for the batches of imports that may have looked before the last hash was there (``hold_off``): whom
    they bring is seen now, and whoever comes later is looked up by the import.
    """
    moment = now()

    def seal(connection: Connection) -> None:
        connection.execute(select(lists.c.id).order_by(lists.c.id).with_for_update()).all()
        connection.execute(update(hash_lists).where(hash_lists.c.id == one.id).values(read_at=moment))

    write_again(engine, seal)
    one = HashList(one.id, one.name, one.algorithm, moment)
    barred = seen = 0
    for people in _everybody(engine):
        with read(engine) as connection:
            matches = listed(connection, [one], {address_hash(who.normalised): who for who in people})
        if matches:
            barred += write_again(engine, partial(suppress_listed, matches=matches, at=moment))
        seen += len(people)
        progress(seen, None)
    return barred


def _everybody(engine: Engine) -> Iterator[list[Address]]:
    c, last = contacts.c, 0
    while True:
        query = select(c.id, c.address_given, c.address, c.domain).where(c.id > last).order_by(c.id).limit(SCAN_ROWS)
        with read(engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            return
        last = rows[-1].id
        yield [Address(row.address_given, row.address, "", row.domain) for row in rows]


def drop_list(engine: Engine, name: str, *, by: str) -> tuple[int, int]:
    """Forget a list and lift what came of it: how many hashes, how many suppressions. Other reasons to bar stay.

    Raises:
        HashListError: there is none of that name.
    """

    def work(connection: Connection) -> tuple[int, int]:
        one = next((one for one in all_hash_lists(connection) if one.name == name), None)
        if one is None:
            raise HashListError(f"there is no hash list {name!r}; `mailfleet suppress lists` names them")
        gone = connection.execute(delete(listed_hashes).where(listed_hashes.c.hash_list_id == one.id)).rowcount
        connection.execute(delete(hash_lists).where(hash_lists.c.id == one.id))
        return gone, lift_source(connection, one.source, by=by)

    return write_again(engine, work)


def forget_person(connection: Connection, address: Address) -> int:
    """An erased person's hashes: they are barred by our own now. Returns how many there were."""
    mine = [digest for algorithm in HashAlgorithm for digest in digests(address, algorithm)]
    return connection.execute(delete(listed_hashes).where(listed_hashes.c.digest.in_(mine))).rowcount


def lists_naming(connection: Connection, address: Address) -> list[str]:
    """Names of the lists that name an address, whether or not it is let out."""
    mine = [digest for algorithm in HashAlgorithm for digest in digests(address, algorithm)]
    query = (
        select(hash_lists.c.name)
        .join_from(hash_lists, listed_hashes, hash_lists.c.id == listed_hashes.c.hash_list_id)
        .where(listed_hashes.c.digest.in_(mine))
    )
    return sorted(set(connection.scalars(query)))


def sizes(connection: Connection) -> dict[int, int]:
    """How many hashes each list has."""
    h = listed_hashes.c
    return {row[0]: row[1] for row in connection.execute(select(h.hash_list_id, func.count()).group_by(h.hash_list_id))}


def _chunks(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(values), IN_CHUNK):
        yield values[start : start + IN_CHUNK]
