"""The format on disk: a dataset's files, the rows of its tables, and how a block lies in its shard.

A dataset is a folder::

    manifest.json      what describes all shards (`shards.manifest`); published last, so a folder without it is no dataset
    blocks.npy         one BLOCK_DTYPE record a block, in the order of the shards
    utterances.npy     one UTTERANCE_DTYPE record an utterance, in the order of the blocks
    shard-000000.tar   WebDataset tars of blocks

A dataset that was appended to once has ``blocks-0001.npy`` and ``utterances-0001.npy`` instead, and so on: the manifest
names its tables, so that the old ones are whole until the new manifest takes the old one's place.

The per-block part of the manifest is a table of its own, of which a reader takes the rows it needs: JSON for 10^5 shards of
400 blocks would be gigabytes to parse on every rank.

A block is four members of a tar, in this order: ``KEY.frames.npy`` (T, D), ``KEY.lengths.npy`` (U,) int32,
``KEY.labels.npy`` (U,) int32, ``KEY.json``. Each header is 512 bytes and each payload is padded to a multiple of 512, so
the first three payloads' places follow from T, D and U alone, and the block is one contiguous *extent* of the file.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from shards.errors import UsageError
from shards.members import NPY_HEADER, TAR_RECORD, padded

FORMAT = "spkid-shards"
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
JOB_NAME = "job.json"  # of an unfinished job
BLOCKS_NAME = "blocks.npy"
UTTERANCES_NAME = "utterances.npy"
DTYPES = ("float32", "float16")

BLOCK_DTYPE = np.dtype(
    [
        ("payload_offset", "<i8"),  # of KEY.frames.npy in its tar: a multiple of 512
        ("extent_bytes", "<i8"),  # from the block's first tar header, 512 before the payload, to the next block's
        ("checksum", "<u8"),  # xxh3_64 of the extent
        ("first_utterance", "<i8"),  # row in the utterance table
        ("shard", "<i4"),
        ("frames", "<i4"),
        ("utterances", "<i4"),
    ]
)
UTTERANCE_DTYPE = np.dtype(
    [
        ("key_hash", "<u8"),  # xxh3_64 of the key
        ("frames", "<i4"),
        ("speaker", "<i4"),  # class index
        ("block", "<i4"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard as the manifest describes it; `digest` is the xxh3_128 of the file, as hexadecimal."""

    name: str
    bytes: int
    digest: str
    blocks: int
    utterances: int
    frames: int


def table_name(name: str, num_jobs: int) -> str:
    """The file of the table BLOCKS_NAME or UTTERANCES_NAME of a dataset that so many jobs made."""
    return name if num_jobs <= 1 else name.replace(".", f"-{num_jobs - 1:04d}.")


def shard_name(shard: int) -> str:
    """A shard's file name."""
    return f"shard-{shard:06d}.tar"


def block_key(shard: int, block: int) -> str:
    """What the names of a block's members begin with; `block` counts from 0 in its shard."""
    return f"{shard:06d}-{block:06d}"


def block_info(
    keys: Sequence[str], speakers: Sequence[str], source_kind: str, dataset: dict[str, Any] | None
) -> dict[str, Any]:
    """A block's JSON: its U utterances' keys and speakers; a shard's first block says what `dataset` it is of (`Origin`)."""
    info: dict[str, Any] = {"keys": list(keys), "speakers": list(speakers), "source": source_kind}
    return info if dataset is None else info | {"dataset": dataset}


def block_json(info: dict[str, Any]) -> bytes:
    """The payload of KEY.json. Raises ValueError where a string has no UTF-8."""
    return json.dumps(info, ensure_ascii=False).encode()


def key_hash(key: str) -> int:
    """The utterance table's 64-bit hash of a key."""
    return xxhash.xxh3_64_intdigest(key.encode())


def key_sum(parts: Iterable[NDArray[np.uint64]]) -> str:
    """What a set of utterances is known by, in whatever order: the number and the sum of their keys' hashes, in parts."""
    count = total = 0
    for part in parts:
        count += len(part)
        total += int(part.sum(dtype=np.uint64))
    return f"{count}:{total % 2**64:016x}"


@dataclass(frozen=True)
class BlockArrays:
    """The arrays of one block, views of its extent: frames (T, D), lengths (U,) int32, labels (U,) int32.

    `json` is the payload of KEY.json, which only those who need keys parse (`shards.keys`).
    """

    frames: NDArray[Any]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int32]
    json: memoryview


def block_arrays(
    extent: memoryview, num_frames: int, num_utterances: int, num_features: int, dtype: np.dtype[Any]
) -> BlockArrays:
    """The arrays in a block's extent, which begins at its first tar header.

    Raises:
        ValueError: the extent is too short for them.
    """
    at = TAR_RECORD + NPY_HEADER
    frames = np.frombuffer(extent, dtype, num_frames * num_features, at).reshape(num_frames, num_features)
    at += padded(NPY_HEADER + frames.nbytes) + TAR_RECORD
    lengths = np.frombuffer(extent, "<i4", num_utterances, at)
    at += padded(NPY_HEADER + lengths.nbytes) + TAR_RECORD
    labels = np.frombuffer(extent, "<i4", num_utterances, at)
    at += padded(NPY_HEADER + labels.nbytes) - NPY_HEADER
    size = int(bytes(extent[at + 124 : at + 135]), 8)  # where a tar header has its payload's bytes, in octal digits
    return BlockArrays(frames, lengths, labels, extent[at + TAR_RECORD : at + TAR_RECORD + size])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The options that change a dataset's bytes, besides its source."""

    dtype: str = "float32"
    seed: int = 0
    block_frames: int = 8192
    shard_bytes: int = 256_000_000

    def __post_init__(self) -> None:
        """Check the values' ranges; raises UsageError."""
        if self.dtype not in DTYPES:
            raise UsageError(f"--dtype {self.dtype}: expected one of {', '.join(DTYPES)}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed {self.seed}: expected 0 or more, below 2^63")
        if not 1 <= self.block_frames <= 2**24:
            raise UsageError(f"--block_frames {self.block_frames}: expected 1 to {2**24}")
        if self.shard_bytes < 1:
            raise UsageError(f"--shard_bytes {self.shard_bytes}: expected 1 or more")
