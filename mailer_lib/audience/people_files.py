"""``people/NNNN.arrow``: who is frozen in a snapshot, in the few columns that comparing two snapshots needs.

    address_hash   sorted by it within a file
    contact_id     0 when the person was erased, as in the shard
    provider       of mailbox

A shard has all columns of at most 5,000 people, compressed; opening thousands of them is what a comparison would spend
its time on. These files are mapped, not read, and have so many people each that erasing one writes 2 MB anew
(docs/decisions/0308).
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mailer_lib.audience.files import sync_folder
from mailer_lib.audience.freezing import bytes_of, halves
from mailer_lib.audience.manifest import PEOPLE_FOLDER, PeopleEntry
from mailer_lib.shard.files import write_durably
from mailer_lib.shard.store import StorePath, arrow_source

FILE_ROWS = 65_536  # a file is begun anew when it has so many
_COLUMNS = ("address_hash", "contact_id", "provider")
_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("address_hash", pa.binary(16), nullable=False),
    pa.field("contact_id", pa.int64(), nullable=False),
    pa.field("provider", pa.dictionary(pa.int16(), pa.string()), nullable=False),
]
SCHEMA = pa.schema(_FIELDS)


class PeopleWriter:
    """Writes the files below a snapshot's folder; a thread writes one while the next is gathered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[pa.Table] = []
        self._rows = 0
        self._made: list[Future[PeopleEntry]] = []

    def __enter__(self) -> "PeopleWriter":
        self._thread = ThreadPoolExecutor(1, "write people")
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=error is not None)

    def add(self, frozen: pa.Table) -> None:
        """The rows of a shard, or of a part of one."""
        self._held.append(frozen.select(_COLUMNS))
        self._rows += frozen.num_rows
        if self._rows >= FILE_ROWS:
            self._write()

    def entries(self) -> tuple[PeopleEntry, ...]:
        """All files, once they are on disk."""
        if self._rows:
            self._write()
        made = tuple(each.result() for each in self._made)
        if made:
            sync_folder(self._folder / PEOPLE_FOLDER)
        return made

    def _write(self) -> None:
        if self._made:
            self._made[-1].result()  # one at a time waits, not all of them
        else:
            (self._folder / PEOPLE_FOLDER).mkdir(exist_ok=True)
        name = f"{PEOPLE_FOLDER}/{len(self._made):04d}.arrow"
        self._made.append(self._thread.submit(_write_sorted, self._folder, name, self._held))
        self._held, self._rows = [], 0


def _write_sorted(folder: Path, name: str, parts: list[pa.Table]) -> PeopleEntry:
    rows = pa.concat_tables(parts).combine_chunks()
    ordered = rows.take(np.argsort(halves(rows.column("address_hash"))[:, 0]))
    texts: Any = ordered.column("provider").combine_chunks()
    encoded = texts.dictionary_encode()
    codes = pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int16()), encoded.dictionary)
    columns: list[Any] = [ordered.column("address_hash"), ordered.column("contact_id"), codes]
    sha256 = write_people(folder / name, pa.table(columns, schema=SCHEMA))
    return PeopleEntry(path=name, rows=rows.num_rows, sha256=sha256)


def write_people(path: StorePath, table: pa.Table) -> str:
    """One file, durable. Returns its SHA-256, hex."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table.combine_chunks())
    return write_durably(path, sink.getvalue())


def people_table(path: StorePath) -> pa.Table:
    """The whole file, mapped where it lies in a folder.

    Raises:
        OSError: it can't be read, as ``pa.ArrowException`` when it is damaged.
    """
    source = pa.memory_map(str(path)) if isinstance(path, Path) else arrow_source(path)
    return pa.ipc.open_file(source).read_all()


@dataclass(frozen=True)
class People:
    """A file's columns as they are mapped."""

    hashes: memoryview  # 16 bytes a person, sorted by the first eight
    contact_ids: NDArray[np.int64]
    providers: NDArray[np.int16]  # places in ``names``
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: StorePath) -> "People":
        """Raises:
        OSError, pa.ArrowException: as ``people_table``.
        """
        table = people_table(path)
        if table.schema != SCHEMA:
            raise pa.ArrowInvalid(f"{path}: its columns are {table.schema.names}, not those of a people file")
        table = table.combine_chunks()
        provider: Any
        hashes, ids, provider = (table.column(name).combine_chunks() for name in _COLUMNS)
        names: list[Any] = provider.dictionary.to_pylist()
        return cls(bytes_of(hashes), ids.to_numpy(), provider.indices.to_numpy(), tuple(names))

    def __len__(self) -> int:
        return len(self.contact_ids)

    def first_from(self, half: int) -> int:
        """The place of the first person whose hash's first eight bytes are at least this number."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if int.from_bytes(self.hashes[16 * middle : 16 * middle + 8], "big") < half:
                low = middle + 1
            else:
                high = middle
        return low

    def halves(self, first: int, last: int) -> NDArray[np.uint64]:
        """Hashes of the rows [first, last), as two numbers each."""
        return np.frombuffer(self.hashes[16 * first : 16 * last], ">u8").reshape(-1, 2).astype(np.uint64)
