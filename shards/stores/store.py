"""Define where an open dataset's bytes come from: the interface, and the local folder.

`shards.stores.remotestore` has the rest.

Local shards are mapped, so reading copies nothing. Whatever the store, bytes are compared with their checksums before they
are handed on.
"""

import re
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from mmap import mmap
from pathlib import Path

import xxhash

from shards.errors import InputError, UsageError
from shards.layout import ShardInfo
from shards.manifest import Manifest
from shards.stores.retry import RetryPolicy, WrongBytesError
from shards.tables import map_file

CHECKED_TABLE_BYTES = 256_000_000  # larger local tables are left to `spkid verify`: opening must not cost seconds
FINGERPRINT = re.compile(r"[0-9a-fA-F]{32}")
OPEN_SHARDS = 128  # maps kept open at once: far below the usual limit of 1,024 files


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How a remote dataset is read, and which one it must be, wherever it is.

    Args:
        fingerprint: of the dataset, as `spkid info` prints it; another dataset is refused. None: any is taken.
        cache_dir: downloaded blocks are kept below this folder; None: they are not kept.
        cache_bytes: what the files kept may take together.
        readers: requests at a time. Up to twice as many blocks are in memory before they are used.
        retry: how long the store may fail.

    Raises:
        UsageError: a value out of range.
    """

    fingerprint: str | None = None
    cache_dir: Path | None = None
    cache_bytes: int = 100_000_000_000
    readers: int = 16
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Check the values' ranges."""
        if self.readers < 1:
            raise UsageError(f"readers {self.readers}: expected 1 or more")
        if self.fingerprint is not None:
            check_is_fingerprint(self.fingerprint)

    def check_fingerprint(self, found: str, where: str) -> None:
        """Raise InputError where the dataset at `where`, whose fingerprint is `found`, is not the one that is expected."""
        if self.fingerprint is not None and self.fingerprint.lower() != found:
            raise InputError(
                f"{where}: its fingerprint is {found}, expected {self.fingerprint.lower()} (--fingerprint): it is another "
                "dataset, or has been changed; give the place of the right one"
            )


def check_is_fingerprint(text: str) -> None:
    """Raise UsageError where `text` can't be a fingerprint."""
    if not FINGERPRINT.fullmatch(text):
        raise UsageError(
            f"--fingerprint {text}: expected the 32 digits 0-9 and a-f of a dataset's fingerprint, as `spkid info` prints it"
        )


@dataclass(frozen=True)
class Extent:
    """The bytes `start` to `end` of a shard, of which `checksum` is the xxh3_64."""

    shard: ShardInfo
    start: int
    end: int
    checksum: int

    def is_right(self, data: bytes | memoryview) -> bool:
        """Whether `data` is what was written."""
        return len(data) == self.end - self.start and xxhash.xxh3_64_intdigest(data) == self.checksum

    def check(self, data: bytes) -> None:
        """Raise WrongBytesError where `data` is not what was written."""
        if not self.is_right(data):
            raise WrongBytesError(f"bytes {self.start} to {self.end} are not what was written (checksum differs)")


class Store(ABC):
    """A dataset's `manifest`, tables and shards, wherever they are. `reads_ahead`: how many reads are worth making at once.

    All methods raise InputError where something is missing, or the store fails.
    """

    manifest: Manifest
    reads_ahead: int = 1

    @abstractmethod
    def where(self, name: str) -> str:
        """The file as messages name it."""

    @abstractmethod
    def table(self, name: str) -> bytes | mmap:
        """The bytes of a table's file. Raises InputError where its size or its digest is not the manifest's."""

    @abstractmethod
    def is_checked(self, name: str) -> bool:
        """Whether a table was read as a whole when it was opened, and not only mapped."""

    @abstractmethod
    def read(self, extent: Extent, stop: threading.Event) -> memoryview:
        """The bytes of an extent, which lies within its shard; `stop`, once set, lets the store give up.

        Raises:
            WrongBytesError: they are not what was written.
        """


class LocalStore(Store):
    """A folder of this machine's file systems.

    A shard that was truncated after it was mapped is found before each read. What remains: one that is truncated while its
    block is in use ends the process with SIGBUS, so replace shards by renaming.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._map = lru_cache(maxsize=OPEN_SHARDS)(self._open_map)

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.folder / name)

    def is_checked(self, name: str) -> bool:
        """Whether a table is small enough to be read when it is opened."""
        return self.manifest.tables[name].bytes <= CHECKED_TABLE_BYTES

    def table(self, name: str) -> mmap:
        """A table's file, mapped."""
        path, info = self.folder / name, self.manifest.tables[name]
        try:
            data = map_file(path, info.bytes)
            if self.is_checked(name) and xxhash.xxh3_128_hexdigest(data) != info.digest:
                raise ValueError("its digest is not that of the manifest")
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{path}: damaged or missing: {what}; build it again: spkid index {self.folder}") from None
        return data

    def read(self, extent: Extent, stop: threading.Event) -> memoryview:  # noqa: ARG002 - nothing to wait for
        """The bytes of an extent, a view of the mapped file."""
        mapped = self._map(extent.shard.name, extent.shard.bytes)
        if mapped.size() < extent.end:  # the file's size now; a page beyond it can't be read
            raise InputError(
                f"{self.where(extent.shard.name)}: truncated since it was opened: {mapped.size()} bytes, expected "
                f"{extent.shard.bytes}; restore it from a copy"
            )
        view = memoryview(mapped)[extent.start : extent.end]
        if not extent.is_right(view):
            raise WrongBytesError
        return view

    def _open_map(self, name: str, expected_bytes: int) -> mmap:
        path = self.folder / name
        try:
            return map_file(path, expected_bytes)
        except OSError as error:
            raise InputError(f"{path}: can't read this shard: {error.strerror}; restore it from a copy") from None
        except ValueError as error:
            raise InputError(f"{path}: {error}; restore it from a copy, or shard the corpus again") from None
