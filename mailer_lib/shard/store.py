"""The snapshot store: a folder, or a bucket of an S3-compatible service, behind one kind of path.

    root = store(settings)            # a Path, or an S3Path
    manifest = manifests.load(root / row.path)

``S3Path`` is the part of ``pathlib.Path`` that readers and writers of the store use, so code that is given a
``StorePath`` doesn't ask which one it has. What differs: an object appears whole or not at all and is durable when
``write_bytes`` returns, there are no folders to make, and nothing can be renamed or appended to.

Why pyarrow's client and no other: docs/decisions/0307.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.fs import S3FileSystem

    from mailer_lib.settings import Settings  # not for agents: it takes a tenth of a second to import

_T = TypeVar("_T")
DOCTOR_HINT = "; `mailfleet doctor` says what is reachable"
_ATTEMPTS = 5  # of one request, with the SDK's own back-off
_CHUNK = 4 << 20
_AT_ONCE = 16  # requests of ``at_once``: objects are small, so latency is what costs


class StoreError(OSError):
    """The store can't be reached, or refuses; the sentence names the object and says what the service answered."""


@dataclass(frozen=True)
class _Service:
    """How to reach the bucket. ``work`` is this machine's own folder beside it."""

    work: Path
    endpoint: str | None
    region: str | None
    access_key: SecretStr | None = field(repr=False)
    secret_key: SecretStr | None = field(repr=False)


