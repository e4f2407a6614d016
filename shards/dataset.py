"""Open a dataset: read its manifest, its tables and its blocks, and check their checksums.

Where the bytes come from is the business of `shards.stores`: local shards are mapped, remote ones are read in ranges, several
at a time.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, StoreError
from shards.keys import parse_keys
from shards.layout import (
    BLOCK_DTYPE,
    UTTERANCE_DTYPE,
    BlockArrays,
    block_arrays,
)
from shards.members import TAR_RECORD
from shards.parallel import in_order
from shards.plaintext import shown_place
from shards.stores.remotestore import open_store
from shards.stores.retry import WrongBytesError
from shards.stores.store import Extent, LocalStore, StoreOptions
from shards.tables import parse_table, wrong_tables

Result = TypeVar("Result")


class ShardDataset:
    """A dataset's `folder`, `manifest`, `blocks` (BLOCK_DTYPE) and `utterances` (UTTERANCE_DTYPE).

    `folder` is the path of a local one; else the place as it was given, without what may be secret in it.

    Args:
        folder: its folder; or a URL that fsspec reads, such as ``s3://bucket/train``; or ``pipe:COMMAND {name}``, a command
            that writes the file ``{name}`` to its standard output.
        options: which dataset it must be; how a remote one is read, and where its blocks are kept.

    Raises:
        InputError: the folder holds no dataset, or a damaged one, or not the one that is expected; or the store fails.
        UsageError: the kind of URL is not known, its library is not installed, or it needs a cache.
    """

    def __init__(self, folder: str | Path, options: StoreOptions | None = None) -> None:
        self._options = options or StoreOptions()
        self._place, self._store = folder, open_store(folder, self._options)
        local = self._store if isinstance(self._store, LocalStore) else None
        self.folder: str | Path = shown_place(str(folder)) if local is None else local.folder
        try:
            self._open_tables()
        except InputError:
            store = open_store(folder, self._options)
            if store.manifest == self._store.manifest:
                raise
            self._store = store  # an append has just been published, and the old tables removed
            self._open_tables()
        self.fingerprint = self.manifest.fingerprint

    def _open_tables(self) -> None:
        manifest = self.manifest = self._store.manifest
        self._options.check_fingerprint(manifest.fingerprint, str(self.folder))
        self.blocks = self._table(manifest.blocks_name, BLOCK_DTYPE, manifest.num_blocks)
        self.utterances = self._table(manifest.utterances_name, UTTERANCE_DTYPE, manifest.num_utterances)
        if self._store.is_checked(manifest.blocks_name) and self._store.is_checked(manifest.utterances_name):
            wrong = wrong_tables(manifest, self.blocks, self.utterances)
            if wrong is not None:
                raise self._wrong_table(*wrong)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its place: it is opened again where it arrives."""
        return (ShardDataset, (self._place, self._options))

    @property
    def reads_ahead(self) -> int:
        """How many blocks are worth asking for at once: 1 where they are mapped."""
        return self._store.reads_ahead

    def read_block(self, block: int) -> BlockArrays:
        """The arrays of one block, after its checksum was compared: views of the mapped file, or of memory of its own.

        Raises:
            InputError: the shard is missing, truncated, or its bytes are not those that were written; the store fails.
        """
        return self._read_block(threading.Event(), block)

    def keys(self, block: int, arrays: BlockArrays) -> list[str]:
        """The keys of a block's utterances, of which `arrays` are the block's.

        Raises:
            InputError: they are damaged, or not those of the utterance table.
        """
        first = int(self.blocks[block]["first_utterance"])
        try:
            return parse_keys(arrays.json, self.utterances["key_hash"][first : first + len(arrays.lengths)])
        except ValueError as error:
            where = self._store.where(self.manifest.shards[int(self.blocks[block]["shard"])].name)
            raise InputError(
                f"{where}: block {block}: its utterances' keys are damaged: {error}; shard the corpus again"
            ) from None

    def try_blocks(self, blocks: Sequence[int]) -> Generator[BlockArrays | InputError, None, None]:
        """Yield the arrays of `blocks` in this order, or the error of one that is bad; remote blocks are read ahead.

        Close the generator to give up the reads that have not begun.

        Raises:
            StoreError: the store fails; within the retry policy's `total_seconds` and one `timeout_seconds`.
        """
        return self.map_blocks(lambda _, read: read(), blocks)

    def map_blocks(
        self,
        task: Callable[[int, Callable[[], BlockArrays | InputError]], Result],
        blocks: Sequence[int],
        threads: int = 1,
    ) -> Generator[Result, None, None]:
        """Yield ``task(block, read)`` for `blocks` in this order, where `read` is a block of `try_blocks`.

        Where blocks are mapped, `threads` do the tasks; where they are remote, as many as read ahead.
        """
        stop = threading.Event()

        def do(block: int) -> Result:
            return task(block, partial(self._try_block, stop, block))

        threads = max(threads, self._store.reads_ahead)
        if threads == 1:
            yield from map(do, blocks)
            return
        with closing(in_order(do, blocks, threads, stop.set)) as results:
            yield from results

    def _try_block(self, stop: threading.Event, block: int) -> BlockArrays | InputError:
        try:
            return self._read_block(stop, block)
        except StoreError:
            raise
        except InputError as error:
            return error

    def _read_block(self, stop: threading.Event, block: int) -> BlockArrays:
        record = self.blocks[block]
        extent = self._extent(block, record)
        try:
            data = self._store.read(extent, stop)
        except WrongBytesError:
            raise InputError(
                f"{self._store.where(extent.shard.name)}: block {block}, bytes {extent.start} to {extent.end}: not what "
                "was written (checksum differs); restore the shard from a copy, or shard the corpus again"
            ) from None
        try:
            arrays = block_arrays(
                data,
                int(record["frames"]),
                int(record["utterances"]),
                self.manifest.num_features,
                np.dtype(self.manifest.dtype),
            )
            self._check_tables(record, arrays)
        except ValueError as error:
            raise self._wrong_table(self.manifest.blocks_name, f"row {block} does not fit its block: {error}") from None
        return arrays

    def _extent(self, block: int, record: Any) -> Extent:
        """Where a block lies, if that can be."""
        shard, shards = int(record["shard"]), self.manifest.shards
        if not 0 <= shard < len(shards):
            raise self._wrong_table(
                self.manifest.blocks_name, f"row {block} is of shard {shard}, but there are {len(shards)}"
            )
        start = int(record["payload_offset"]) - TAR_RECORD
        end = start + int(record["extent_bytes"])
        if not 0 <= start < end <= shards[shard].bytes:
            raise self._wrong_table(
                self.manifest.blocks_name,
                f"row {block} is of bytes {start} to {end} of a shard of {shards[shard].bytes}",
            )
        return Extent(shards[shard], start, end, int(record["checksum"]))

    def _check_tables(self, record: Any, arrays: BlockArrays) -> None:
        """Raise ValueError where the tables, by which windows are counted, and the block itself disagree."""
        if int(arrays.lengths.sum(dtype=np.int64)) != len(arrays.frames) or int(arrays.lengths.min(initial=1)) < 1:
            raise ValueError(f"its utterances do not add up to {len(arrays.frames)} frames")
        first = int(record["first_utterance"])
        rows = self.utterances[first : first + len(arrays.lengths)]
        if not (np.array_equal(rows["frames"], arrays.lengths) and np.array_equal(rows["speaker"], arrays.labels)):
            raise ValueError(
                f"rows {first} to {first + len(arrays.lengths)} of {self.manifest.utterances_name} are not its utterances"
            )

    def _table(self, name: str, dtype: np.dtype[Any], rows: int) -> NDArray[Any]:
        try:
            return parse_table(self._store.table(name), dtype, rows)
        except ValueError as error:
            raise self._wrong_table(name, str(error)) from None

    def _wrong_table(self, name: str, what: str) -> InputError:
        remedy = (
            f"build it again: spkid index {self.folder}" if isinstance(self.folder, Path) else "shard the corpus again"
        )
        return InputError(f"{self._store.where(name)}: damaged: {what}; {remedy}")
