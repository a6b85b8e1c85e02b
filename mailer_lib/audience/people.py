"""From a block of rows as they were read to people selected and people barred: pure, and no Python for each row.

One thing has no column function: an address that isn't plain (``_deliverable``), which ``contacts.address.normalise``
makes deliverable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mailer_lib.audience.freezing import EXCLUDED_SCHEMA, bytes_of, variants_of
from mailer_lib.contacts.address import AddressError, normalise
from mailer_lib.identity import joined_message_keys
from mailer_lib.shard.files import shard_schema
from mailer_lib.terms import AttributeType, ExclusionReason

SHARD: "pa.Field[Any]" = pa.field("shard", pa.uint32(), nullable=False)
BARRED_SCHEMA = pa.schema([SHARD, *EXCLUDED_SCHEMA])
_REASONS = EXCLUDED_SCHEMA.field("reasons")
_MADE_HERE = frozenset({"message_key", "variant"})

# An address that is its own deliverable form (RFC 5322 dot-atom at a lower-case ASCII domain whose last label begins
# with a letter), as long as it is short and no label is in Punycode. Whoever doesn't match is looked at one by one.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_PLAIN = rf"\A{_ATEXT}(?:\.{_ATEXT})*@(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]*[a-z0-9])?\z"
_SHORT = pa.scalar(64)  # octets, so neither local part, label nor the whole can be too long


@dataclass(frozen=True)
class Freezing:
    """What a plan settles about its people."""

    attributes: Mapping[str, AttributeType]
    shards: int
    send_key: bytes
    weights: tuple[int, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Of a shard."""
        return shard_schema(self.attributes)

    @cached_property
    def selected(self) -> pa.Schema:
        """People selected, with their shard."""
        return pa.schema([SHARD, *self.schema])

    @cached_property
    def read(self) -> pa.Schema:
        """What is read of a contact: ``address`` as given, a list of texts as JSON text, reasons last."""
        fields = [f.with_type(pa.string()) if pa.types.is_list(f.type) else f for f in self.schema]
        return pa.schema([*(f for f in fields if f.name not in _MADE_HERE), _REASONS])


class Rows(Protocol):
    """What is asked of rows as they were read: ``database.bulk_read.Block``, or a record batch."""

    def column(self, name: str, /) -> "pa.Array[Any]": ...

    def select(self, names: list[str], /) -> "Rows": ...

    def take(self, rows: NDArray[np.int64], /) -> pa.RecordBatch: ...


def split(rows: Rows, freezing: Freezing) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """People selected (``freezing.selected``) and people barred (``BARRED_SCHEMA``) of a block (``freezing.read``).

    Each is sorted by shard.
    """
    reasons = rows.column("reasons").to_numpy().copy()
    address, invalid = _deliverable(rows.column("address"))
    reasons[invalid] |= int(ExclusionReason.INVALID_ADDRESS)
    hashes = rows.column("address_hash")
    shards = shard_numbers(hashes, freezing.shards)
    order = np.argsort(shards, kind="stable")
    out = order[reasons[order] != 0]
    theirs = [rows.select(["contact_id"]).take(out).column(0), hashes.take(out)]
    barred = pa.record_batch([pa.array(shards[out]), *theirs, pa.array(reasons[out])], schema=BARRED_SCHEMA)
    kept = order[reasons[order] == 0]
    kept_hashes = hashes.take(kept)
    keys = joined_message_keys(freezing.send_key, bytes(bytes_of(kept_hashes)))
    made = {
        "address": address.take(kept),
        "address_hash": kept_hashes,
        "shard": pa.array(shards[kept]),
        "message_key": binary16(keys),
        "variant": pa.array(variants_of(keys, list(accumulate(freezing.weights)))),
    }
    people = rows.select([name for name in freezing.selected.names if name not in made]).take(kept)
    columns = [made[f.name] if f.name in made else _read_as(people.column(f.name), f.type) for f in freezing.selected]
    return pa.record_batch(columns, schema=freezing.selected), barred


def shard_numbers(hashes: "pa.Array[Any]", shards: int) -> NDArray[np.uint32]:
    """First four bytes of each address hash (binary(16)), big-endian, mod ``shards``."""
    prefix = np.frombuffer(bytes_of(hashes), dtype=">u4").reshape(-1, 4)[:, 0]
    return (prefix % shards).astype(np.uint32)


def binary16(data: bytes) -> "pa.Array[Any]":
    """The column of which ``bytes_of`` would give ``data``."""
    return pa.Array.from_buffers(pa.binary(16), len(data) // 16, [None, pa.py_buffer(data)])


def _read_as(column: "pa.Array[Any]", type_: pa.DataType) -> "pa.Array[Any]":
    """Lists of texts from their JSON, each text parsed once; all else is what it shall be."""
    if not pa.types.is_list(type_):
        return column
    encoded = column.dictionary_encode()
    texts: list[Any] = encoded.dictionary.to_pylist()
    lists = [json.loads(text) for text in texts]
    return pa.array(lists, type_).take(encoded.indices)


def _deliverable(given: Any) -> "tuple[pa.Array[Any], NDArray[np.int64]]":
    """For SMTP (``Address.deliverable``), and the places of those that are no addresses, left as they are."""
    plain = pc.and_(
        pc.and_(pc.match_substring_regex(given, _PLAIN), pc.less_equal(pc.binary_length(given), _SHORT)),
        pc.invert(pc.match_substring(given, "xn--")),
    )
    if pc.all(plain).as_py() is not False:
        return given, np.zeros(0, np.int64)
    invalid: list[int] = []
    mended: list[str] = []
    unusual = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
    texts: list[Any] = given.take(unusual).to_pylist()
    for place, text in zip(unusual, texts, strict=True):
        try:
            mended.append(normalise(text).deliverable)
        except AddressError:
            mended.append(text)
            invalid.append(int(place))
    return pc.replace_with_mask(given, pc.invert(plain), pa.array(mended, pa.string())), np.array(invalid, np.int64)
