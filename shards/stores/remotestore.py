"""Read a dataset that is not a local folder: at a URL that fsspec reads, or behind a command.

Blocks are read in ranges of exactly their bytes, and kept in a cache folder where one is given.
"""

import threading
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from typing import NoReturn, TypeVar

import xxhash

from shards.errors import InputError, UsageError
from shards.layout import MANIFEST_NAME
from shards.manifest import Manifest
from shards.parallel import ProcessLocks
from shards.plaintext import PIPE_PREFIX
from shards.stores.cachedir import CacheFolder
from shards.stores.pipe import PipeFiles
from shards.stores.remote import NoRangesError, RemoteFiles
from shards.stores.retry import WRONG_READS, WrongBytesError
from shards.stores.store import Extent, LocalStore, Store, StoreOptions
from shards.tables import map_file

Result = TypeVar("Result")


class RemoteStore(Store):
    """A folder at a URL, or behind a command, with or without a cache.

    Servers that send whole files only, and commands, need a cache: a shard is downloaded into it once, and read from there.
    """

    def __init__(self, files: RemoteFiles | PipeFiles, options: StoreOptions) -> None:
        self._files = files
        self._cache = None if options.cache_dir is None else CacheFolder(options.cache_dir, options.cache_bytes)
        if self._cache is None and isinstance(files, PipeFiles):
            raise UsageError(f"{files}: a command sends whole files, which need a cache folder: --shard_cache")
        self.reads_ahead = options.readers
        self._ranges: bool | None = None  # whether parts of files can be asked for; None: not known yet
        self._locks = ProcessLocks()
        self.manifest = self._read_manifest()

    def _read_manifest(self) -> Manifest:
        where, parsed = self.where(MANIFEST_NAME), []

        def check(data: bytes) -> None:
            try:
                parsed.append(Manifest.parse(data, where))
            except InputError as error:
                raise WrongBytesError(str(error)) from None

        try:
            self._files.read(MANIFEST_NAME, check)
        except WrongBytesError as error:
            raise InputError(str(error)) from None
        except FileNotFoundError:
            raise InputError(
                f"{where}: there is no such file; give the URL of a dataset that `spkid shard` has finished"
            ) from None
        return parsed[-1]

    def where(self, name: str) -> str:
        """The file's URL, or the command that writes it."""
        return self._files.where(name)

    def is_checked(self, name: str) -> bool:  # noqa: ARG002 - all of them are
        """Tables are always read as a whole."""
        return True

    def table(self, name: str) -> bytes | mmap:
        """A table's file: in memory, or mapped from the cache."""
        info = self.manifest.tables[name]

        def check(data: bytes | mmap) -> None:
            if len(data) != info.bytes or xxhash.xxh3_128_hexdigest(data) != info.digest:
                raise WrongBytesError("its size or its digest is not that of the manifest")

        try:
            if self._cache is None:
                assert isinstance(self._files, RemoteFiles)
                return self._files.read(name, check, info.bytes)

            def use(path: Path) -> mmap:
                data = map_file(path, info.bytes)
                check(data)
                return data

            return self._use_whole(self._cache, name, info.bytes, use, threading.Event())
        except FileNotFoundError:
            self._missing(name)
        except WrongBytesError as error:
            raise InputError(f"{self.where(name)}: damaged: {error}; restore it from a copy") from None

    def read(self, extent: Extent, stop: threading.Event) -> memoryview:
        """The bytes of an extent, from the cache or the store, in memory."""
        name = extent.shard.name
        kept = None
        if self._cache is not None:
            kept = self._cache.path(self.manifest.fingerprint, name, f"{extent.start}-{extent.end}")
            data = self._cache.read(kept, 0, extent.end - extent.start)
            if data is not None and extent.is_right(data):
                return memoryview(data)
            self._cache.discard(kept)
        if not self._sends_ranges(stop):
            return memoryview(self._read_of_whole(extent, stop))
        assert isinstance(self._files, RemoteFiles)
        try:
            data = self._files.read_range(name, extent.start, extent.end, extent.check, stop)
        except NoRangesError:
            self._ranges = False
            return memoryview(self._read_of_whole(extent, stop))
        except FileNotFoundError:
            self._missing(name)
        if self._cache is not None and kept is not None and len(data) <= self._cache.limit_bytes:
            with self._cache.create(kept, len(data)) as file:
                file.write(data)
        return memoryview(data)

    def _sends_ranges(self, stop: threading.Event) -> bool:
        """Whether parts of files can be asked for; a server that may be unable to is asked for a byte, once."""
        with self._locks["ranges"]:
            if self._ranges is None and isinstance(self._files, RemoteFiles) and self._files.may_ignore_ranges:
                try:
                    self._files.read_range(MANIFEST_NAME, 0, 1, stop=stop)
                except NoRangesError:
                    self._ranges = False
                except FileNotFoundError:
                    self._missing(MANIFEST_NAME)
            if self._ranges is None:
                self._ranges = isinstance(self._files, RemoteFiles)
            return self._ranges

    def _read_of_whole(self, extent: Extent, stop: threading.Event) -> bytes:
        """The bytes of an extent out of its whole shard in the cache."""
        shard = extent.shard
        if self._cache is None:
            raise InputError(
                f"{self.where(shard.name)}: the server sends whole files only (it ignores Range requests), which need a "
                "cache folder: give --shard_cache, or use a server that knows ranges"
            )
        cache = self._cache

        def read(path: Path) -> bytes:
            data = cache.read(path, extent.start, extent.end)
            extent.check(data or b"")
            assert data is not None
            return data

        return self._use_whole(cache, shard.name, shard.bytes, read, stop)

    def _use_whole(
        self,
        cache: CacheFolder,
        name: str,
        num_bytes: int,
        use: Callable[[Path], Result],
        stop: threading.Event,
    ) -> Result:
        """``use(path)`` of a whole file, which is downloaded where it is not in the cache, or is not what was written.

        Raises:
            WrongBytesError: `use` raised it for `WRONG_READS` downloads.
        """
        kept = cache.path(self.manifest.fingerprint, name)
        with self._locks[name]:  # else each reader would download the file
            try:
                return use(kept)
            except (OSError, ValueError, WrongBytesError):
                cache.discard(kept)
            for downloads in range(1, WRONG_READS + 1):
                try:
                    with cache.create(kept, num_bytes) as file:
                        self._download(name, Path(file.name), num_bytes, stop)
                        return use(Path(file.name))  # before it has its name: nobody removes it to make room
                except WrongBytesError:
                    if downloads == WRONG_READS:
                        raise
        raise AssertionError("the loop returns or raises")

    def _download(self, name: str, target: Path, num_bytes: int, stop: threading.Event) -> None:
        try:
            self._files.download(name, target, num_bytes, stop)
        except FileNotFoundError:
            self._missing(name)

    def _missing(self, name: str) -> NoReturn:
        raise InputError(f"{self.where(name)}: there is no such file, but the dataset has one; restore it from a copy")


def open_store(place: str | Path, options: StoreOptions) -> Store:
    """The store at a local path, a URL that fsspec knows, or a command ``pipe:COMMAND {name}``.

    Raises:
        InputError: there is no dataset, a damaged one, or the store fails.
        UsageError: the kind of URL is not known, its library is not installed, or it needs a cache.
    """
    text = str(place)
    if text.startswith(PIPE_PREFIX):
        return RemoteStore(PipeFiles(text.removeprefix(PIPE_PREFIX), options.retry), options)
    if "://" in text:
        return RemoteStore(RemoteFiles(text.rstrip("/"), options.retry), options)
    return LocalStore(Path(place))
