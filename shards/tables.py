"""Read the block table and the utterance table, mapped or in memory, and compare them with the manifest.

B blocks, U utterances, S shards.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest
from shards.members import TAR_RECORD, table_header


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
    if len(data) != len(header) + rows * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes, expected {len(header) + rows * dtype.itemsize} for {rows} rows")
    if data[: len(header)] != header:
        raise ValueError(f"its npy header is not that of {rows} rows of this table")
    return np.frombuffer(data, dtype, rows, len(header))


def map_table(path: Path, dtype: np.dtype[Any], rows: int, expected_bytes: int) -> NDArray[Any]:
    """Map a table of records, (rows,) of `dtype`.

    Raises:
        OSError: it can't be read.
        ValueError: its size or its header is not that of such a table.
    """
    return parse_table(map_file(path, expected_bytes), dtype, rows)


def wrong_tables(manifest: Manifest, blocks: NDArray[Any], utterances: NDArray[Any]) -> tuple[str, str] | None:
    """Compare (B,) blocks and (U,) utterances with the manifest: (table, what is wrong with it), or None.

    Digests tell that the tables are those that the manifest names. This tells whether who wrote the three told the
    truth about what windows are counted and found by, so that no later step leaves its arrays.
    """
    shards = manifest.shards
    numbers = np.repeat(np.arange(len(shards)), np.array([info.blocks for info in shards], np.int64))
    if len(blocks) == 0 or not np.array_equal(blocks["shard"], numbers):
        return manifest.blocks_name, "its rows are not those of the manifest's shards in their order"
    counts, frames = blocks["utterances"].astype(np.int64), blocks["frames"].astype(np.int64)
    if counts.min() < 1 or frames.min() < 1:
        return manifest.blocks_name, "it has blocks without utterances or frames"
    if counts.sum() != len(utterances) or (blocks["first_utterance"] != np.cumsum(counts) - counts).any():
        return manifest.blocks_name, f"its blocks are not the {len(utterances)} utterances in their order"
    totals = np.bincount(blocks["shard"], frames, len(shards))  # exact in float64, below 2^53
    if not np.array_equal(totals, [info.frames for info in shards]):
        return manifest.blocks_name, "its blocks have other numbers of frames than the manifest's shards"
    starts, extents = blocks["payload_offset"] - TAR_RECORD, blocks["extent_bytes"]
    room = np.array([info.bytes for info in shards], np.int64)[numbers]
    frames_bytes = frames * manifest.num_features * np.dtype(manifest.dtype).itemsize
    if ((starts < 0) | (starts > room) | (extents > room - starts) | (extents < frames_bytes)).any():
        return manifest.blocks_name, "its blocks do not lie within their shards"
    lengths, speakers = utterances["frames"], utterances["speaker"]
    if lengths.min() < 1:
        return manifest.utterances_name, "it has utterances without frames"
    if not 0 <= speakers.min() <= speakers.max() < len(manifest.speakers):
        return manifest.utterances_name, f"it has speakers beyond the manifest's {len(manifest.speakers)}"
    if not np.array_equal(np.add.reduceat(lengths, np.cumsum(counts) - counts, dtype=np.int64), frames):
        return manifest.utterances_name, "its utterances do not add up to the frames of their blocks"
    return None
