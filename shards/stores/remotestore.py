"""Read a dataset that is not a local folder: at a URL that fsspec reads, or behind a command.

Blocks are read in ranges of exactly their bytes, and kept in a cache folder where one is given.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import xxhash

from shards.errors import InputError, UsageError
from shards.files import read_regular
from shards.jsontext import MOST_BYTES
from shards.layout import MANIFEST_NAME
from shards.manifest import Manifest
from shards.parallel import ProcessLocks
from shards.plaintext import PIPE_PREFIX
from shards.resources import memory_left
from shards.stores.cachedir import CacheFolder, NotKeptError
from shards.stores.pipe import PipeFiles
from shards.stores.receiving import NoRangesError
from shards.stores.remote import RemoteFiles, without_slash
from shards.stores.retry import WRONG_READS, WrongBytesError
from shards.stores.store import CHECKED_TABLE_BYTES, Extent, LocalStore, Store, StoreOptions
from shards.tables import map_file

Result = TypeVar("Result")
UNCHECKED_BYTES = 64_000_000  # to be read at once: what is larger is compared with the memory that is left


class RemoteStore(Store):
    """A folder at a URL, or behind a command, with or without a cache.

    Servers that send whole files only, and commands, need a cache: a shard is downloaded into it once, and read from there.
    What can't be kept in the cache is used all the same, where it fits the memory.
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
            self._files.read(MANIFEST_NAME, MOST_BYTES, check)
        except WrongBytesError as error:
            told = str(error)
            raise InputError(told if told.startswith(where) else f"{where}: {told}, so it is no manifest") from None
        except FileNotFoundError:
            raise InputError(
                f"{where}: there is no such file; give the URL of a dataset that `spkid shard` has finished"
            ) from None
        return parsed[-1]

    def where(self, name: str) -> str:
        """The file's URL, or the command that writes it."""
        return self._files.where(name)

    def table(self, name: str) -> bytes | mmap:
        """A table's file: in memory, or mapped from the cache."""
        info = self.manifest.tables[name]

        def check(data: bytes | mmap) -> None:
            if len(data) != info.bytes or xxhash.xxh3_128_hexdigest(data) != info.digest:
                raise WrongBytesError("its size or its digest is not that of the manifest")

        def use(path: Path) -> bytes | mmap:
            data = _kept_table(path, info.bytes)
            check(data)
            return data

        try:
            if self._cache is not None:
                try:
                    return self._use_whole(self._cache, name, info.bytes, use, threading.Event())
                except NotKeptError:
                    pass
            self._check_memory(name, info.bytes)
            return self._files.read(name, info.bytes, check)
        except FileNotFoundError:
            self._missing(name)
        except WrongBytesError as error:
            raise InputError(f"{self.where(name)}: damaged: {error}; restore it from a copy") from None

    def read(self, extent: Extent, stop: threading.Event) -> memoryview:
        """The bytes of an extent, from the cache or the store, in memory."""
        name = extent.shard.name
        kept = None
        self._check_memory(name, extent.end - extent.start)
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
            with contextlib.suppress(NotKeptError):
                self._cache.create(kept, len(data), partial(_write, data))
        return memoryview(data)

    def _check_memory(self, name: str, num_bytes: int) -> None:
        """Raise InputError where a manifest or a table promises so many bytes that memory would run out."""
        if num_bytes <= UNCHECKED_BYTES:
            return
        left = memory_left()
        if left is not None and num_bytes > left:
            raise InputError(
                f"{self.where(name)}: {num_bytes} bytes of it are to be read into memory, which has {left} left; use a "
                "machine with more memory, or shard the corpus with smaller --block_frames"
            )

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
                except WrongBytesError as error:
                    raise InputError(f"{self.where(MANIFEST_NAME)}: asked for its first byte: {error}") from None
            if self._ranges is None:
                self._ranges = isinstance(self._files, RemoteFiles)
            return self._ranges

    def _read_of_whole(self, extent: Extent, stop: threading.Event) -> bytes:
        """The bytes of an extent out of its whole shard in the cache."""
        shard = extent.shard
        what = (
            "the server sends whole files only (it ignores Range requests)"
            if isinstance(self._files, RemoteFiles)
            else "a command sends whole files"
        )
        if self._cache is None:
            raise InputError(
                f"{self.where(shard.name)}: {what}, which need a cache folder: give --shard_cache, or use a server that "
                "knows ranges"
            )
        cache = self._cache

        def read(path: Path) -> bytes:
            data = cache.read(path, extent.start, extent.end)
            extent.check(data or b"")
            assert data is not None
            return data

        try:
            return self._use_whole(cache, shard.name, shard.bytes, read, stop)
        except NotKeptError as error:
            raise InputError(
                f"{self.where(shard.name)}: {what}, which need a cache folder, and the file can't be kept in {cache.root}: "
                f"{error}"
            ) from None

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
            NotKeptError: it is not there, and can't be kept.
            WrongBytesError: `use` raised it for `WRONG_READS` downloads.
        """
        kept = cache.path(self.manifest.fingerprint, name)

        def fill(file: IO[bytes]) -> Result:
            self._download(name, file, num_bytes, stop)
            file.flush()
            return use(Path(file.name))  # before it has its name: nobody removes it to make room

        with self._locks[name]:  # else each reader would download the file
            try:
                return use(kept)
            except (OSError, ValueError, WrongBytesError):
                cache.discard(kept)
            for downloads in range(1, WRONG_READS + 1):
                try:
                    return cache.create(kept, num_bytes, fill)
                except WrongBytesError:
                    if downloads == WRONG_READS:
                        raise
        raise AssertionError("the loop returns or raises")

    def _download(self, name: str, target: IO[bytes], num_bytes: int, stop: threading.Event) -> None:
        try:
            self._files.download(name, target, num_bytes, stop)
        except FileNotFoundError:
            self._missing(name)

    def _missing(self, name: str) -> NoReturn:
        raise InputError(f"{self.where(name)}: there is no such file, but the dataset has one; restore it from a copy")


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _kept_table(path: Path, num_bytes: int) -> bytes | mmap:
    """A table in the cache: in memory, where nobody can change it any more; mapped where it is large and this user's.

    Raises:
        OSError: it can't be read.
        ValueError: it has another size.
    """
    if num_bytes > CHECKED_TABLE_BYTES and path.stat().st_uid == os.geteuid():
        return map_file(path, num_bytes)
    data = read_regular(path, num_bytes)
    if len(data) != num_bytes:
        raise ValueError(f"{len(data)} bytes, but the manifest says {num_bytes}")
    return data


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
        return RemoteStore(RemoteFiles(without_slash(text), options.retry), options)
    return LocalStore(Path(place))
