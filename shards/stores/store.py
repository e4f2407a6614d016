"""Define where an open dataset's bytes come from: the interface, and the local folder.

`shards.stores.remotestore` has the rest.

Local files are read, not mapped (`shards.stores.openfiles`). Whatever the store, bytes are compared with their checksums before
they are handed on.
"""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import xxhash

from shards.errors import InputError, UsageError
from shards.guesses import file_trouble
from shards.layout import ShardInfo
from shards.manifest import Manifest
from shards.stores.openfiles import OpenFolder
from shards.stores.retry import RetryPolicy, WrongBytesError
from shards.tables import CHECKED_TABLE_BYTES as CHECKED_TABLE_BYTES
from shards.tables import TableBytes, stays_in_file

FINGERPRINT = re.compile(r"[0-9a-fA-F]{32}")


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
    def table(self, name: str) -> TableBytes:
        """The bytes of a table's file, or what reads them.

        Raises InputError where its size is not the manifest's, or, where it was read as a whole, its digest.
        """

    @abstractmethod
    def read(self, extent: Extent, stop: threading.Event) -> memoryview:
        """The bytes of an extent, which lies within its shard; `stop`, once set, lets the store give up.

        Raises:
            WrongBytesError: they are not what was written.
        """


class LocalStore(Store):
    """A folder of this machine's file systems. What it has opened is read until it is not used any more: see `OpenFolder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._files = OpenFolder(folder)

    def where(self, name: str) -> str:
        """The file's path."""
        return str(self.folder / name)

    def table(self, name: str) -> TableBytes:
        """A table's file: its bytes; or what reads parts of it, where it has more than `CHECKED_TABLE_BYTES`."""
        info = self.manifest.tables[name]
        try:
            size = self._files.size(name)
            if size != info.bytes:
                raise ValueError(f"{size} bytes, but the manifest says {info.bytes}")
            if stays_in_file(size):
                return partial(self._read_table, name, self._files.reader(name))
            data = self._files.read(name, 0, size)
            if xxhash.xxh3_128_hexdigest(data) != info.digest:
                raise ValueError("its digest is not that of the manifest")
        except OSError as error:
            remedy = f"build it again: spkid index {self.folder}"
            raise InputError(f"{self.where(name)}: damaged or missing: {file_trouble(error, remedy)}") from None
        except ValueError as error:
            raise InputError(
                f"{self.where(name)}: damaged: {error}; build it again: spkid index {self.folder}"
            ) from None
        return data

    def read(self, extent: Extent, stop: threading.Event) -> memoryview:  # noqa: ARG002 - nothing to wait for
        """The bytes of an extent, in memory of their own."""
        name, expected = extent.shard.name, extent.shard.bytes
        try:
            size = self._files.size(name)
            data = self._files.read(name, extent.start, extent.end)
        except OSError as error:
            what = file_trouble(error, "restore it from a copy")
            raise InputError(f"{self.where(name)}: can't read this shard: {what}") from None
        if size != expected:
            raise InputError(
                f"{self.where(name)}: {size} bytes, but the manifest says {expected}; restore it from a copy, or shard the "
                "corpus again"
            )
        if len(data) < extent.end - extent.start:
            raise InputError(
                f"{self.where(name)}: truncated since it was opened: it ends before byte {extent.end} of {expected}; restore "
                "it from a copy"
            )
        if not extent.is_right(data):
            raise WrongBytesError
        return memoryview(data)

    def _read_table(self, name: str, read: Callable[[int, int], bytes], start: int, end: int) -> bytes:
        """Bytes of a table that is read in parts. Raises InputError where it has changed."""
        try:
            data = read(start, end)
        except OSError as error:
            what = file_trouble(error, "restore it from a copy")
            raise InputError(f"{self.where(name)}: can't read this table: {what}") from None
        if len(data) < end - start:
            raise InputError(
                f"{self.where(name)}: truncated since it was opened; build it again: spkid index {self.folder}"
            )
        return data
