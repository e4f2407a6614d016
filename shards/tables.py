"""Read the block table and the utterance table, and compare their rows with the manifest and with each other.

Compiled loops take places in memory from the rows, so rows are checked before they are used: all at once where a table is small
enough to be held in memory, where nobody can change it; else those that are used, each time, in the copy that is used.

B blocks, U utterances, S shards.
"""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.files import read_regular
from shards.manifest import Manifest
from shards.members import TAR_RECORD, table_header

CHECKED_TABLE_BYTES = (
    256_000_000  # larger tables stay in their files: opening must not cost seconds, nor gigabytes a process
)
ROWS_AT_A_TIME = 2**20

TableBytes = bytes | mmap.mmap | Callable[[int, int], bytes]
"""A table's file: all its bytes, a map of them, or what reads the bytes ``start`` to ``end``."""


class FileTable:
    """A table, (rows,) of `dtype`, that stays in its file: what is taken of it is read then, into memory of its own.

    ``table[first:end]`` are rows, ``table[row]`` is one, ``table[name]`` a whole column, which is read in pieces.
    `read` gives the bytes ``start`` to ``end`` of the rows.
    """

    def __init__(self, read: Callable[[int, int], bytes], dtype: np.dtype[Any], rows: int) -> None:
        self.dtype = dtype
        self._read = read
        self._rows = rows

    def __len__(self) -> int:
        """How many rows it has."""
        return self._rows

    def __getitem__(self, key: str | int | slice) -> Any:
        """Rows, one row or a column. Raises InputError where the file can't be read."""
        if isinstance(key, str):
            column = np.empty(self._rows, self.dtype[key])
            for first in range(0, self._rows, ROWS_AT_A_TIME):
                column[first : first + ROWS_AT_A_TIME] = self[first : first + ROWS_AT_A_TIME][key]
            return column
        if isinstance(key, slice):
            first, end, step = key.indices(self._rows)
            size = self.dtype.itemsize
            assert step == 1, "rows are read in their order"
            return np.frombuffer(self._read(first * size, max(first, end) * size), self.dtype)
        row = range(self._rows)[key]
        return self[row : row + 1][0]


Table = NDArray[Any] | FileTable
"""A table in memory, where nobody can change it and all rows are checked; or in its file."""


def stays_in_file(num_bytes: int) -> bool:
    """Whether a table of so many bytes is not read into memory."""
    return num_bytes > CHECKED_TABLE_BYTES