@lru_cache(maxsize=8)
def _client(service: _Service, process: int) -> "S3FileSystem":
    """One for each process: a forked child must not share its parent's connections."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    url = urlsplit(service.endpoint) if service.endpoint else None
    return S3FileSystem(  # type: ignore[call-arg]  # pyarrow-stubs is behind
        access_key=service.access_key.get_secret_value() if service.access_key else None,
        secret_key=service.secret_key.get_secret_value() if service.secret_key else None,
        region=service.region,
        endpoint_override=url.netloc if url else None,
        scheme="http" if url and url.scheme == "http" else "https",
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        background_writes=False,
        allow_delayed_open=True,  # a small object is one PUT, not the three requests of a multipart upload
    )


@dataclass(frozen=True)
class S3Path:
    """An object, or the common beginning of some objects' names. ``key`` is ``bucket/prefix/…``."""

    service: _Service = field(repr=False)
    key: str

    def __str__(self) -> str:
        return f"s3://{self.key}"

    def __truediv__(self, name: str) -> "S3Path":
        return S3Path(self.service, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "S3Path":
        return S3Path(self.service, self.key.rsplit("/", 1)[0])

    @property
    def work(self) -> Path:
        """This machine's work folder; what is built there has the same names below it."""
        return self.service.work

    def relative_to(self, folder: "S3Path") -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(folder.key)

    def exists(self) -> bool:
        """Whether there is such an object."""
        return bool(self._asked(lambda client: client.get_file_info(self.key)).is_file)

    is_file = exists

    def read_bytes(self) -> bytes:
        """
        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it can't be read.
        """

        def read(client: "S3FileSystem") -> bytes:
            with client.open_input_file(self.key) as file:
                return bytes(file.read())

        return self._asked(read)

    def write_bytes(self, data: "bytes | pa.Buffer") -> int:
        """The whole object; whoever reads sees the old one or the new one."""

        def write(client: "S3FileSystem") -> int:
            with client.open_output_stream(self.key) as stream:
                stream.write(data)  # in one call: leaving the block early would store what was written so far
            return len(data)

        return self._asked(write)

    def write_file(self, source: Path) -> None:
        """Likewise, from a file of any size: it is mapped, not read."""
        import pyarrow as pa

        if not source.stat().st_size:  # nothing to map
            self.write_bytes(b"")
            return
        with pa.memory_map(str(source)) as file:
            self.write_bytes(file.read_buffer())

    def read_file(self, target: Path) -> str:
        """Copy an object of any size to a file. Returns its SHA-256, hex.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: it can't be read.
        """

        def read(client: "S3FileSystem") -> str:
            digest = hashlib.sha256()
            with client.open_input_stream(self.key) as source, target.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()

        return self._asked(read)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._asked(lambda client: client.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Every object whose name begins with this one and a slash."""
        try:
            self._asked(lambda client: client.delete_dir(self.key))
        except FileNotFoundError:
            return

    def files(self) -> list["S3Path"]:
        """Every object below, by name."""
        from pyarrow.fs import FileSelector

        below = FileSelector(self.key, allow_not_found=True, recursive=True)
        found = self._asked(lambda client: client.get_file_info(below))
        return [S3Path(self.service, key) for key in sorted(info.path for info in found if info.is_file)]

    def children(self) -> list[str]:
        """The names directly below, of objects and of what has objects below."""
        from pyarrow.fs import FileSelector

        below = FileSelector(self.key, allow_not_found=True, recursive=False)
        return sorted(info.base_name for info in self._asked(lambda client: client.get_file_info(below)))

    def glob(self, pattern: str) -> Iterator["S3Path"]:
        """``*`` within one part of the name, as pathlib has it; no ``**``."""
        wanted = pattern.split("/")
        for path in self.files():
            parts = path.relative_to(self).parts
            if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
                yield path

    def _asked(self, ask: Callable[["S3FileSystem"], _T]) -> _T:
        try:
            return ask(_client(self.service, os.getpid()))
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "there is no such object in the snapshot store", str(self)) from None
        except OSError as error:
            raise StoreError(f"{self}: {_answer(error)}{DOCTOR_HINT}") from None


StorePath: TypeAlias = Path | S3Path


def store(settings: "Settings") -> StorePath:
    """The root of the snapshot store."""
    if settings.bucket is None:
        return settings.storage
    service = _Service(
        work=settings.storage,
        endpoint=str(settings.storage_endpoint) if settings.storage_endpoint else None,
        region=settings.storage_region or _region(has_endpoint=settings.storage_endpoint is not None),
        access_key=settings.storage_access_key,
        secret_key=settings.storage_secret_key,
    )
    return S3Path(service, settings.bucket)


def _region(*, has_endpoint: bool) -> str | None:
    """Asked for here, because the SDK would go on to look for a cloud machine's metadata service, and wait for it."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return found or ("us-east-1" if has_endpoint else None)


def store_path(settings: "Settings", text: str) -> StorePath:
    """What ``str()`` made of a path of this store."""
    root = store(settings)
    if isinstance(root, Path):
        return Path(text)
    if not text.startswith(f"{root}/"):
        raise StoreError(
            f"{text} isn't in the snapshot store {root}; every machine needs the same MAILFLEET_STORAGE_URL"
        )
    return root / text.removeprefix(f"{root}/")


def name_below(path: StorePath, folder: StorePath) -> str:
    """The rest of ``path``'s name, with slashes."""
    return str(path).removeprefix(f"{folder}/")


def arrow_source(path: StorePath) -> Any:
    """What pyarrow reads a file of the store from. An object is read whole: a shard has at most 5,000 rows."""
    import pyarrow as pa

    return path if isinstance(path, Path) else pa.BufferReader(path.read_bytes())


def at_hand(folder: StorePath, names: Iterable[str], work: Path) -> Path:
    """A folder of the store as programs that open files can read it: itself, or below ``work`` copies of these objects.

    A missing object isn't copied; whoever opens the file says so.

    Raises:
        StoreError: the store can't be reached.
    """
    if isinstance(folder, Path):
        return folder
    own = work / folder.key
    wanted = [name for name in names if not (own / name).exists()]
    for name in wanted:
        (own / name).parent.mkdir(parents=True, exist_ok=True)

    def copy(name: str) -> None:
        with suppress(FileNotFoundError):
            (own / name).write_bytes((folder / name).read_bytes())

    at_once(copy, wanted)
    return own


def at_once(work: Callable[[_T], object], items: Iterable[_T]) -> None:
    """``work`` for each item, some at a time; ends with the first error."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        waiting = [threads.submit(work, item) for item in items]
        try:
            for each in waiting:
                each.result()
        except BaseException:
            for each in waiting:
                each.cancel()
            raise


def _answer(error: OSError) -> str:
    """The service's words, of the SDK's long ones."""
    found = re.search(r"AWS Error (?P<code>\w+) during (?P<what>\w+) operation: (?P<words>.*)", str(error), re.DOTALL)
    if found is None:
        return str(error)
    words = re.sub(r"\s*\(Request ID.*", "", found["words"], flags=re.DOTALL)
    return f"{found['what']} failed with {found['code']} ({words.strip()})"
