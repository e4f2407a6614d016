"""An open dataset: manifest and mapped tables, and its blocks read, checked against their checksums.

Local shards are mapped, so reading a block copies nothing. Remote ones are not handled here.
"""

import mmap
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import InputError
from shards.layout import (
    BLOCK_DTYPE,
    UTTERANCE_DTYPE,
    BlockArrays,
    Manifest,
    block_arrays,
    block_keys,
)
from shards.members import TAR_RECORD, table_header

CHECKED_TABLE_BYTES = 256_000_000  # larger tables are left to `spkid verify`: opening must not cost seconds
OPEN_SHARDS = 128  # maps kept open at once: far below the usual limit of 1,024 files


class ShardDataset:
    """A dataset's `folder`, `manifest`, `blocks` (BLOCK_DTYPE) and `utterances` (UTTERANCE_DTYPE).

    Raises:
        InputError: the folder holds no dataset, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        try:
            self._open_tables()
        except InputError:
            found = Manifest.load(self.folder)
            if found == self.manifest:
                raise
            self.manifest = found  # an append has just been published, and the old tables removed
            self._open_tables()
        self.fingerprint = self.manifest.fingerprint
        self._map = lru_cache(maxsize=OPEN_SHARDS)(self._open_map)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its folder: maps are opened again where it arrives."""
        return (ShardDataset, (self.folder,))

    def _open_tables(self) -> None:
        manifest = self.manifest
        self.blocks = self._table(manifest.blocks_name, BLOCK_DTYPE, manifest.num_blocks)
        self.utterances = self._table(manifest.utterances_name, UTTERANCE_DTYPE, manifest.num_utterances)

    def read_block(self, block: int) -> BlockArrays:
        """The arrays of one block, views of the mapped file, after its checksum was compared.

        Raises:
            InputError: the shard is missing, truncated, or its bytes are not those that were written.
        """
        record, extent = self._read_extent(block)
        try:
            arrays = block_arrays(extent, *self._block_shape(record))
            self._check_tables(record, arrays)
        except ValueError as error:
            raise self._misfit(block, error) from None
        return arrays

    def read_keys(self, block: int) -> list[str]:
        """The keys (U,) of one block's utterances. Raises InputError as `read_block`."""
        record, extent = self._read_extent(block)
        try:
            return block_keys(extent, *self._block_shape(record))
        except (ValueError, KeyError, TypeError) as error:
            raise self._misfit(block, error) from None

    def _block_shape(self, record: Any) -> tuple[int, int, int, np.dtype[Any]]:
        """T, U, D and dtype of a block."""
        return (
            int(record["frames"]),
            int(record["utterances"]),
            self.manifest.num_features,
            np.dtype(self.manifest.dtype),
        )

    def _misfit(self, block: int, error: Exception) -> InputError:
        path = self.folder / self.manifest.blocks_name
        return InputError(f"{path}: row {block} does not fit its block: {error}; shard the corpus again")

    def _read_extent(self, block: int) -> tuple[Any, memoryview]:
        """A block's record and its bytes, after their checksum was compared."""
        record = self.blocks[block]
        shard = int(record["shard"])
        if not 0 <= shard < len(self.manifest.shards):
            raise InputError(
                f"{self.folder / self.manifest.blocks_name}: row {block} is of shard {shard}, but there are "
                f"{len(self.manifest.shards)}; build it again: spkid index {self.folder}"
            )
        info = self.manifest.shards[shard]
        start = int(record["payload_offset"]) - TAR_RECORD
        end = start + int(record["extent_bytes"])
        path = self.folder / info.name
        data = self._map(info.name, info.bytes)
        if start < 0 or end > len(data) or xxhash.xxh3_64_intdigest(data[start:end]) != int(record["checksum"]):
            raise InputError(
                f"{path}: block {block}, bytes {start} to {end}: not what was written (checksum differs); "
                "restore the shard from a copy, or shard the corpus again"
            )
        return record, data[start:end]

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
        path = self.folder / name
        info = self.manifest.tables[name]
        try:
            table = map_table(path, dtype, rows, info.bytes)
            if info.bytes <= CHECKED_TABLE_BYTES and xxhash.xxh3_128_hexdigest(path.read_bytes()) != info.digest:
                raise ValueError("its digest is not that of the manifest")
            return table
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: damaged or missing: {error}; build it again: spkid index {self.folder}"
            ) from None

    def _open_map(self, name: str, expected_bytes: int) -> memoryview:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size != expected_bytes:
                    raise InputError(
                        f"{path}: {size} bytes, but the manifest says {expected_bytes}; restore it from a copy, or "
                        "shard the corpus again"
                    )
                if size == 0:
                    return memoryview(b"")
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InputError(f"{path}: can't read this shard: {error.strerror}; restore it from a copy") from None


def map_table(path: Path, dtype: np.dtype[Any], rows: int, expected_bytes: int) -> NDArray[Any]:
    """Map a table of records, (rows,) of `dtype`; its header is compared, never evaluated.

    Raises:
        OSError: it can't be read.
        ValueError: its size or its header is not that of such a table.
    """
    header = table_header(dtype, (rows,))
    size = path.stat().st_size
    if size != expected_bytes or size != len(header) + rows * dtype.itemsize:
        raise ValueError(f"{size} bytes, expected {expected_bytes} for {rows} rows")
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise ValueError(f"its npy header is not that of {rows} rows of this table")
    return np.memmap(path, dtype, "r", offset=len(header), shape=(rows,))