def map_file(path: Path, expected_bytes: int) -> mmap.mmap:
    """Map a file of a known size.

    Raises:
        OSError: it can't be read.
        ValueError: its size is another, or 0.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if size != expected_bytes:
            raise ValueError(f"{size} bytes, but the manifest says {expected_bytes}")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def parse_table(data: bytes | mmap.mmap, dtype: np.dtype[Any], rows: int) -> NDArray[Any]:
    """The table (rows,) of `dtype` in the bytes of its file, a view of them; its header is compared, never evaluated.

    Raises:
        ValueError: its size or its header is not that of such a table.
    """
    header = table_header(dtype, (rows,))
    _check_header(data[: len(header)], header, len(data), dtype, rows)
    return np.frombuffer(data, dtype, rows, len(header))


def open_table(data: TableBytes, dtype: np.dtype[Any], rows: int, num_bytes: int) -> Table:
    """The table (rows,) of `dtype` in a file of `num_bytes`: in memory of its own, or a `FileTable` where it is too large.

    Raises:
        InputError: it can't be read.
        ValueError: its size or its header is not that of such a table.
    """
    if isinstance(data, mmap.mmap):
        num_bytes = len(data)
        data = _reader_of(data) if stays_in_file(num_bytes) else bytes(data)
    if isinstance(data, bytes):
        return parse_table(data, dtype, rows)
    read, header = data, table_header(dtype, (rows,))
    _check_header(read(0, min(len(header), num_bytes)), header, num_bytes, dtype, rows)
    return FileTable(lambda start, end: read(len(header) + start, len(header) + end), dtype, rows)


def _reader_of(mapped: mmap.mmap) -> Callable[[int, int], bytes]:
    return lambda start, end: mapped[start:end]


def _check_header(found: bytes, header: bytes, num_bytes: int, dtype: np.dtype[Any], rows: int) -> None:
    expected = len(header) + rows * dtype.itemsize
    if num_bytes != expected:
        raise ValueError(f"{num_bytes} bytes, expected {expected} for {rows} rows")
    if found != header:
        raise ValueError(f"its npy header is not that of {rows} rows of this table")


def map_table(path: Path, dtype: np.dtype[Any], rows: int, expected_bytes: int) -> NDArray[Any]:
    """A table of records, (rows,) of `dtype`: read, or mapped where it is too large for that.

    Raises:
        OSError: it can't be read.
        ValueError: its size or its header is not that of such a table.
    """
    if not stays_in_file(expected_bytes) and path.stat().st_size == expected_bytes:
        return parse_table(read_regular(path, expected_bytes), dtype, rows)
    return parse_table(map_file(path, expected_bytes), dtype, rows)


class TableRules:
    """What must be true of a dataset's tables, so that no step that counts or finds windows by them leaves its arrays.

    Digests tell that the tables are those that the manifest names. This tells whether whoever wrote the three told the truth.
    """

    def __init__(self, manifest: Manifest) -> None:
        shards = manifest.shards
        self.first_block = np.cumsum([0, *(info.blocks for info in shards)])
        self._frames = np.array([info.frames for info in shards], np.int64)
        self._bytes = np.array([info.bytes for info in shards], np.int64)
        self._num_utterances, self._num_speakers = manifest.num_utterances, len(manifest.speakers)
        self._row_bytes = manifest.num_features * np.dtype(manifest.dtype).itemsize

    def wrong_blocks(self, blocks: NDArray[Any], first: int) -> str | None:
        """What is wrong with consecutive rows (B,) of the block table, from row `first` on; None where nothing is."""
        shards = np.searchsorted(self.first_block, np.arange(first, first + len(blocks)), side="right") - 1
        if not np.array_equal(blocks["shard"], shards):
            return "its rows are not those of the manifest's shards in their order"
        counts, frames = blocks["utterances"].astype(np.int64), blocks["frames"].astype(np.int64)
        if counts.min() < 1 or (frames < counts).any():
            return "it has blocks without utterances or frames"
        wanted = np.cumsum(counts) - counts + (blocks["first_utterance"][0] if first else 0)
        end = int(wanted[-1]) + int(counts[-1])
        is_last = first + len(blocks) == self.first_block[-1]
        is_in_order = np.array_equal(blocks["first_utterance"], wanted) and 0 <= wanted[0] <= self._num_utterances
        if not is_in_order or end > self._num_utterances or (is_last and end < self._num_utterances):
            return f"its blocks are not the {self._num_utterances} utterances in their order"
        starts, extents, room = blocks["payload_offset"] - TAR_RECORD, blocks["extent_bytes"], self._bytes[shards]
        is_outside = (starts < 0) | (starts > room) | (extents > room - starts) | (extents < frames * self._row_bytes)
        return "its blocks do not lie within their shards" if is_outside.any() else None

    def wrong_frames(self, blocks: NDArray[Any]) -> str | None:
        """What is wrong with the frames of all rows (B,) of the block table, which `wrong_blocks` has passed."""
        totals = np.add.reduceat(blocks["frames"], self.first_block[:-1], dtype=np.int64)
        if np.array_equal(totals, self._frames):
            return None
        return "its blocks have other numbers of frames than the manifest's shards"

    def wrong_utterances(self, utterances: NDArray[Any], blocks: NDArray[Any], first_block: int) -> str | None:
        """What is wrong with the rows (U,) of the utterances of consecutive `blocks` (B,), which `wrong_blocks` has passed."""
        lengths = utterances["frames"]
        wrong = self.wrong_column("frames", lengths) or self.wrong_column("speaker", utterances["speaker"])
        if wrong is not None:
            return wrong
        numbers = np.arange(first_block, first_block + len(blocks))
        if not np.array_equal(utterances["block"], np.repeat(numbers, blocks["utterances"])):
            return "its utterances are not those of the blocks in their order"
        firsts = blocks["first_utterance"] - blocks["first_utterance"][0]
        if not np.array_equal(np.add.reduceat(lengths, firsts, dtype=np.int64), blocks["frames"]):
            return "its utterances do not add up to the frames of their blocks"
        return None

    def wrong_column(self, name: str, values: NDArray[Any]) -> str | None:
        """What is wrong with the values (U,) of a column of the utterance table alone; None where nothing is."""
        if name == "frames" and values.min() < 1:
            return "it has utterances without frames"
        if name == "speaker" and not 0 <= values.min() <= values.max() < self._num_speakers:
            return f"it has speakers beyond the manifest's {self._num_speakers}"
        return None
