"""Open a dataset: read its manifest, its tables and its blocks, and check their checksums.

Where the bytes come from is the business of `shards.stores`: of folders they are read as they are needed, of remote stores in
ranges, several at a time.
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
from shards.tables import Table, TableRules, open_table

Result = TypeVar("Result")


class ShardDataset:
    """A dataset's `folder`, `manifest`, `blocks` (BLOCK_DTYPE) and `utterances` (UTTERANCE_DTYPE).

    A table is an array, which nobody can change; or a `FileTable`, where it is larger than `shards.tables.CHECKED_TABLE_BYTES`:
    its rows and columns are read when they are asked for. What `block_rows`, `utterance_rows` and `utterance_column` return is
    checked in both cases; `is_checked` is whether all rows of both tables were, and stay as they are.

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
        self._rules = TableRules(manifest)
        self.is_checked = isinstance(self.blocks, np.ndarray) and isinstance(self.utterances, np.ndarray)
        if isinstance(self.blocks, np.ndarray):
            self._refuse(manifest.blocks_name, self._rules.wrong_blocks(self.blocks, 0))
            self._refuse(manifest.blocks_name, self._rules.wrong_frames(self.blocks))
            if isinstance(self.utterances, np.ndarray):
                wrong = self._rules.wrong_utterances(self.utterances, self.blocks, 0)
                self._refuse(manifest.utterances_name, wrong)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its place: it is opened again where it arrives."""
        return (ShardDataset, (self._place, self._options))

    @property
    def reads_ahead(self) -> int:
        """How many blocks are worth asking for at once: 1 where they are local."""
        return self._store.reads_ahead

    def block_rows(self, blocks: range) -> NDArray[Any]:
        """The rows (B,) of consecutive blocks.

        They fit the manifest: the blocks lie in their shards, and have utterances of the table.

        Raises:
            InputError: they don't, or can't be read.
        """
        rows: NDArray[Any] = self.blocks[blocks.start : blocks.stop]
        if not isinstance(self.blocks, np.ndarray):
            self._refuse(self.manifest.blocks_name, self._rules.wrong_blocks(rows, blocks.start))
        return rows

    def utterance_rows(self, rows: NDArray[Any], first_block: int) -> NDArray[Any]:
        """The rows (U,) of the utterances of consecutive blocks.

        They fit their blocks, and name speakers of the manifest. `rows` (B,) are what `block_rows` returned of the blocks from
        `first_block` on.

        Raises:
            InputError: they don't, or can't be read.
        """
        first, end = int(rows["first_utterance"][0]), int(rows["first_utterance"][-1]) + int(rows["utterances"][-1])
        found: NDArray[Any] = self.utterances[first:end]
        if not self.is_checked:
            self._refuse(self.manifest.utterances_name, self._rules.wrong_utterances(found, rows, first_block))
        return found

    def utterance_column(self, name: str) -> NDArray[Any]:
        """A column (U,) of the utterance table; lengths and speakers are in their ranges.

        Raises:
            InputError: they are not, or the table can't be read.
        """
        column: NDArray[Any] = self.utterances[name]
        if not self.is_checked:
            self._refuse(self.manifest.utterances_name, self._rules.wrong_column(name, column))
        return column

    def blocks_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The blocks (n,) in which the utterances of these rows (n,) of the table lie. One pass over the block table."""
        found = np.searchsorted(self.blocks["first_utterance"], rows, side="right") - 1
        return np.asarray(found.clip(min=0), np.int64)

    def read_block(self, block: int) -> BlockArrays:
        """The arrays of one block, after its checksum was compared: views of memory of its own, which nobody else changes.

        Raises:
            InputError: the shard is missing, truncated, or its bytes are not those that were written; the store fails.
        """
        return self._read_block(threading.Event(), block)

    def keys(self, block: int, arrays: BlockArrays) -> list[str]:
        """The keys of a block's utterances, of which `arrays` are the block's.

        Raises:
            InputError: they are damaged, or not those of the utterance table.
        """
        rows = self.block_rows(range(block, block + 1))
        try:
            return parse_keys(arrays.json, self.utterance_rows(rows, block)["key_hash"])
        except ValueError as error:
            where = self._store.where(self._extent(rows[0]).shard.name)
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

        Where blocks are local, `threads` do the tasks; where they are remote, as many as read ahead.
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
        block = range(len(self.blocks))[block]
        rows = self.block_rows(range(block, block + 1))
        record = rows[0]
        extent = self._extent(record)
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
            self._check_arrays(arrays, rows, block)
        except ValueError as error:
            raise self._wrong_table(self.manifest.blocks_name, f"row {block} does not fit its block: {error}") from None
        return arrays

    def _extent(self, record: Any) -> Extent:
        """Where a block lies, by a row of `block_rows`."""
        start = int(record["payload_offset"]) - TAR_RECORD
        shard = self.manifest.shards[int(record["shard"])]
        return Extent(shard, start, start + int(record["extent_bytes"]), int(record["checksum"]))

    def _check_arrays(self, arrays: BlockArrays, rows: NDArray[Any], block: int) -> None:
        """Raise ValueError where the tables, by which windows are counted, and the block itself disagree."""
        if int(arrays.lengths.sum(dtype=np.int64)) != len(arrays.frames) or int(arrays.lengths.min(initial=1)) < 1:
            raise ValueError(f"its utterances do not add up to {len(arrays.frames)} frames")
        found = self.utterance_rows(rows, block)
        if not (np.array_equal(found["frames"], arrays.lengths) and np.array_equal(found["speaker"], arrays.labels)):
            first = int(rows["first_utterance"][0])
            raise ValueError(
                f"rows {first} to {first + len(arrays.lengths)} of {self.manifest.utterances_name} are not its utterances"
            )

    def _table(self, name: str, dtype: np.dtype[Any], rows: int) -> Table:
        try:
            return open_table(self._store.table(name), dtype, rows, self.manifest.tables[name].bytes)
        except ValueError as error:
            raise self._wrong_table(name, str(error)) from None

    def _refuse(self, name: str, wrong: str | None) -> None:
        if wrong is not None:
            raise self._wrong_table(name, wrong)

    def _wrong_table(self, name: str, what: str) -> InputError:
        remedy = (
            f"build it again: spkid index {self.folder}" if isinstance(self.folder, Path) else "shard the corpus again"
        )
        return InputError(f"{self._store.where(name)}: damaged: {what}; {remedy}")
